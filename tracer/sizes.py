"""Trace sizes from levels and in-degrees: bottlenecks from the top node layer down (METHOD §4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, starmap

import torch
from torch import Tensor

from .. import kernels
from .engine import NodeLevels
from .graph import KINDS, QUARTILES, Geometry


@dataclass(frozen=True)
class OutputTrace:
    """The traces of the last position of each row."""

    counts: Tensor  # int64 [B, 1, K, 4 kinds, L]
    gates: list[Tensor]  # bool [K, B, T] for each node layer, from the embedding up


def all_traces(
    levels: Sequence[NodeLevels], strata: int, geometry: Geometry, backend: str = "auto"
) -> Tensor:
    """Edge counts of the traces of all output positions, by kind and block.

    One (max, min) product per node layer serves all strata and all outputs.

    Args:
        levels: node layers from the embedding up.
        strata: K.
        geometry: of the graph.
        backend: of the ops.

    Returns:
        int64 [B, T, K, 4 kinds, L].
    """
    batch, length = levels[0].side.shape
    device = levels[0].side.device
    # [4, L, K, B, T] while counting: each block's counts of one kind are contiguous
    counts = torch.zeros(
        len(KINDS), geometry.blocks, strata, batch, length, dtype=torch.int64, device=device
    )
    own = torch.eye(length, dtype=torch.uint8, device=device) * strata
    reach = own.expand(batch, -1, -1).contiguous()  # beta_t(j) [B, T output, T node]
    passed_down = _PassedDown()
    for below, node in reversed(list(enumerate(levels))):
        reach = reach.to(node.side.device)  # blocks may be on several devices
        for kind, degrees in node.degrees.items():
            sizes = kernels.trace_sizes(reach, degrees, backend=backend)
            counts[KINDS.index(kind), node.layer] += sizes.to(device)
        source, attention = geometry.attention_source(node.layer), node.attention
        if attention is not None and source == below:
            reach = kernels.bottleneck(reach, _with_side(attention, node.side), backend=backend)
        else:
            if attention is not None:
                passed_down.add(source, kernels.bottleneck(reach, attention, backend=backend))
            reach = torch.minimum(reach, node.side[:, None])
        reach = passed_down.joined(below, reach)
    return counts.permute(3, 4, 2, 0, 1)


def output_trace(levels: Sequence[NodeLevels], strata: int, geometry: Geometry) -> OutputTrace:
    """The trace of the last position: its edge counts, and which nodes it holds."""
    batch, length = levels[0].side.shape
    device = levels[0].side.device
    counts = torch.zeros(
        batch, 1, strata, len(KINDS), geometry.blocks, dtype=torch.int64, device=device
    )
    needed = torch.arange(strata, 0, -1, device=device)[:, None, None]  # lowest level in stratum k
    reach = torch.zeros(batch, length, dtype=torch.uint8, device=device)
    reach[:, -1] = strata
    gates = []
    passed_down = _PassedDown()
    for below, node in reversed(list(enumerate(levels))):
        reach = reach.to(node.side.device)
        inside = reach >= needed.to(reach.device)
        gates.append(inside)
        for kind, degrees in node.degrees.items():
            sizes = (degrees * inside).sum(-1).T
            counts[:, 0, :, KINDS.index(kind), node.layer] += sizes.to(device)
        if node.attention is not None:
            paths = torch.minimum(reach[:, :, None], node.attention).amax(1)
            passed_down.add(geometry.attention_source(node.layer), paths)
        reach = passed_down.joined(below, torch.minimum(reach, node.side))
    return OutputTrace(counts, gates[::-1])


class _PassedDown:
    """Bottlenecks of nodes that attention edges reach from any node layer above theirs."""

    def __init__(self) -> None:
        self._reach: dict[int, Tensor] = {}  # by node layer

    def add(self, layer: int, reach: Tensor) -> None:
        """Take bottlenecks [..., T] of the nodes of a node layer."""
        self._reach[layer] = self.joined(layer, reach)

    def joined(self, layer: int, reach: Tensor) -> Tensor:
        """The larger of these bottlenecks and those taken for a node layer, which it forgets."""
        taken = self._reach.pop(layer, None)
        return reach if taken is None else torch.maximum(reach, taken.to(reach.device))


def by_quartile(topology: Tensor) -> Tensor:
    """Sum edge counts by block [..., L] into int64 [..., 4] by depth quartile, 4 l // L."""
    blocks = topology.shape[-1]
    firsts = [-(-blocks * quartile // QUARTILES) for quartile in range(QUARTILES + 1)]
    return torch.stack([topology[..., run].sum(-1) for run in starmap(slice, pairwise(firsts))], -1)


def _with_side(attention: Tensor, side: Tensor) -> Tensor:
    """The level map [B, T, T] with the side edges on its diagonal: they stay on their token."""
    levels = attention.clone()
    diagonal = levels.diagonal(dim1=1, dim2=2)
    diagonal.copy_(torch.maximum(diagonal, side))
    return levels
