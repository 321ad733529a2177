"""Tiles of targets and heads whose weights are held at once."""

from collections.abc import Iterator
from dataclasses import dataclass

from ... import _cuda
from . import budgets


@dataclass(frozen=True)
class Tile:
    """A range of targets and of heads, of all sequences; see csrc/cuda/edges.h."""

    batch: int
    head: int
    heads: int
    rows: slice
    length: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[B, heads, rows, sources]."""
        return self.batch, self.heads, self.rows.stop - self.rows.start, self.rows.stop

    @property
    def key(self) -> tuple[int, ...]:
        """Key of the tile within its edges."""
        return self.head, self.heads, self.rows.start, self.rows.stop

    @property
    def compiled(self) -> "_cuda.Tile":
        """The tile for the compiled module."""
        start, stop = self.rows.start, self.rows.stop
        return _cuda.Tile(self.batch, self.head, self.heads, start, stop - start, self.length)


def tiles(batch: int, head: int, heads: int, length: int, targets: int = 1) -> Iterator[Tile]:
    """Tiles over all targets of heads [head, head + heads), as large as TILE_ELEMENTS allows.

    `targets`: of a sequence, at least. More than SIDE targets are a multiple of it.
    """
    block = max(targets, budgets.TILE_ELEMENTS // max(1, batch * heads * length))
    if block > budgets.SIDE:
        block -= block % budgets.SIDE
    for start in range(0, length, block):
        yield Tile(batch, head, heads, slice(start, min(length, start + block)), length)


def node_tiles(batch: int, heads: int, length: int) -> Iterator[Tile]:
    """Tiles of all heads, with enough targets to occupy a GPU."""
    targets = -(-budgets.FEWEST_NODES // max(1, batch))
    return tiles(batch, 0, heads, length, targets + -targets % budgets.SIDE)
