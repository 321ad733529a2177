"""Results of the ops that return more than one tensor."""

from dataclasses import dataclass

import torch
from torch import Tensor

NUCLEUS_PERCENT = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)  # values of OutputErrors.nucleus


@dataclass(frozen=True)
class AttentionStats:
    """Result of one sweep over the attention of a block."""

    output: Tensor  # float32 [B, H, T, d_v]
    lse: Tensor  # float32 [B, H, T] log-sum-exp of each row's scores
    mass: Tensor  # float32 [B, T] sum over h, s of alpha * source norm; 0 without source norms


@dataclass(frozen=True)
class EdgeLevels:
    """How many cuts the attention edges of a block clear."""

    levels: Tensor  # uint8 [B, T target, T source] most cuts cleared by any head's edge
    degrees: Tensor  # int32 [K, B, T] kept attention edges into each target
    # Under proximity the share of edges summed exactly (bounds decide the others); a tensor on
    # GPUs, so that the host does not wait. None for other weights and from `reference`.
    evaluated: float | Tensor | None = None


@dataclass(frozen=True)
class EdgeTable:
    """Kept attention edges of a block, ordered by (sequence, head, target, source).

    Columns have the dtypes of the store, so that only 19 bytes an edge leave the device.
    """

    sequence: Tensor  # int32 [n]
    head: Tensor  # int16 [n]
    source: Tensor  # int32 [n]
    target: Tensor  # int32 [n]
    weight: Tensor  # float32 [n], unnormalised
    stratum: Tensor  # uint8 [n], the sparsest stratum that keeps the edge

    @classmethod
    def of(
        cls,
        sequence: Tensor,
        head: Tensor,
        source: Tensor,
        target: Tensor,
        weight: Tensor,
        stratum: Tensor,
    ) -> "EdgeTable":
        """A table from columns of any dtype."""
        return cls(
            sequence.int(),
            head.short(),
            source.int(),
            target.int(),
            weight.detach().float(),
            stratum.byte(),
        )


@dataclass(frozen=True)
class OutputErrors:
    """How the lanes' next-token distributions differ from the clean one: METHOD §6."""

    tv: Tensor  # float32 [K, M] total variation
    kl: Tensor  # float32 [K, M] KL(clean || lane), nats
    top1: Tensor  # float32 [K, M] 1 where the likeliest token is the same
    nucleus: Tensor  # float32 [K, M] largest shared ranked nucleus, percent
    loss: Tensor  # float32 [K, M] -log p of the next token, nats; NaN where there is none
    entropy: Tensor  # float32 [K, M] nats
    clean_loss: Tensor  # float32 [M]
    clean_entropy: Tensor  # float32 [M]

    @classmethod
    def empty(cls, strata: int, tokens: int, device: torch.device) -> "OutputErrors":
        """Unwritten tensors for `strata` lanes of `tokens` tokens."""

        def lanes() -> Tensor:
            return torch.empty(strata, tokens, dtype=torch.float32, device=device)

        def clean() -> Tensor:
            return torch.empty(tokens, dtype=torch.float32, device=device)

        return cls(lanes(), lanes(), lanes(), lanes(), lanes(), lanes(), clean(), clean())
