"""A transformers decoder seen through its declaration, and the hooks by which tracing enters it.

The model's own top-level forward runs: it embeds tokens and prepares rotary tables. While tracing,
each block instance's `forward` is replaced by ours, and attention calls ours through transformers'
`AttentionInterface`; a context manager restores everything. No two threads trace at once.
"""

import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ...errors import ModelError
from ...kernels import Pattern
from ..graph import Geometry
from .alibi import biased
from .architecture import Architecture, BlockNorms, LinearNorm, OwnAttention, SharedValues
from .linear import domain, evaluated, is_plain, matrix
from .offload import OffloadedBlocks
from .state import addresses, contents, settings, tensors_of

Attend = Callable[[Pattern, Tensor], Tensor]
RunBlock = Callable[[int, Tensor, dict[str, Any]], Tensor]
KeysAndValues = tuple[Tensor | None, Tensor]

_NAME = "densitrace"  # of our attention function in transformers' registries
_EMPTY_MASK = "densitrace_empty_mask"  # the same, for models that compute with their mask
_HOOK = "densitrace_attend"  # attribute of an attention module while it is traced
# Keywords of a block's call: for ALiBi, and keys and values [N, G, T, d] that blocks share.
_POSITIONS = "densitrace_positions"
_SHARED = "densitrace_shared"

# What a config may say that a forward pass returns, while a model is traced.
_OUTPUTS = {"return_dict": True, "output_hidden_states": False, "_output_attentions": False}

# While a model is traced its modules are patched: no two threads may trace at once. One lock for
# all models, as models may share modules or a config, and `set_stance` is global.
_ONE_AT_A_TIME = RLock()

_TOKENS_AT_ONCE = 8192  # to which blocks add what their own input gives: bounds memory

