"""Description of attention edges: the attention pattern, and how each edge is weighted.

A `Pattern` suffices to recompute any tile of attention weights alpha[h, t, s]; an edge weight
defines the importance of the edge (h, s, t), given alpha. Neither holds anything of size T x T
(except `GivenWeight`, for small T). METHOD §2 and §3 give the definitions.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pattern:
    """Queries and keys of one block, with every variant of attention as a field.

    Target t attends to sources s <= t of its own segment, with t - s < window if there is a window.
    `lse`, the log-sum-exp of each row of scores (sink included), comes from `attention_stats`.
    """

    q: Tensor  # [B, H, T, d_k]
    k: Tensor  # [B, G, T, d_k]
    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None  # [H] logits that join the softmax but contribute no value
    segments: Tensor | None = None  # int [B, T]; None: one segment a row
    lse: Tensor | None = None  # float32 [B, H, T]

    def __post_init__(self) -> None:
        """Refuse settings that no attention has.

        Raises:
            InputError: `scale` is no number, or `window` or `softcap` is not above 0.
        """
        for name, value, kinds in (
            ("scale", self.scale, (int, float)),
            ("window", self.window, (int, type(None))),
            ("softcap", self.softcap, (int, float, type(None))),
        ):
            fits = isinstance(value, kinds) and (name == "scale" or value is None or value > 0)
            if not fits:
                from ..errors import InputError  # late: see `dispatch`

                wanted = "a number" if name == "scale" else "a number above 0, or None"
                raise InputError(f"{name}={value!r}; wanted {wanted}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, H, T)."""
        batch, heads, length = self.q.shape[:3]
        return batch, heads, length

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.q.device


@dataclass(frozen=True)
class NormWeight:
    """alpha[h, t, s] * source[h, s] * target[t]: METHOD §2, 'Norms separate'."""

    source: Tensor  # float32 [B, H, T] source norms nu
    target: Tensor | None = None  # float32 [B, T] 1 / rho_t; None: 1


@dataclass(frozen=True)
class CosineWeight:
    """(1 + cos(e, n)) / 2: METHOD §2; 0.5 for a zero vector.

    The cosine is <direction[h, t], v[s]> * source[h, s].
    """

    direction: Tensor  # float32 [B, H, T, d_v] W_O^T n_t / |n_t|
    source: Tensor  # float32 [B, H, T] 1 / |W_O v_s|, 0 where that is 0
    v: Tensor  # [B, G, T, d_v]


@dataclass(frozen=True)
class ProximityWeight:
    """max(0, |n_t|_1 - |n_t - alpha u_s target[t]|_1) with u = W_O v: METHOD §2, 'Proximity'."""

    node: Tensor  # float32 [B, T, D]
    v: Tensor  # [B, G, T, d_v]
    w_o: Tensor  # [H, D, d_v], of any dtype: 16-bit factors need no conversion for exact products
    target: Tensor | None = None  # float32 [B, T] 1 / rho_t; None: 1

    @cached_property
    def ranked(self) -> tuple[Tensor, Tensor]:
        """Entries of each node in ascending magnitude, float32 [B, T, D], and their dimensions,
        int32 [B, T, D]. Cached for the ops that stop at a bound."""
        node = self.node.float()
        order = node.abs().sort(dim=-1, stable=True).indices
        return node.gather(-1, order), order.int()


@dataclass(frozen=True)
class RandomWeight:
    """Uniform in [0, 1), a hash of (seed, stream, head, target, source): the control of METHOD §2.

    It depends on positions within the document alone, so no batch or tiling changes it.
    """

    seed: int
    stream: int  # separates blocks and purposes
    positions: Tensor  # int [B, T]


@dataclass(frozen=True)
class GivenWeight:
    """Weights as a full tensor: for small T, and for rules that order edges globally."""

    weight: Tensor  # float32 [B, H, T target, T source]


EdgeWeight = NormWeight | CosineWeight | ProximityWeight | RandomWeight | GivenWeight


@dataclass(frozen=True)
class AttentionEdges:
    """The attention edges of one block: along `pattern`, weighed by `weight`."""

    pattern: Pattern
    weight: EdgeWeight

    @cached_property
    def scratch(self) -> dict[Hashable, Tensor]:
        """Results that one op keeps for a later one on the same edges, which removes them.

        The op that writes weights here must bound their number: in full they are B x H x T x T.
        """
        return {}
