"""Observers of the lane loop that write out what it normally does not keep: for small T."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import kernels
from ..kernels import EdgeTable
from .graph import KINDS
from .nodes import Node

Weights = dict[str, NDArray[np.float32]]  # attn [L, H, T, T], others [L, T]; NaN: no edge


class EdgeRow(NamedTuple):
    """One row of an edge table."""

    layer: int  # block
    kind: str
    head: int  # -1: no attention edge
    source: int  # position
    target: int
    weight: float  # normalised
    stratum: int  # the sparsest that holds the edge


def edge_rows(table: pd.DataFrame) -> Iterator[EdgeRow]:
    """The rows of an edge table, typed."""
    columns = (table[name].tolist() for name in EdgeRow._fields)
    return (EdgeRow(*row) for row in zip(*columns, strict=True))


def _normalised(weights: Tensor, total: Tensor) -> Tensor:
    """weights / total, 0 where the node's total is 0."""
    return torch.where(total > 0, weights / total, torch.where(weights.isnan(), torch.nan, 0.0))


@dataclass
class DenseWeights:
    """The normalised weights of every edge of a batch of one row."""

    backend: str = "auto"
    _nodes: list[dict[str, Tensor]] = field(default_factory=list)

    def __call__(self, node: Node, cuts: Tensor) -> None:
        found = dict(zip(node.kinds, _normalised(node.side, node.total)[:, 0], strict=True))
        if node.edges is not None:
            weights = kernels.edge_weights(node.edges, backend=self.backend)
            found["attn"] = _normalised(weights, node.total[:, None, :, None])[0]
        self._nodes.append(found)

    def by_kind(self) -> Weights:
        """Stacked over blocks; a kind that the wiring lacks is left out."""
        return {
            kind: np.stack([node[kind].cpu().numpy() for node in self._nodes if kind in node])
            for kind in KINDS
            if any(kind in node for node in self._nodes)
        }


@dataclass
class EdgeCollector:
    """The edges of the traces of one output at one stratum, of a batch of one row."""

    gates: list[Tensor]  # bool [K, 1, T] for each node layer, from the embedding up
    stratum: int
    backend: str = "auto"
    _tables: list[pd.DataFrame] = field(default_factory=list)
    _seen: int = 0

    def __call__(self, node: Node, cuts: Tensor) -> None:
        # Traces nest, and so do the nodes in them: a gated cut is a cut like any other.
        outside = ~self.gates[self._seen].to(cuts.device)
        gated = cuts.masked_fill(outside, torch.inf)[: self.stratum + 1]
        self._seen += 1
        for kind, weight in zip(node.kinds, node.side, strict=True):
            token = (weight > gated[-1])[0].nonzero().squeeze(-1)
            head = torch.full_like(token, -1)
            stratum = (weight <= gated)[:, 0, token].sum(0)
            self._add(node, kind, EdgeTable(token, head, token, token, weight[0, token], stratum))
        if node.edges is not None:
            found = kernels.collect_edges(node.edges, gated, backend=self.backend)
            self._add(node, "attn", found)

    def _add(self, node: Node, kind: str, found: EdgeTable) -> None:
        columns = {
            "layer": np.full(len(found.head), node.layer),
            "kind": pd.Categorical([kind] * len(found.head), categories=list(KINDS)),
            "head": found.head.cpu().numpy(),
            "source": found.source.cpu().numpy(),
            "target": found.target.cpu().numpy(),
            "weight": _normalised(found.weight, node.total[0, found.target]).cpu().numpy(),
            "stratum": found.stratum.cpu().numpy(),
        }
        self._tables.append(pd.DataFrame(columns))

    def table(self) -> pd.DataFrame:
        """One row an edge, ordered by layer, kind, head, target and source."""
        table = pd.concat(self._tables, ignore_index=True)
        return table.sort_values(["layer", "kind", "head", "target", "source"], ignore_index=True)
