"""Observers of the lane loop that record edge weights and kept edges."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import kernels
from ..kernels import EdgeTable
from . import layout
from .edge_tables import EdgeSpool, edge_table
from .graph import KINDS
from .nodes import Node

Weights = dict[str, NDArray[np.float32]]  # attn [L, H, T, T], others [L, T]; NaN: no edge
Rows = NDArray[np.int32]  # [edges] row of the batch that each edge belongs to


class EdgeRow(NamedTuple):
    """One row of an edge table."""

    layer: int  # block
    kind: str
    head: int  # -1 for other kinds than attention
    source: int  # position
    target: int
    weight: float  # normalised
    stratum: int  # the sparsest that holds the edge


def edge_rows(table: pd.DataFrame) -> Iterator[EdgeRow]:
    """Iterate over an edge table as typed rows."""
    columns = (table[name].tolist() for name in EdgeRow._fields)
    return (EdgeRow(*row) for row in zip(*columns, strict=True))


def _normalised(weights: Tensor, total: Tensor) -> Tensor:
    """weights / total, 0 where the node's total is 0."""
    return torch.where(total > 0, weights / total, torch.where(weights.isnan(), torch.nan, 0.0))


@dataclass
class DenseWeights:
    """Observer: the normalised weights of all edges of a one-row batch, for small T."""

    backend: str = "auto"
    _nodes: list[dict[str, Tensor]] = field(default_factory=list)

    def __call__(self, node: Node, cuts: Tensor) -> None:
        by_kind = dict(zip(node.kinds, _normalised(node.side, node.total)[:, 0], strict=True))
        if node.edges is not None:
            weights = kernels.edge_weights(node.edges, backend=self.backend)
            by_kind["attn"] = _normalised(weights, node.total[:, None, :, None])[0]
        self._nodes.append(by_kind)

    def by_kind(self) -> Weights:
        """The weights stacked over blocks, for the edge kinds that the model has."""
        return {
            kind: np.stack([node[kind].cpu().numpy() for node in self._nodes if kind in node])
            for kind in KINDS
            if any(kind in node for node in self._nodes)
        }


def _kept_edges(node: Node, cuts: Tensor, backend: str) -> Iterator[tuple[Rows, NDArray[Any]]]:
    """The edges of the last stratum, ordered by kind, batch row, head, target and source.

    Yields one table at a time, so that only one is on the device: the batch row of each edge [n],
    and the edges, `layout.EDGE` [n], with normalised weights.
    """
    for kind in KINDS:
        if kind == "attn" and node.edges is not None:
            tables = kernels.collect_edges(node.edges, cuts, backend=backend)
        elif kind in node.kinds:
            tables = iter([_side_edges(node.side[node.kinds.index(kind)], cuts)])
        else:
            continue
        yield from map(partial(_records, node, kind), tables)


def _side_edges(weight: Tensor, cuts: Tensor) -> EdgeTable:
    """The kept edges of one side kind (not attention) with weights [B, T]."""
    row, token = (weight > cuts[-1]).nonzero(as_tuple=True)
    stratum = (weight <= cuts)[:, row, token].sum(0)
    head = torch.full_like(token, -1)
    return EdgeTable.of(row, head, token, token, weight[row, token], stratum)


def _records(node: Node, kind: str, table: EdgeTable) -> tuple[Rows, NDArray[Any]]:
    edges = np.empty(len(table.head), dtype=layout.EDGE)
    edges["layer"], edges["kind"] = node.layer, KINDS.index(kind)
    weight = _normalised(table.weight, node.total[table.sequence, table.target])
    for name, column in (vars(table) | {"weight": weight}).items():
        if name != "sequence":
            edges[name] = column.cpu().numpy()
    return table.sequence.cpu().numpy(), edges


@dataclass
class EdgeCollector:
    """Observer: the edges of one output's trace at one stratum, in a one-row batch."""

    gates: list[Tensor]  # bool [K, 1, T] for each node layer, from the embedding up
    stratum: int
    backend: str = "auto"
    _edges: list[NDArray[Any]] = field(default_factory=list)
    _seen: int = 0

    def __call__(self, node: Node, cuts: Tensor) -> None:
        # Traces nest, and so do their nodes: gated cuts stay sorted like any others.
        outside = ~self.gates[self._seen].to(cuts.device)
        gated = cuts.masked_fill(outside, torch.inf)[: self.stratum + 1]
        self._seen += 1
        self._edges.extend(edges for _, edges in _kept_edges(node, gated, self.backend))

    def table(self) -> pd.DataFrame:
        """The collected edges, one row each, ordered by layer, kind, head, target and source."""
        return edge_table(np.concatenate(self._edges))


@dataclass
class EdgeRecorder:
    """Observer: spools the edges that a stratum keeps in the windows of a part.

    Sees the rows of the batch all at once, or group by group (`LaneLoop.parts`). Holds at most two
    tables of `kernels.collect_edges`, 22 bytes an edge.
    """

    windows: Sequence[int]  # index in the part of each row's window
    lengths: NDArray[np.int32]  # tokens of each row, padded on the right
    stratum: int
    spool: EdgeSpool
    backend: str = "auto"
    _rows: Counter[tuple[int, bool]] = field(default_factory=Counter)  # rows seen per node layer

    def __call__(self, node: Node, cuts: Tensor) -> None:
        rows, length = node.total.shape
        seen = self._rows[node.layer, node.edges is None]
        self._rows[node.layer, node.edges is None] += rows
        lengths = torch.as_tensor(self.lengths[seen : seen + rows], device=cuts.device)
        padding = torch.arange(length, device=cuts.device) >= lengths[:, None]
        kept = cuts[: self.stratum + 1].masked_fill(padding, torch.inf)
        for row, edges in _kept_edges(node, kept, self.backend):
            # The edges of a window already come in the store's order.
            ends = np.searchsorted(row, np.arange(rows + 1, dtype=row.dtype))
            for index, window in enumerate(self.windows[seen : seen + rows]):
                if ends[index] < ends[index + 1]:
                    self.spool.add(window, edges[ends[index] : ends[index + 1]])
