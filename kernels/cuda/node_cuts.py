"""Cuts of nodes by a nucleus or a number of edges: csrc/cuda/node_cuts.cu."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ... import _cuda
from ..edges import AttentionEdges, ProximityWeight
from .arguments import address, floats
from .device import device_and_stream
from .proximity import Proximity
from .tiles import Tile, node_tiles
from .weighing import Weighing


def nucleus_cuts(
    edges: AttentionEdges | None, side: Tensor, masses: Tensor, total: Tensor
) -> Tensor:
    return _node_cuts(edges, side, masses, total)


def fraction_cuts(edges: AttentionEdges | None, side: Tensor, fractions: Tensor) -> Tensor:
    return _node_cuts(edges, side, fractions, None)


def _node_cuts(
    edges: AttentionEdges | None, side: Tensor, wanted: Tensor, total: Tensor | None
) -> Tensor:
    """Cuts by `wanted` shares of the total; if that is None, of the number of edges."""
    sides, batch, length = side.shape
    device, where = side.device, device_and_stream(side.device)
    cuts = torch.empty(len(wanted), batch, length, dtype=torch.float32, device=device)
    side, wanted = floats(side), wanted.double().contiguous()
    total = None if total is None else floats(total)
    window = 0 if edges is None else edges.pattern.window or 0
    arguments = (
        address("side", side, torch.float32, sides, batch, length, on=device),
        sides,
        address("shares", wanted, torch.float64, len(wanted), on=device),
        len(wanted),
        0 if total is None else address("total", total, torch.float32, batch, length, on=device),
        cuts.data_ptr(),
        *where,
    )
    if edges is None:
        alone = Tile(batch, 0, 0, slice(0, length), length)
        _cuda.node_cuts(0, alone.compiled, window, *arguments)
        return cuts
    for tile, weight in _whole_nodes(edges):
        _cuda.node_cuts(weight.data_ptr(), tile.compiled, window, *arguments)
    return cuts


def _whole_nodes(edges: AttentionEdges) -> Iterator[tuple[Tile, Tensor]]:
    """Tiles of targets with the weights of all heads, which the caller may overwrite."""
    if isinstance(edges.weight, ProximityWeight):
        yield from Proximity(edges).whole_nodes()
        return
    weighing = Weighing(edges)
    for tile in node_tiles(weighing.batch, weighing.heads, weighing.length):
        yield tile, weighing.weigh(tile)
