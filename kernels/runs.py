"""Split attention edges into runs, in the order of a table: sequence, head, target, source."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from .edges import (
    AttentionEdges,
    CosineWeight,
    EdgeWeight,
    GivenWeight,
    NormWeight,
    ProximityWeight,
    RandomWeight,
)


class Run(NamedTuple):
    """A range of sequences, of heads and of targets, with all sources of these."""

    sequences: slice
    heads: slice
    rows: slice


def runs(shape: tuple[int, int, int], groups: int, limit: int) -> Iterator[Run]:
    """Split all edges into runs of at most `limit` pairs, in the order of the table.

    A run holds whole sequences, or whole heads of one sequence, or one or more targets of one head.
    Its heads make up whole groups, or belong to a single one.

    Args:
        shape: (B, H, T).
        groups: G.
        limit: pairs of target and source in a run, counting pairs without an edge.

    Example:
        >>> [run.rows for run in runs((1, 1, 4), groups=1, limit=8)]
        [slice(0, 2, None), slice(2, 4, None)]
    """
    batch, heads, length = shape
    row = max(1, length)
    together = max(1, min(heads, limit // row**2))
    shared = heads // groups
    while together % shared and shared % together:
        together -= 1
    for sequences in _slices(batch, limit // (heads * row**2)):
        for chunk in _slices(heads, together):
            for rows in _slices(length, limit // row):
                yield Run(sequences, chunk, rows)


def _slices(count: int, size: int) -> Iterator[slice]:
    step = max(1, size)
    for start in range(0, count, step):
        yield slice(start, min(count, start + step))


def edges_in(edges: AttentionEdges, run: Run) -> AttentionEdges:
    """The edges of a run's sequences and heads, into all targets.

    A `RandomWeight` does not record which heads these are: see `first_head` in `reference`.
    """
    pattern, of_heads = edges.pattern, (run.sequences, run.heads)
    _, heads, _ = pattern.shape
    groups = pattern.k.shape[1]
    last = (run.heads.stop - 1) * groups // heads
    of_groups = run.sequences, slice(run.heads.start * groups // heads, last + 1)

    def of_sequences(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[run.sequences]

    weight: EdgeWeight
    match edges.weight:
        case NormWeight(source, target):
            weight = NormWeight(source[of_heads], of_sequences(target))
        case CosineWeight(direction, source, v):
            weight = CosineWeight(direction[of_heads], source[of_heads], v[of_groups])
        case ProximityWeight(node, v, w_o, target):
            weight = ProximityWeight(
                node[run.sequences], v[of_groups], w_o[run.heads], of_sequences(target)
            )
        case RandomWeight():
            weight = replace(edges.weight, positions=edges.weight.positions[run.sequences])
        case GivenWeight(given):
            weight = GivenWeight(given[of_heads])
    part = replace(
        pattern,
        q=pattern.q[of_heads],
        k=pattern.k[of_groups],
        sinks=None if pattern.sinks is None else pattern.sinks[run.heads],
        segments=of_sequences(pattern.segments),
        lse=None if pattern.lse is None else pattern.lse[of_heads],
    )
    return AttentionEdges(part, weight)
