"""The declaration of a model family: where its modules are and how a block is wired.

A declaration names modules and copies no code: rotary embeddings, query/key norms, biases and masks
are left to the model's own modules. docs/declare-architecture.md shows how to write one.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

NormKind = Literal["rms", "rms_plus_one", "layer", "layer_plus_one"]


def _never(config: Any) -> bool:
    return False


def _nothing(config: Any) -> None:
    return None


def learned_positions(config: Any) -> int:
    """The size of the table of learned positions, in tokens."""
    return int(config.max_position_embeddings)


@dataclass(frozen=True)
class BlockNorms:
    """Names of a block's norms; None where the wiring has none."""

    before_attention: str | None = None
    before_projection: str | None = None  # of the attention, between its heads and W_O
    after_attention: str | None = None
    before_mlp: str | None = None
    after_mlp: str | None = None
    # Of the residual stream itself, once the branch has been added to it (post-LN).
    stream_after_attention: str | None = None
    stream_after_mlp: str | None = None


@dataclass(frozen=True)
class OwnAttention:
    """How to intercept attention that does not go through transformers' `AttentionInterface`.

    Such modules predate the interface; their blocks may also return tuples, states first. If
    neither `method` nor `project` is given, the module is expected to call torch's
    `scaled_dot_product_attention` when its config says sdpa.
    """

    # Name of the attention's method (query, key, value, ...) -> (output [N, H, T, d_v], weights).
    # A module without it is of a version of transformers that calls the interface.
    method: str | None = None
    # (attention, its input) -> query, key and value [N, H, T, d]; replaces the module's forward up
    # to the output projection.
    project: Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None
    # attention -> what the interface would pass besides: `scaling`, `sliding_window`, ...
    arguments: Callable[[Any], dict[str, Any]] = lambda attention: {}
    # (attention, positions [N, T], the model's dtype) -> [N, H, T]: biases on the scaled scores of
    # each head by the key's position (ALiBi), or None.
    key_bias: Callable[[Any, Tensor, torch.dtype], Tensor | None] | None = None
    in_tuples: bool = True  # whether blocks return tuples
    reads_mask: bool = False  # whether the model computes with its mask and so must get one

    def serves(self, attention: nn.Module) -> bool:
        """Whether this is how to intercept the attention of a module."""
        return self.method is None or hasattr(attention, self.method)


@dataclass(frozen=True)
class KeyChoice:
    """Attention to keys that a module chooses: to all of them in texts that are short enough.

    The module is not run, and `Architecture.longest` says how long a text may be.
    """

    module: str  # within the attention; blocks that share a choice may lack it
    passed_on: str | None = None  # keyword of the choice, if blocks pass it on to the next


@dataclass(frozen=True)
class SharedValues:
    """Attention that reads keys and values of an earlier block, from a mapping passed to all."""

    blocks: Callable[[Any], Sequence[int]]  # config -> for each block, whose values it reads
    keyword: str  # of the mapping, in a block's call
    entry: Callable[[Any], Hashable]  # attention -> the key of its keys and values


@dataclass(frozen=True)
class TokenInput:
    """An input of a block for each token, of which it adds something to its output.

    It is always added: it belongs to the node, as a norm's bias does, and is no edge.
    """

    keyword: str  # of the input, or of a block's second argument
    # (block, its last nodes' states [N, T, D], the input [N, T, d]) -> what is added [N, T, D]
    added: Callable[[Any, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Architecture:
    """One family of decoders.

    Which norms are named determines the wiring (sequential, post-norm, sandwich); `parallel` says
    whether attention and MLP both read the block's input.
    """

    name: str
    model_types: tuple[str, ...]  # `config.model_type` of the models it covers
    blocks: str
    final_norm: str | Callable[[Any], str | None] | None  # fixed, or config -> path; None without
    attention: str  # within a block
    output_projection: str  # within the attention
    mlp: str | Callable[[Any, Tensor], Tensor]  # within a block, or (block, states) -> branch
    values: Callable[[nn.Module, Tensor], Tensor]  # (attention, its input) -> [N, T, G * d_v]
    norms: BlockNorms | Callable[[Any], BlockNorms]  # fixed, or config -> norms
    norm_kind: NormKind = "rms"
    norm_eps: float | None = None  # if the norms' modules do not hold it
    own_attention: OwnAttention | None = None
    key_choice: KeyChoice | None = None
    shared_values: SharedValues | None = None
    token_input: TokenInput | None = None
    head: str | None = None  # from the model: acts on each token between final norm and unembedding
    skipped: str | None = None  # within the blocks that text alone does not run
    # Functions below take the model's config.
    longest: Callable[[Any], int | None] = _nothing  # most tokens of a sequence
    parallel: Callable[[Any], bool] = _never
    branch_scale: Callable[[Any], float | None] = _nothing  # factor on each branch
    block_scale: str | None = None  # within a block: factor on its output
    logit_scale: Callable[[Any], float | None] = _nothing
    logit_softcap: Callable[[Any], float | None] = _nothing
    unsupported: Callable[[Any], str | None] = _nothing  # why a config is refused, or None


@dataclass(frozen=True)
class LinearNorm:
    """A norm as a linear map at fixed statistics: e -> gamma * (e [- mean e]) / scale.

    The map without its scale is folded into projections and edge vectors; the scale is one number
    per token. A LayerNorm's beta belongs to the node and is not used (METHOD §1).
    """

    gamma: Tensor | None  # float32 [D]; None for a norm without weights
    centred: bool
    eps: float

    @classmethod
    def of(cls, module: nn.Module, architecture: Architecture) -> "LinearNorm":
        """Build the map of a norm module of a family."""
        kind, eps = architecture.norm_kind, architecture.norm_eps
        own: Tensor | None = getattr(module, "weight", None)  # perhaps computed from parameters
        gamma = None if own is None else own.detach().float()
        if gamma is not None and kind.endswith("plus_one"):
            gamma = gamma + 1
        if eps is None:
            names = ("eps", "variance_epsilon")
            eps = next(float(getattr(module, name)) for name in names if hasattr(module, name))
        return cls(gamma, kind.startswith("layer"), eps)

    def fold(self, vectors: Tensor) -> Tensor:
        """Apply the map without its scale to edge vectors [..., D]."""
        vectors = vectors.float()
        if self.centred:
            vectors = vectors - vectors.mean(-1, keepdim=True)
        return vectors if self.gamma is None else vectors * self.gamma.to(vectors.device)

    def fold_before(self, matrix: Tensor) -> Tensor:
        """The product of a matrix [..., D] and the map without its scale."""
        matrix = matrix.float()
        if self.gamma is not None:
            matrix = matrix * self.gamma.to(matrix.device)
        return matrix - matrix.mean(-1, keepdim=True) if self.centred else matrix

    def inverse_scale(self, states: Tensor) -> Tensor:
        """1 / rms (or 1 / sd) of states [..., D], with the norm's eps: float32 [...]."""
        states = states.float()
        if self.centred:
            states = states - states.mean(-1, keepdim=True)
        return torch.rsqrt(states.square().mean(-1) + self.eps)
