"""The random control: as many edges as a trace keeps, drawn at random (METHOD §5)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import kernels
from ..kernels import RandomWeight
from .batch import Batch
from .nodes import Node, RandomImportance

_STREAM = 1 << 20  # separates the control's random numbers from the random importance's


@dataclass(frozen=True)
class Draw:
    """Attention edges drawn at random: those whose random weight exceeds the cut."""

    cuts: Tensor  # float32 [K, B, T]
    weight: RandomWeight


def draw_edges(
    node: Node,
    degrees: dict[str, Tensor],
    *,
    inside: Tensor | None,
    eligible: Tensor,
    batch: Batch,
    seed: int,
    backend: str,
) -> tuple[Draw | None, dict[str, Tensor]]:
    """Draw as many in-edges of each kind at random as the trace keeps, document by document.

    Args:
        node: the node layer.
        degrees: int32 [K, B, T] in-edges that each stratum keeps, by kind.
        inside: bool [K, B, T], which nodes are in each stratum's trace; None: all.
        eligible: bool [B, T], which nodes are in the graph.
        batch: the documents.
        seed: of the run.
        backend: of the ops.

    Returns:
        The attention edges drawn (None for an MLP node), and bool [K, B, T] for the MLP edges.
    """
    control = RandomImportance(seed ^ _STREAM, batch.positions, backend)
    cuts, side = None, {}
    if node.edges is not None:
        edges = control.edges(node.layer, node.edges.pattern)
        cuts = torch.full_like(degrees["attn"], torch.inf, dtype=torch.float32)
    if "mlp" in degrees:
        weight = control.side(node.layer, "mlp")
        side["mlp"] = torch.zeros_like(degrees["mlp"], dtype=torch.bool)
    for document in range(batch.documents):
        own = batch.segments == document
        candidates = eligible & own
        counts = {
            kind: (degree * candidates * (1 if inside is None else inside)).sum(-1)  # [K, B]
            for kind, degree in degrees.items()
        }
        if cuts is not None:
            cut = kernels.random_cuts(edges, candidates, counts["attn"], backend=backend)
            cuts = torch.where(own, cut[..., None], cuts)
        if side:
            drawable = weight.masked_fill(~candidates, -1.0)
            # Rank of each token's edge, heaviest first.
            rank = drawable.argsort(-1, descending=True).argsort(-1)
            side["mlp"] |= rank < counts["mlp"][..., None]
    return None if cuts is None else Draw(cuts, control.weight(node.layer)), side