_heartbeat: ContextVar[Callable[[], None]] = ContextVar("heartbeat", default=lambda: None)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    key_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Our attention function for transformers: passes all variants on as one `Pattern`."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if key_bias is not None:
        query, key = biased(query, key, key_bias, scale)
    pattern = Pattern(
        query,
        key,
        scale,
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    output: Tensor = getattr(module, _HOOK)(pattern, value)
    return output.transpose(1, 2).to(value.dtype), None


def _own_attention(
    module: nn.Module, arguments: dict[str, Any], query: Tensor, key: Tensor, value: Tensor, *_: Any
) -> tuple[Tensor, None]:
    """Replaces a method of an attention module that computes attention itself."""
    return _attention(module, query, key, value, **arguments)[0].transpose(1, 2), None


class _RedirectSdpa(TorchFunctionMode):
    """Redirect `scaled_dot_product_attention` to such a method while the context is open."""

    def __init__(self, method: Callable[..., tuple[Tensor, None]]) -> None:
        super().__init__()
        self.method = method

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is scaled_dot_product_attention:
            return self.method(*args[:3])[0]
        return func(*args, **(kwargs or {}))


def _no_mask(*_: Any, **__: Any) -> None:
    """Build no T x T mask: the engine handles segments and padding itself."""


def _empty_mask(*_: Any, **__: Any) -> Tensor:
    return torch.empty(1, 1, 0, 0)


def _no_choice(*_: Any, **__: Any) -> Tensor:
    """In place of a module that chooses keys: its result is not used."""
    return torch.empty(0)


for _name, _mask in ((_NAME, _no_mask), (_EMPTY_MASK, _empty_mask)):
    AttentionInterface.register(_name, _attention)
    AttentionMaskInterface.register(_name, _mask)


class Block:
    """One block: its branches as functions, and the matrices that weigh its edges."""

    def __init__(
        self,
        module: nn.Module,
        architecture: Architecture,
        norms: BlockNorms,
        heads: int,
        scale: float,
    ) -> None:
        self.module = module
        self.attention = module.get_submodule(architecture.attention)
        mlp = architecture.mlp
        self.mlp_module: Callable[[Tensor], Any] = (
            module.get_submodule(mlp) if isinstance(mlp, str) else partial(mlp, module)
        )
        self.projection = self.attention.get_submodule(architecture.output_projection)
        self._values = architecture.values
        own = architecture.own_attention
        self.own_attention = own if own is not None and own.serves(self.attention) else None
        choice = architecture.key_choice
        self.key_choice: nn.Module | None = (
            None if choice is None else getattr(self.attention, choice.module)
        )
        # Where the block's keys and values are in `_SHARED`, if it reads or writes them there.
        self.reads: Hashable = None
        self.writes: Hashable = None
        self.heads = heads
        self._scale = scale
        self._before_attention = _optional(module, norms.before_attention)
        self._before_projection = _optional(module, norms.before_projection)
        self._after_attention = _optional(module, norms.after_attention)
        self._before_mlp = _optional(module, norms.before_mlp)
        self._after_mlp = _optional(module, norms.after_mlp)
        self._stream_after_attention = _optional(module, norms.stream_after_attention)
        self._stream_after_mlp = _optional(module, norms.stream_after_mlp)
        self.architecture = architecture
        self._folded: dict[int, tuple[LinearNorm, Tensor]] = {}
        self._roots: dict[tuple[int, ...], tuple[tuple[LinearNorm, ...], Tensor]] = {}

    @property
    def device(self) -> torch.device:
        """The device of the block's weights; a model may be spread over several."""
        return self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the block computes in."""
        return self._weight.dtype

    @property
    def _weight(self) -> Tensor:
        """A weight that is not quantised: a norm's, or the projection's if norms have none."""
        norms = (self._before_attention, self._after_attention, self._stream_after_attention)
        modules = (*norms, self.projection)
        weights: Iterator[Tensor | None] = (getattr(m, "weight", None) for m in modules)
        return next(w for w in weights if w is not None and w.is_floating_point())

    def attend(self, states: Tensor, call: dict[str, Any], attend: Attend) -> Tensor:
        """Compute the attention branch [N, T, D] of states [N, T, D].

        `attend` is called with pattern and values in place of the softmax attention.
        """
        normed = states if self._before_attention is None else self._before_attention(states)
        with _attribute(self.attention, _HOOK, attend):
            if self.own_attention is None:
                branch: Tensor = self.attention(normed, **self._keywords(call))[0]
            else:
                branch = self._own_branch(self.own_attention, normed, call)
        return self._added(branch, self._after_attention)

    def _own_branch(self, own: OwnAttention, normed: Tensor, call: dict[str, Any]) -> Tensor:
        """The output of an attention module that does not use the `AttentionInterface`."""
        module, arguments = self.attention, own.arguments(self.attention)
        if own.key_bias is not None:
            arguments["key_bias"] = own.key_bias(module, call[_POSITIONS], self.dtype)
        method = partial(_own_attention, module, arguments)
        if own.project is not None:
            return self.project(method(*own.project(module, normed))[0])
        with ExitStack() as stack:
            if own.method is not None:
                stack.enter_context(_attribute(module, own.method, method))
            else:
                stack.enter_context(_implementation(module.config, "sdpa"))
                stack.enter_context(_RedirectSdpa(method))
            branch: Tensor = module(normed, **call)[0]
        return branch

    def _keywords(self, call: dict[str, Any]) -> dict[str, Any]:
        """A call as the attention module expects it."""
        shared = self.architecture.shared_values
        return call if shared is None else {**call, shared.keyword: call[_SHARED]}

    def values(self, states: Tensor, call: dict[str, Any]) -> Tensor:
        """Project states [N, T, D] to values [N, G, T, d_v], or read those of another block."""
        if self.reads is not None:
            shared: KeysAndValues = call[_SHARED][self.reads]
            return shared[1]
        normed = states if self._before_attention is None else self._before_attention(states)
        values: Tensor = self._values(self.attention, normed)
        by_head: Tensor = values.unflatten(-1, (-1, self.w_o.shape[-1]))
        return by_head.transpose(1, 2)

    def share_values(self, values: Tensor, call: dict[str, Any]) -> None:
        """Leave values, without keys, to the blocks that read this one's."""
        if self.writes is not None:
            call[_SHARED][self.writes] = None, values

    def attention_branch(self, output: Tensor) -> Tensor:
        """Compute the attention branch [N, T, D] from attention outputs [N, H, T, d_v]."""
        return self._added(self.project(output), self._after_attention)

    def mlp(self, rows: Tensor) -> Tensor:
        """Compute the MLP branch [n, D] of rows [n, D], norms included.

        Norms and MLPs act on each row separately, so rows of different sequences and lanes may be
        passed together; the module sees them as one sequence.
        """
        normed = rows if self._before_mlp is None else self._before_mlp(rows)
        branch: Tensor | tuple[Tensor, ...] = self.mlp_module(normed[None])
        if isinstance(branch, tuple):  # router scores come second
            branch = branch[0]
        return self._added(branch[0], self._after_mlp)

    def stream_after_attention(self, states: Tensor) -> Tensor:
        """The residual stream after attention, from its sum with the attention branch."""
        norm = self._stream_after_attention
        return states if norm is None else norm(states)

    def stream_after_mlp(self, states: Tensor) -> Tensor:
        """The residual stream after the MLP, from its sum with the MLP branch."""
        norm = self._stream_after_mlp
        return states if norm is None else norm(states)

    def output(self, states: Tensor, own: Tensor | None) -> Tensor:
        """The block's output from its last nodes' states [N, T, D], in place.

        `own` is its `TokenInput` [N, T, d], if it has one.
        """
        architecture = self.architecture
        if architecture.token_input is not None and own is not None:
            rows = max(1, _TOKENS_AT_ONCE // states.shape[1])
            for some, inputs in zip(states.split(rows), own.split(rows), strict=True):
                some += architecture.token_input.added(self.module, some, inputs.to(some.device))
        name = architecture.block_scale
        return states if name is None else states.mul_(getattr(self.module, name))

    def _added(self, branch: Tensor, norm: nn.Module | None) -> Tensor:
        """Apply the norm and scale after a branch: what it adds to the residual stream."""
        added: Tensor = branch if norm is None else norm(branch)
        return added if self._scale == 1 else added * self._scale

    def project(self, output: Tensor) -> Tensor:
        """The attention output projection, bias and a norm before it included.

        [B, H, T, d_v] -> [B, T, D].
        """
        merged = output.transpose(1, 2).flatten(2).to(self.dtype)
        if self._before_projection is not None:
            merged = self._before_projection(merged)
        projected: Tensor = self.projection(merged)
        return projected

    def inverse_scale(self, output: Tensor) -> Tensor | None:
        """1 / rho_t of the norms that attention edges pass: float32 [B, T]; None without any.

        `output` is the attention output [B, H, T, d_v]. Norms of the residual stream are not among
        them: their scale is common to all edges of a node and cancels in every importance.
        """
        scale = None
        if self.projection_norm is not None:
            scale = self.projection_norm.inverse_scale(output.transpose(1, 2).flatten(2))
        if self.attention_norm is not None:
            after = self.attention_norm.inverse_scale(self.project(output))
            scale = after if scale is None else scale * after
        return scale

    @cached_property
    def projection_norm(self) -> LinearNorm | None:
        """The linearised norm before the output projection, if there is one."""
        return self._linearised(self._before_projection)

    @cached_property
    def attention_norm(self) -> LinearNorm | None:
        """The linearised norm after attention, if there is one."""
        return self._linearised(self._after_attention)

    @cached_property
    def stream_norms(self) -> tuple[tuple[LinearNorm, ...], tuple[LinearNorm, ...]]:
        """The linearised norms of the residual stream: after attention, and after the MLP."""
        norms = map(self._linearised, (self._stream_after_attention, self._stream_after_mlp))
        after_attention, after_mlp = (() if norm is None else (norm,) for norm in norms)
        return after_attention, after_mlp

    def _linearised(self, norm: nn.Module | None) -> LinearNorm | None:
        return None if norm is None else LinearNorm.of(norm, self.architecture)

    @cached_property
    def w_o(self) -> Tensor:
        """[H, D, d_v]: the output projection by head, a norm before it folded in, times the factor
        on the branch.

        float32 on a CPU, whose ops require it. On a GPU in the model's dtype, in which a single
        product is exact, or in float32 if there is a norm or a factor.
        """
        weight = matrix(self.projection, self.dtype)
        if self.projection_norm is not None:
            weight = self.projection_norm.fold_before(weight)
        if self._scale != 1:
            weight = weight.float() * self._scale
        by_head = weight.view(len(weight), self.heads, -1).transpose(0, 1)
        if weight.device.type == "cpu":
            return by_head.float().contiguous()
        return by_head if by_head.stride(-1) == 1 else by_head.contiguous()

    def folded_w_o(self, norms: tuple[LinearNorm, ...]) -> Tensor:
        """[H, D, d_v]: the output projection with linearised norms folded in, cached.

        float32 if there are norms, else as `w_o`.
        """
        folded = self.w_o
        for norm in norms:
            if id(norm) not in self._folded:
                through = norm.fold(folded.transpose(1, 2)).transpose(1, 2).contiguous()
                self._folded[id(norm)] = (norm, through)
            folded = self._folded[id(norm)][1]
        return folded

    def folded_root(self, norms: tuple[LinearNorm, ...]) -> Tensor:
        """float32 [H, d_v, d_v]: R with |R v|_2 = |W v|_2 for W of `folded_w_o`, cached.

        A square root of the Gram matrix, R^T R = W^T W: norms cost d_v rows instead of D.
        """
        key = tuple(map(id, norms))
        if key not in self._roots:
            wide = self.folded_w_o(norms).double()
            sizes, axes = torch.linalg.eigh(wide.mT @ wide)
            root = sizes.clamp(min=0).sqrt()[..., None] * axes.mT
            self._roots[key] = (norms, root.float())
        return self._roots[key][1]

    @property
    def derived_from(self) -> list[nn.Module]:
        """The modules whose weights the block's matrices are derived from."""
        modules = (
            self._before_projection, self.projection, self._after_attention,
            self._stream_after_attention, self._stream_after_mlp,
        )  # fmt: skip
        return [module for module in modules if module is not None]

    def forget_weights(self, *_: Any) -> None:
        """Drop everything derived from weights; also a forward hook."""
        self._folded.clear()
        self._roots.clear()
        for name in ("projection_norm", "attention_norm", "stream_norms", "w_o"):
            self.__dict__.pop(name, None)


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
                stack.enter_context(_attribute(self.model.config, name, value))
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
            extra[_POSITIONS] = positions
        if choice is not None and choice.passed_on is not None:
            extra[choice.passed_on] = _no_choice()
            also = (_no_choice(),)
        with ExitStack() as stack:
            name = _EMPTY_MASK if reads_mask else _NAME
            stack.enter_context(_implementation(self.model.config, name))
            for index, block in enumerate(self.blocks):
                forward = _block_forward(index, block, run_block, extra, also)
                stack.enter_context(_attribute(block.module, "forward", forward))
                if block.key_choice is not None:
                    stack.enter_context(_attribute(block.key_choice, "forward", _no_choice))
            yield


@contextmanager
def _implementation(config: Any, name: str) -> Iterator[None]:
    """Set the attention implementation of a config while the context is open."""
    before, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute on an instance while the context is open, then restore or remove it."""
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


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
            call[_SHARED] = call.pop(shared.keyword)
        states = block.output(run_block(index, hidden_states, call | extra), own)
        return states if also is None else (states, *also)

    return forward


def call_on(call: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move a block's keyword arguments to its device; what blocks share, in place."""

    def moved(value: Any) -> Any:
        return _map_tensors(value, lambda tensor: tensor.to(device))

    shared = call.get(_SHARED, {})
    for entry, tensors in shared.items():
        shared[entry] = moved(tensors)
    return {name: moved(value) for name, value in call.items()}


def part_of_call(
    call: dict[str, Any], states: Tensor, rows: slice | Tensor, columns: int | None = None
) -> dict[str, Any]:
    """Slice a block's keyword arguments for some rows and columns of its states [N, T, D].

    Rotary tables and position ids start with dimensions N, T or 1, T; others are passed unchanged.
    The keys and values that blocks share are in a new mapping; see `gather_shared`.
    """
    front = states.shape[:2]

    def narrow(tensor: Tensor) -> Tensor:
        if tensor.shape[:2] == front:
            tensor = tensor[rows]
        elif tensor.shape[:2] != (1, front[1]):
            return tensor
        return tensor[:, :columns]

    part = {name: _map_tensors(value, narrow) for name, value in call.items()}
    if _SHARED in call:
        part[_SHARED] = {
            entry: tuple(tensor[rows][:, :, :columns] for tensor in tensors)
            for entry, tensors in call[_SHARED].items()
        }
    return part


def gather_shared(
    block: Block,
    call: dict[str, Any],
    part: dict[str, Any],
    states: Tensor,
    rows: slice | Tensor,
    columns: int | None = None,
) -> None:
    """Copy the keys and values that a block shares from `part_of_call` into the whole call.

    Frozen lanes have no keys, and none of their blocks reads any.
    """
    if block.writes is None:
        return
    parts: KeysAndValues = part[_SHARED][block.writes]
    if block.writes not in call[_SHARED]:
        lanes, length = states.shape[:2]
        call[_SHARED][block.writes] = tuple(
            tensor.new_empty(lanes, tensor.shape[1], length, tensor.shape[3])
            for tensor in parts
            if tensor is not None
        )
    for whole, tensor in zip(call[_SHARED][block.writes], parts, strict=True):
        if tensor is not None:
            whole[rows, :, :columns] = tensor


def _map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to a tensor, or to all tensors in nested tuples.

    A module function, not a recursive closure: a closure that refers to itself is a reference
    cycle, and would keep the captured states alive until the garbage collector runs.
    """
    if isinstance(value, tuple):
        return tuple(_map_tensors(part, change) for part in value)
    return change(value) if isinstance(value, Tensor) else value


def _optional(module: nn.Module, name: str | None) -> nn.Module | None:
    return None if name is None else module.get_submodule(name)
