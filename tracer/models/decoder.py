"""A transformers decoder seen through its declaration, with blocks of ours while it is traced.

The model's own top-level forward runs: it embeds tokens and prepares rotary tables. While tracing,
each block instance's `forward` is replaced by ours, and so is attention (`interception.py`); a
context manager restores everything. No two threads trace at once.
"""

import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cached_property
from itertools import chain
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...errors import ModelError
from ..graph import Geometry
from .architecture import Architecture, BlockNorms, LinearNorm, SharedValues
from .block import Block
from .calls import POSITIONS, SHARED
from .interception import EMPTY_MASK, NAME, no_choice, with_attribute, with_implementation
from .linear import domain, evaluated, is_plain
from .offload import OffloadedBlocks
from .state import addresses, contents, settings, tensors_of

RunBlock = Callable[[int, Tensor, dict[str, Any]], Tensor]

# What a config may say that a forward pass returns, while a model is traced.
_OUTPUTS = {"return_dict": True, "output_hidden_states": False, "_output_attentions": False}

# While a model is traced its modules are patched: no two threads may trace at once. One lock for
# all models, as models may share modules or a config, and `set_stance` is global.
_ONE_AT_A_TIME = RLock()

_heartbeat: ContextVar[Callable[[], None]] = ContextVar("heartbeat", default=lambda: None)


