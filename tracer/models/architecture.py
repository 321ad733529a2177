"""What densitrace has to know of a family of models: where its parts are and how a block is wired.

A declaration names modules; it copies no code. Rotary embeddings, query/key norms, biases and
masks stay the business of the model's own modules. docs/declare-architecture.md shows how to
write one.
"""

from collections.abc import Callable
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
    """The tokens that a table of learned positions is for."""
    return int(config.max_position_embeddings)


@dataclass(frozen=True)
class BlockNorms:
    """Names of a block's norms; None where the wiring has none at that place."""

    before_attention: str | None = None
    after_attention: str | None = None
    before_mlp: str | None = None
    after_mlp: str | None = None


@dataclass(frozen=True)
class OwnAttention:
    """How a family computes attention whose modules do not ask transformers' `AttentionInterface`.

    They are older than it, and so their blocks may give a tuple, the states first. Where the module
    has no method of its own for it, it calls torch's `scaled_dot_product_attention` if its config
    says sdpa, or `project` is what it does before.
    """

    # Of the attention: (query, key, value, ...) -> (output [N, H, T, d_v], weights).
    method: str | None = None
    # (attention, its input) -> query, key and value [N, H, T, d]; the output projection follows.
    project: Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None
    # What the interface would be told besides: `scaling`, `sliding_window`, ...
    told: Callable[[Any], dict[str, Any]] = lambda attention: {}
    # (attention, positions [N, T], the model's dtype) -> [N, H, T]: what is added to the scaled
    # scores of each head by the position of the key (ALiBi), or None.
    key_bias: Callable[[Any, Tensor, torch.dtype], Tensor | None] | None = None
    in_tuples: bool = True  # what the blocks give
    reads_mask: bool = False  # the model computes with its mask: there has to be one


@dataclass(frozen=True)
class Architecture:
    """One family of decoders.

    The wiring (sequential, post-norm, sandwich) follows from which norms there are; `parallel`
    says whether attention and MLP both read the block's input.
    """

    name: str
    model_types: tuple[str, ...]  # `config.model_type` of the models it covers
    blocks: str
    final_norm: str
    attention: str  # within a block
    output_projection: str  # within the attention
    mlp: str | Callable[[Any, Tensor], Tensor]  # within a block, or of a block and its states
    values: Callable[[nn.Module, Tensor], Tensor]  # (attention, its input) -> [N, T, G * d_v]
    norms: BlockNorms | Callable[[Any], BlockNorms]  # of all models, or by the config
    norm_kind: NormKind = "rms"
    norm_eps: float | None = None  # where the norms' modules do not say
    own_attention: OwnAttention | None = None
    longest: Callable[[Any], int | None] = _nothing  # tokens that a sequence may have
    parallel: Callable[[Any], bool] = _never
    branch_scale: Callable[[Any], float | None] = _nothing  # factor on what each branch adds
    block_scale: str | None = None  # within a block: factor on all that leaves it
    logit_scale: Callable[[Any], float | None] = _nothing
    logit_softcap: Callable[[Any], float | None] = _nothing
    unsupported: Callable[[Any], str | None] = _nothing  # why a config is refused


@dataclass(frozen=True)
class LinearNorm:
    """A norm as a linear map at given statistics: e -> gamma * (e [- mean e]) / scale.

    The map without its scale is folded into projections and edge vectors; the scale is one number
    a token. A LayerNorm's beta belongs to the node and enters nowhere (METHOD §1).
    """

    gamma: Tensor  # float32 [D]; [1] of a norm without weights
    centred: bool
    eps: float

    @classmethod
    def of(cls, module: nn.Module, architecture: Architecture) -> "LinearNorm":
        """Read off a norm module of a family."""
        kind, eps = architecture.norm_kind, architecture.norm_eps
        has_weights = any(True for _ in module.parameters())
        weight = module.get_parameter("weight").detach().float() if has_weights else torch.ones(1)
        if eps is None:
            names = ("eps", "variance_epsilon")
            eps = next(float(getattr(module, name)) for name in names if hasattr(module, name))
        gamma = weight + 1 if kind.endswith("plus_one") else weight
        return cls(gamma, kind.startswith("layer"), eps)

    def fold(self, vectors: Tensor) -> Tensor:
        """Edge vectors [..., D] through the map, without the scale."""
        vectors = vectors.float()
        if self.centred:
            vectors = vectors - vectors.mean(-1, keepdim=True)
        return vectors * self.gamma.to(vectors.device)

    def inverse_scale(self, states: Tensor) -> Tensor:
        """1 / rms (or 1 / sd) of states [..., D], with the norm's eps: float32 [...]."""
        states = states.float()
        if self.centred:
            states = states - states.mean(-1, keepdim=True)
        return torch.rsqrt(states.square().mean(-1) + self.eps)
