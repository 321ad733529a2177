"""A block seen through its declaration: its branches, and the matrices that weigh its edges."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from .architecture import Architecture, BlockNorms, LinearNorm, OwnAttention
from .calls import POSITIONS, SHARED, KeysAndValues
from .interception import (
    HOOK,
    Attend,
    RedirectSdpa,
    instead_of_method,
    with_attribute,
    with_implementation,
)
from .linear import matrix

_TOKENS_AT_ONCE = 8192  # to which blocks add what their own input gives: bounds memory


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
        # Where the block's keys and values are in `SHARED`, if it reads or writes them there.
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
        with with_attribute(self.attention, HOOK, attend):
            if self.own_attention is None:
                branch: Tensor = self.attention(normed, **self._keywords(call))[0]
            else:
                branch = self._own_branch(self.own_attention, normed, call)
        return self._added(branch, self._after_attention)

    def _own_branch(self, own: OwnAttention, normed: Tensor, call: dict[str, Any]) -> Tensor:
        """The output of an attention module that does not use the `AttentionInterface`."""
        module, arguments = self.attention, own.arguments(self.attention)
        if own.key_bias is not None:
            arguments["key_bias"] = own.key_bias(module, call[POSITIONS], self.dtype)
        method = partial(instead_of_method, module, arguments)
        if own.project is not None:
            return self.project(method(*own.project(module, normed))[0])
        with ExitStack() as stack:
            if own.method is not None:
                stack.enter_context(with_attribute(module, own.method, method))
            else:
                stack.enter_context(with_implementation(module.config, "sdpa"))
                stack.enter_context(RedirectSdpa(method))
            branch: Tensor = module(normed, **call)[0]
        return branch

    def _keywords(self, call: dict[str, Any]) -> dict[str, Any]:
        """A call as the attention module expects it."""
        shared = self.architecture.shared_values
        return call if shared is None else {**call, shared.keyword: call[SHARED]}

    def values(self, states: Tensor, call: dict[str, Any]) -> Tensor:
        """Project states [N, T, D] to values [N, G, T, d_v], or read those of another block."""
        if self.reads is not None:
            shared: KeysAndValues = call[SHARED][self.reads]
            return shared[1]
        normed = states if self._before_attention is None else self._before_attention(states)
        values: Tensor = self._values(self.attention, normed)
        by_head: Tensor = values.unflatten(-1, (-1, self.w_o.shape[-1]))
        return by_head.transpose(1, 2)

    def share_values(self, values: Tensor, call: dict[str, Any]) -> None:
        """Leave values, without keys, to the blocks that read this one's."""
        if self.writes is not None:
            call[SHARED][self.writes] = None, values

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


def _optional(module: nn.Module, name: str | None) -> nn.Module | None:
    return None if name is None else module.get_submodule(name)
