"""A trace: what one sequence showed at every position and stratum, and views of its graph."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import InputError
from . import curve
from .collect import EdgeRow, edge_rows
from .select import Rule

if TYPE_CHECKING:
    import networkx as nx
    import scipy.sparse as sp


class Graph(Protocol):
    """Recomputes the weighted graph of a traced sequence: asked for seldom, too large to keep."""

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Normalised weights, NaN where no edge: attn [L, H, T, T], others [L, T]."""
        ...

    def edges(self, output: int, stratum: int) -> pd.DataFrame:
        """The trace of one output as a table."""
        ...


class NoGraph:
    """That of a trace which was copied or sent elsewhere, without its model."""

    def weights(self) -> NoReturn:
        """Refused."""
        raise InputError("a trace that was copied or sent has no model with it: trace once more")

    def edges(self, output: int, stratum: int) -> NoReturn:
        """Refused."""
        self.weights()


@dataclass(frozen=True)
class Trace:
    """One sequence of T tokens traced at K strata; with `scope="output"` T rows become one.

    Strata are columns, the sparsest first. Positions outside a document (padding) are not here.
    """

    tokens: NDArray[np.int64]  # [T tokens of the sequence]
    positions: NDArray[np.int64]  # [T] output position of each row, an index into `tokens`
    rule: Rule
    size: NDArray[np.float32]  # [T, K] edges of the trace / edges of the full graph
    edge_count: NDArray[np.int64]  # [T, K]
    full_edge_count: NDArray[np.int64]  # [T]
    errors: dict[str, NDArray[np.float32]]  # [T, K]: tv kl top1 nucleus loss entropy, and controls
    surprisal: NDArray[np.float32]  # [T] nats; NaN where no token follows
    model_entropy: NDArray[np.float32]  # [T] nats
    topology: NDArray[np.int64]  # [T, K, 4 kinds, L] edges by kind and block (a scan's: quartile)
    parallel: bool  # whether a block has one node layer instead of two
    graph: Graph = field(repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "graph": NoGraph()}

    @property
    def strata(self) -> NDArray[np.float64]:
        """float64 [K]: the rule's values in column order."""
        return np.array(self.rule.values)

    def density_at(self, eps: float) -> NDArray[np.float32]:
        """float32 [T]: the smallest size whose total variation is at most `eps` (METHOD §6)."""
        found = curve.density_at(self.size, self.errors["tv"], eps, self.full_edge_count)
        return found.astype(np.float32)

    @property
    def auc_tv(self) -> NDArray[np.float32]:
        """float32 [T]: total variation integrated over log10 size (METHOD §6)."""
        found = curve.auc_tv(self.size, self.errors["tv"], self.full_edge_count)
        return found.astype(np.float32)

    def weights(self, layer: int) -> dict[str, NDArray[np.float32]]:
        """Normalised weights of one block's edges, NaN where there is no edge: for small T.

        Returns:
            attn [H, T target, T source]; res_attn, mlp and, in a sequential block, res_mlp [T].
        """
        layers = self.topology.shape[-1]
        if not -layers <= layer < layers:
            raise InputError(f"layer={layer} is outside the {layers} blocks of the model")
        return {kind: array[layer] for kind, array in self.graph.weights().items()}

    def edges(self, output: int = -1, stratum: int = 0) -> pd.DataFrame:
        """The trace of one output position as a table.

        Args:
            output: position in the sequence, or from its end.
            stratum: column, 0 the sparsest.

        Returns:
            One row an edge: layer (block), kind, head (-1 where it is no attention edge), source
            and target (positions), weight (normalised), stratum (the sparsest that holds it).
        """
        return self.graph.edges(output, stratum)

    def to_networkx(self, output: int = -1, stratum: int = 0) -> "nx.MultiDiGraph[Any]":
        """The trace as a graph over (node layer, position), one edge a kept edge."""
        import networkx as nx

        graph: nx.MultiDiGraph[Any] = nx.MultiDiGraph()
        for edge, (start, end) in self._with_nodes(output, stratum):
            graph.add_edge(
                start,
                end,
                key=edge.kind if edge.kind != "attn" else f"attn{edge.head}",
                kind=edge.kind,
                head=edge.head,
                weight=edge.weight,
            )
        return graph

    def to_coo(self, output: int = -1, stratum: int = 0) -> "sp.coo_array":
        """The trace as a sparse matrix [target node, source node] of weights.

        Nodes are numbered node layer * T + position; heads between the same two nodes are
        entries of their own, which `tocsr()` would add up.
        """
        import scipy.sparse as sp

        length = len(self.tokens)
        layers = self.topology.shape[-1] * (1 if self.parallel else 2) + 1
        table = list(self._with_nodes(output, stratum))
        data = np.array([edge.weight for edge, _ in table], dtype=np.float32)
        source = [layer * length + token for _, ((layer, token), _) in table]
        target = [layer * length + token for _, (_, (layer, token)) in table]
        return sp.coo_array((data, (target, source)), shape=(layers * length,) * 2)

    def _with_nodes(
        self, output: int, stratum: int
    ) -> list[tuple[EdgeRow, tuple[tuple[int, int], tuple[int, int]]]]:
        """Each edge of a trace with its source and target nodes, (node layer, position)."""
        table = []
        for edge in edge_rows(self.edges(output, stratum)):
            if self.parallel:
                below = edge.layer
            else:
                below = 2 * edge.layer + (0 if edge.kind in ("attn", "res_attn") else 1)
            table.append((edge, ((below, edge.source), (below + 1, edge.target))))
        return table
