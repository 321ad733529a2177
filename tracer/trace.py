"""A trace: the results of one sequence at every position and stratum, and views of its graph."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import InputError
from . import curve
from .collect import EdgeRow, edge_rows
from .graph import MLP_KINDS, Geometry
from .indices import from_start
from .select import Rule

if TYPE_CHECKING:
    import networkx as nx
    import scipy.sparse as sp


GraphNode = tuple[int, int]  # node layer, position


class Graph(Protocol):
    """Recomputes the weighted graph of a traced sequence: rarely needed, too large to keep."""

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Normalised weights: attn [L, H, T, T], others [L, T]; NaN where no edge."""
        ...

    def edges(self, output: int, stratum: int) -> pd.DataFrame:
        """The trace of one output as a table; see `Trace.edges`."""
        ...


class NoGraph:
    """The graph of a trace that was copied or pickled, and so lost its model."""

    def weights(self) -> NoReturn:
        """Raise InputError: the model is needed."""
        raise InputError("a copied or unpickled trace has no model: trace the input again")

    def edges(self, output: int, stratum: int) -> NoReturn:
        """Raise InputError: the model is needed."""
        self.weights()


@dataclass(frozen=True, eq=False)
class Trace:
    """One sequence of T tokens traced at K strata.

    Rows are output positions, without padding; with `scope="output"` there is one. Columns are
    strata, the sparsest first.

    Example:
        >>> trace = tracer.trace("The cat sat on the mat", select=Threshold([1e-3, 1e-2]))
        >>> trace.edges(output=-1, stratum=0).columns.tolist()
        ['layer', 'kind', 'head', 'source', 'target', 'weight', 'stratum']
    """

    tokens: NDArray[np.int64]  # [T tokens of the sequence]
    positions: NDArray[np.int64]  # [T] output position of each row: index into `tokens`
    rule: Rule
    size: NDArray[np.float32]  # [T, K] edges of the trace / edges of the full graph
    edge_count: NDArray[np.int64]  # [T, K]
    full_edge_count: NDArray[np.int64]  # [T]
    errors: dict[str, NDArray[np.float32]]  # [T, K]: tv kl top1 nucleus loss entropy, and controls
    surprisal: NDArray[np.float32]  # [T] nats; NaN where no token follows
    model_entropy: NDArray[np.float32]  # [T] nats
    topology: NDArray[np.int64]  # [T, K, 4 kinds, L] edges by kind and block (a scan's: quartile)
    geometry: Geometry  # which node layers edges connect
    graph: Graph = field(repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "graph": NoGraph()}

    @property
    def strata(self) -> NDArray[np.float64]:
        """float64 [K]: the rule's values, in column order."""
        return np.array(self.rule.values)

    def density_at(self, eps: float) -> NDArray[np.float32]:
        """The smallest size whose total variation is at most `eps` (METHOD §6).

        Args:
            eps: tolerated total variation, >= 0.

        Returns:
            float32 [T] in (0, 1]; 1.0 where no stratum qualifies.

        Raises:
            InputError: a negative or non-finite `eps`.
        """
        density = curve.density_at(self.size, self.errors["tv"], eps, self.full_edge_count)
        return density.astype(np.float32)

    @property
    def auc_tv(self) -> NDArray[np.float32]:
        """float32 [T]: the area under total variation over log10 size (METHOD §6)."""
        area = curve.auc_tv(self.size, self.errors["tv"], self.full_edge_count)
        return area.astype(np.float32)

    def weights(self, layer: int) -> dict[str, NDArray[np.float32]]:
        """Recompute the normalised weights of one block's edges; for small T.

        Uses the model as it is now: if its weights have changed since, so have these.

        Args:
            layer: index of the block, or from the end.

        Returns:
            float32, NaN where there is no edge: attn [H, T target, T source]; res_attn, mlp and,
            in a sequential block, res_mlp [T].

        Raises:
            InputError: a layer out of range, weights of more than 4 GiB, or a copied trace.
        """
        block = from_start("layer", layer, self.topology.shape[-1], "blocks of the model")
        return {kind: array[block] for kind, array in self.graph.weights().items()}

    def edges(self, output: int = -1, stratum: int = 0) -> pd.DataFrame:
        """Recompute the trace of one output position as a table, with the model as it is now.

        Args:
            output: position in the sequence, or from its end.
            stratum: column, 0 the sparsest, or from the end.

        Returns:
            One row per edge: layer (block), kind, head (-1 for other kinds than attention), source
            and target (positions), weight (normalised), stratum (the sparsest that holds it).

        Raises:
            InputError: an output or stratum out of range, or a copied trace.
        """
        return self.graph.edges(output, stratum)

    def to_networkx(self, output: int = -1, stratum: int = 0) -> "nx.MultiDiGraph[Any]":
        """The trace as a networkx graph.

        Nodes are (node layer, position). Each kept edge has attributes kind, head and weight, and
        its kind (with the head: "attn0") as key. Arguments and errors as for `edges`.
        """
        import networkx as nx

        graph: nx.MultiDiGraph[Any] = nx.MultiDiGraph()
        for edge, source, target in self._with_nodes(output, stratum):
            graph.add_edge(
                source,
                target,
                key=edge.kind if edge.kind != "attn" else f"attn{edge.head}",
                kind=edge.kind,
                head=edge.head,
                weight=edge.weight,
            )
        return graph

    def to_coo(self, output: int = -1, stratum: int = 0) -> "sp.coo_array":
        """The trace as a sparse float32 matrix [target node, source node] of weights.

        Node numbers are node layer * T + position. Heads between the same two nodes are separate
        entries, which `tocsr()` would sum. Arguments and errors as for `edges`.
        """
        import scipy.sparse as sp

        length = len(self.tokens)
        layers = self.geometry.node_layers + 1
        weights, sources, targets = [], [], []
        for edge, source, target in self._with_nodes(output, stratum):
            weights.append(edge.weight)
            sources.append(source[0] * length + source[1])
            targets.append(target[0] * length + target[1])
        data = np.array(weights, dtype=np.float32)
        return sp.coo_array((data, (targets, sources)), shape=(layers * length,) * 2)

    def _with_nodes(
        self, output: int, stratum: int
    ) -> Iterator[tuple[EdgeRow, GraphNode, GraphNode]]:
        """The edges of a trace, each with its source and target node."""
        for edge in edge_rows(self.edges(output, stratum)):
            source = self.geometry.source(edge.kind, edge.layer)
            target = self.geometry.below(edge.layer, edge.kind in MLP_KINDS) + 1
            yield edge, (source, edge.source), (target, edge.target)
