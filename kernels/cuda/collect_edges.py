"""The kept edges as tables, in the store's order: csrc/cuda/collect_edges.cu."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ... import _cuda
from ..edges import AttentionEdges
from ..results import EdgeTable
from ..runs import edges_in, runs
from . import budgets
from .arguments import address, floats
from .tiles import Tile
from .weighing import Weighing


def collect_edges(edges: AttentionEdges, cuts: Tensor) -> Iterator[EdgeTable]:
    pattern, cuts = edges.pattern, floats(cuts)
    batch, _, length = pattern.shape
    address("cuts", cuts, torch.float32, len(cuts), batch, length, on=pattern.device)
    if pattern.lse is None:
        edges = replace(edges, pattern=replace(pattern, lse=Weighing(edges).lse))
    for run in runs(pattern.shape, pattern.k.shape[1], budgets.TABLE_ELEMENTS):
        table = _table(edges_in(edges, run), cuts[:, run.sequences], run.rows)
        if table is not None:
            table.sequence.add_(run.sequences.start)
            table.head.add_(run.heads.start)
            yield table
        del table  # free this table before the next one is made


def _table(edges: AttentionEdges, cuts: Tensor, rows: slice) -> EdgeTable | None:
    """The kept edges into targets `rows`; None if there are none."""
    weighing = Weighing(edges)
    batch, heads, length = edges.pattern.shape
    device, where = weighing.device, weighing.where
    every_cut = weighing.address("cuts", cuts, len(cuts), batch, length)
    floor = weighing.address("cuts", cuts[-1], batch, length)
    tile = Tile(batch, 0, heads, rows, length)
    weight = weighing.weigh(tile)
    # Per row of the tile: first how many edges it keeps, then where they start in the table.
    places = torch.empty(batch, heads, length, dtype=torch.int64, device=device)
    _cuda.count_edges(weight.data_ptr(), floor, tile.compiled, heads, places.data_ptr(), *where)
    counts = places[:, :, rows].flatten()
    ends = counts.cumsum(0)
    total = int(ends[-1])  # the host waits: the table's size depends on it
    if not total:
        return None
    places[:, :, rows] = (ends - counts).view(batch, heads, -1)

    def column(dtype: torch.dtype) -> Tensor:
        return torch.empty(total, dtype=dtype, device=device)

    table = EdgeTable(
        column(torch.int32),
        column(torch.int16),
        column(torch.int32),
        column(torch.int32),
        column(torch.float32),
        column(torch.uint8),
    )
    _cuda.write_edges(
        weight.data_ptr(),
        every_cut,
        len(cuts),
        tile.compiled,
        heads,
        places.data_ptr(),
        (
            table.sequence.data_ptr(),
            table.head.data_ptr(),
            table.source.data_ptr(),
            table.target.data_ptr(),
            table.weight.data_ptr(),
            table.stratum.data_ptr(),
        ),
        *where,
    )
    return table
