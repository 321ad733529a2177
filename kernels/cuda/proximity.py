"""Masses and levels under proximity: csrc/cuda/proximity.cu."""

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from ... import _cuda
from ..edges import AttentionEdges, ProximityWeight
from ..results import EdgeLevels
from . import budgets
from .arguments import address, floats
from .device import device_and_stream
from .products import product
from .tiles import Tile, node_tiles, tiles
from .weighing import Weighing


class Proximity:
    """Proximity of attention edges, tile by tile: METHOD §2.

    With `cuts` [K, B, T] a weight is exact only where that decides its level, and otherwise an
    upper bound of the same level; without cuts all weights are exact.
    """

    def __init__(self, edges: AttentionEdges, cuts: Tensor | None = None) -> None:
        assert isinstance(edges.weight, ProximityWeight)
        self.edges, self.weight = edges, edges.weight
        self.strata = 0 if cuts is None else len(cuts)
        self.shape, self.device = edges.pattern.shape, edges.pattern.device
        self.cuts = 0
        if cuts is not None:
            self.cut_values, shape = floats(cuts), (self.strata, self.shape[0], self.shape[2])
            self.cuts = address("cuts", self.cut_values, torch.float32, *shape, on=self.device)
        # Per row: the sum of its weights (without cuts only); its number of edges, and how many of
        # them were summed entry by entry.
        self.sums = torch.empty(self.shape, dtype=torch.float32, device=self.device)
        counts = edges.scratch.pop("counts", None) if self.strata else None
        if counts is None:
            counts = torch.empty(2, *self.shape, dtype=torch.int32, device=self.device)
        self.edge_counts, self.summed_counts = self.counts = counts

    @cached_property
    def weighing(self) -> Weighing:
        """Made on first use: not needed if all tiles were kept by `keep_weights`."""
        return Weighing(self.edges)

    def tiles(self, rows: slice | None = None) -> Iterator[tuple[Tile, Tensor]]:
        """Tiles, a few heads at a time, with their weights float32 [B, heads, rows, sources].

        Over all targets, or over `rows` only, whose weights of all heads fit TILE_ELEMENTS.
        """
        batch, heads, length = self.shape
        widest = max(1, batch * length * max(length, self.weight.node.shape[-1]))
        together = max(1, budgets.TILE_ELEMENTS // widest)
        for head in range(0, heads, together):
            chunk = range(head, min(heads, head + together))
            sent: Tensor | None = None
            alone = None if rows is None else Tile(batch, head, len(chunk), rows, length)
            for tile in tiles(batch, head, len(chunk), length) if alone is None else [alone]:
                weight = None
                if self.strata:  # edge_levels is the last op to need them: it frees each tile
                    weight = self.edges.scratch.pop(tile.key, None)
                elif alone is not None:
                    weight = self.edges.scratch.get(tile.key)
                if weight is None:
                    if sent is None:
                        sent = self._sent(chunk)
                        largest = torch.linalg.vector_norm(sent, torch.inf, dim=-1)
                    share = torch.empty(tile.shape, dtype=torch.float32, device=self.device)
                    weight = self.weighing.weigh(tile, share)
                    self._refine_bounds(tile, weight, share, sent, largest)
                yield tile, weight

    def whole_nodes(self) -> Iterator[tuple[Tile, Tensor]]:
        """Tiles of targets with the weights of all heads."""
        batch, heads, length = self.shape
        for tile in node_tiles(batch, heads, length):
            weight = torch.empty(tile.shape, dtype=torch.float32, device=self.device)
            for part, weight_of_part in self.tiles(tile.rows):
                weight[:, part.head : part.head + part.heads] = weight_of_part
            yield tile, weight

    def keep_weights(self) -> None:
        """Compute all weights; keep as many tiles as SCRATCH_ELEMENTS allows for `edge_levels`.

        Exact weights give the same levels there as bounds would.
        """
        scratch, room = self.edges.scratch, budgets.SCRATCH_ELEMENTS
        scratch.clear()
        scratch["counts"] = self.counts
        for tile, weight in self.tiles():
            if weight.numel() <= room:
                scratch[tile.key] = weight
                room -= weight.numel()

    def _sent(self, heads: range) -> Tensor:
        """float32 [heads, B, T, D]: W_O v, what each source sends through these heads."""
        groups, of_model = self.weight.v.shape[1], self.shape[1]
        values = torch.stack([self.weight.v[:, head * groups // of_model] for head in heads])
        w_o = self.weight.w_o[heads.start : heads.stop].transpose(1, 2)
        return product(values.flatten(1, 2), w_o).view(*values.shape[:3], -1)

    def _refine_bounds(
        self, tile: Tile, weight: Tensor, share: Tensor, sent: Tensor, largest: Tensor
    ) -> None:
        """Replace bounds in `weight` by exact weights where a level needs them, in place."""
        batch, heads, length = self.shape
        hidden, device = self.weight.node.shape[-1], self.device
        entry, dimension = self.weight.ranked
        shape = (tile.heads, batch, length)
        _cuda.refine_bounds(
            (
                address("node", entry, torch.float32, batch, length, hidden, on=device),
                address("node", dimension, torch.int32, batch, length, hidden, on=device),
            ),
            address("sent", sent, torch.float32, *shape, hidden, on=device),
            largest.data_ptr(),
            share.data_ptr(),
            self.cuts,
            self.strata,
            weight.data_ptr(),
            tile.compiled,
            heads,
            hidden,
            (self.sums.data_ptr(), self.edge_counts.data_ptr(), self.summed_counts.data_ptr()),
            *self.weighing.where,
        )


def edge_levels(edges: AttentionEdges, cuts: Tensor) -> EdgeLevels:
    batch, _, length = edges.pattern.shape
    proximity = Proximity(edges, cuts)
    levels = torch.zeros(batch, length, length, dtype=torch.uint8, device=cuts.device)
    degrees = torch.zeros(cuts.shape, dtype=torch.int32, device=cuts.device)
    for tile, weight in proximity.tiles():
        _cuda.update_levels(
            weight.data_ptr(),
            proximity.cuts,
            proximity.strata,
            tile.compiled,
            levels.data_ptr(),
            degrees.data_ptr(),
            *device_and_stream(cuts.device),
        )
    evaluated = proximity.summed_counts.sum() / proximity.edge_counts.sum()
    return EdgeLevels(levels, degrees, evaluated)


def edge_mass(edges: AttentionEdges) -> Tensor:
    proximity = Proximity(edges)
    proximity.keep_weights()
    return proximity.sums.sum(1)