class Decoder:
    """A causal language model of a declared family.

    `offloaded` provides the blocks' weights while they run. Matrices derived from weights are kept
    until `refresh` finds the weights changed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        architecture: Architecture,
        offloaded: OffloadedBlocks | None = None,
    ) -> None:
        reason = architecture.unsupported(model.config)
        if reason is not None:
            raise ModelError(f"this {architecture.name} model cannot be traced: {reason}")
        self.model = model
        self.architecture = architecture
        self.heads: int = model.config.num_attention_heads
        scale = architecture.branch_scale(model.config) or 1.0
        norms = architecture.norms
        norms = norms if isinstance(norms, BlockNorms) else norms(model.config)
        self.blocks = [
            Block(module, architecture, norms, self.heads, scale)
            for module in model.get_submodule(architecture.blocks).children()
            if architecture.skipped not in module._modules
        ]
        self.geometry = Geometry.of_blocks(len(self.blocks), architecture.parallel(model.config))
        if architecture.shared_values is not None:
            self._share_values(architecture.shared_values)
        for projection in (*(b.projection for b in self.blocks), model.get_output_embeddings()):
            domain(projection)  # refuse now what could not be evaluated later
        self._derived_state: Hashable = None  # of the modules that values were derived from
        self.offloaded = offloaded
        if offloaded is not None:
            for block in self.blocks:
                block.module.register_forward_hook(block.forget_weights, always_call=True)
        self.logit_scale = architecture.logit_scale(model.config) or 1.0
        self.logit_softcap = architecture.logit_softcap(model.config)

    def _share_values(self, shared: SharedValues) -> None:
        values = tuple(shared.blocks(self.model.config))
        self.geometry = replace(self.geometry, value_blocks=values)
        for index, block in enumerate(self.blocks):
            if values[index] != index:
                block.reads = shared.entry(block.attention)
                self.blocks[values[index]].writes = block.reads

    @property
    def device(self) -> torch.device:
        """The device that token ids go to."""
        device: torch.device = self.model.device
        return device

    @property
    def vocab_size(self) -> int:
        """The exclusive upper bound of token ids that have an embedding and a logit."""
        embeddings: int = self.model.get_input_embeddings().get_parameter("weight").shape[0]
        head = self.model.get_output_embeddings()
        return min(embeddings, getattr(head, "out_features", embeddings))

    @property
    def max_length(self) -> int | None:
        """The most tokens a sequence may have; None if there is no limit."""
        return self.architecture.longest(self.model.config)

    @property
    def _inner(self) -> nn.Module:
        """The model without its unembedding; Llama 4's `base_model` is the whole model."""
        inner: nn.Module = self.model.base_model
        return self.model.get_submodule("model") if inner is self.model else inner

    @property
    def unembedding(self) -> tuple[Tensor, Tensor | None]:
        """The unembedding's weight [V, D], and its bias [V] or None."""
        head = self.model.get_output_embeddings()
        if is_plain(head):
            return head.get_parameter("weight").detach(), getattr(head, "bias", None)
        return self._evaluated_head

    @cached_property
    def _evaluated_head(self) -> tuple[Tensor, Tensor | None]:
        """An unembedding that is quantised, wrapped or hooked."""
        head = self.model.get_output_embeddings()
        table, offset = evaluated(head, self.blocks[0].dtype)
        return table, offset if offset.any() else None

    @cached_property
    def final_norms(self) -> tuple[LinearNorm, ...]:
        """The linearised final norm, if there is one."""
        return tuple(LinearNorm.of(norm, self.architecture) for norm in self._final_norms)

    @property
    def _final_norms(self) -> list[nn.Module]:
        path = self.architecture.final_norm
        path = path(self.model.config) if callable(path) else path
        return [] if path is None else [self.model.get_submodule(path)]

    def refresh(self) -> Hashable:
        """Drop what was derived from weights or hooks that have changed since the last call.

        Reads the weights that values are derived from, and waits for the device: once per public
        call, not once per pass.

        Returns:
            A key that changes at least whenever something is dropped, tensors move in memory, or
            hooks or attributes of modules change.
        """
        modules = [*self._final_norms, *chain(*(block.derived_from for block in self.blocks))]
        head = self.model.get_output_embeddings()
        if not is_plain(head):
            modules.append(head)
        state = contents(chain(*map(tensors_of, modules))), tuple(map(settings, modules))
        if state != self._derived_state:
            self._derived_state = state
            for block in self.blocks:
                block.forget_weights()
            for name in ("final_norms", "_evaluated_head"):
                self.__dict__.pop(name, None)
        return state

    def wiring(self) -> Hashable:
        """What a pass captured as a CUDA graph depends on, besides the values of weights."""
        return addresses(self.model), settings(self.model)

    def value(self, name: str, tensor: Tensor) -> Tensor:
        """The values of a parameter or state dict entry, read from a file if offloaded."""
        return tensor if self.offloaded is None else self.offloaded.value(name, tensor)

    def hidden_states(
        self, ids: Tensor, positions: Tensor, mask: Tensor, run_block: RunBlock
    ) -> Tensor:
        """Run the model with `run_block` in place of its blocks.

        Args:
            ids, positions: int64 [N, T].
            mask: int64 [N, T], 0 on padding; only the models' own checks read it.
            run_block: (block index, states, the block's keyword arguments) -> states.

        Returns:
            States [N, T, D] that the unembedding reads.
        """
        with self.session(), self._seam(run_block, positions):
            output = self._inner(
                input_ids=ids,
                position_ids=positions,
                attention_mask=mask,
                use_cache=False,
            )
            states: Tensor = output.last_hidden_state
            head = self.architecture.head
            return states if head is None else self.model.get_submodule(head)(states)

    @contextmanager
    def session(self) -> Iterator[None]:
        """Let no other thread trace; evaluation mode, no autocast, compiled modules aside.

        Restores the mode of every module. May be nested.
        """
        with _ONE_AT_A_TIME, ExitStack() as stack:
            for name, value in _OUTPUTS.items():
                stack.enter_context(with_attribute(self.model.config, name, value))
            if torch.amp.is_autocast_available(self.device.type):
                stack.enter_context(torch.autocast(self.device.type, enabled=False))
            if "torch._dynamo" in sys.modules:  # else nothing is compiled
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            training = [module for module in self.model.modules() if module.training]
            for module in training:
                module.training = False
            try:
                yield
            finally:
                for module in training:
                    module.training = True

    def heartbeat(self) -> None:
        """Code that runs the model calls this regularly; see `with_heartbeat`."""
        _heartbeat.get()()

    @contextmanager
    def with_heartbeat(self, beat: Callable[[], None]) -> Iterator[None]:
        """Call `beat` regularly, in this thread, while the context is open."""
        token = _heartbeat.set(beat)
        try:
            yield
        finally:
            _heartbeat.reset(token)

    @contextmanager
    def _seam(self, run_block: RunBlock, positions: Tensor) -> Iterator[None]:
        own, choice = self.blocks[0].own_attention, self.architecture.key_choice
        reads_mask = choice is not None or (own is not None and own.reads_mask)
        extra: dict[str, Tensor] = {}  # keywords of blocks
        also: tuple[Tensor, ...] | None = None  # what blocks return besides states, if in tuples
        if own is not None and own.in_tuples:
            also = ()
        if own is not None and own.key_bias is not None:
            extra[POSITIONS] = positions
        if choice is not None and choice.passed_on is not None:
            extra[choice.passed_on] = no_choice()
            also = (no_choice(),)
        with ExitStack() as stack:
            name = EMPTY_MASK if reads_mask else NAME
            stack.enter_context(with_implementation(self.model.config, name))
            for index, block in enumerate(self.blocks):
                forward = _block_forward(index, block, run_block, extra, also)
                stack.enter_context(with_attribute(block.module, "forward", forward))
                if block.key_choice is not None:
                    stack.enter_context(with_attribute(block.key_choice, "forward", no_choice))
            yield


def _block_forward(
    index: int,
    block: Block,
    run_block: RunBlock,
    extra: dict[str, Tensor],
    also: tuple[Tensor, ...] | None,
) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    shared, token_input = block.architecture.shared_values, block.architecture.token_input

    def forward(hidden_states: Tensor, *others: Any, **call: Any) -> Tensor | tuple[Tensor, ...]:
        # Other positional arguments are caches and masks, which tracing does not use.
        own: Tensor | None = None
        if token_input is not None:
            own = call.pop(token_input.keyword, None) if not others else others[0]
        if shared is not None:
            call[SHARED] = call.pop(shared.keyword)
        states = block.output(run_block(index, hidden_states, call | extra), own)
        return states if also is None else (states, *also)

    return forward
