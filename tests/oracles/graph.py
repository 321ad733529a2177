"""The graph as a list of weighted edges: selection rules, traces, sizes (METHOD §1, §3, §4)."""

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Weights = dict[str, Floats]  # by kind; NaN: no edge
Kept = dict[str, Bools]  # by kind; False if there is no edge
KINDS = ("attn", "res_attn", "mlp", "res_mlp")  # the order of sizes by kind
NodeName = tuple[int, int]  # node layer, token


class Edge(NamedTuple):
    """One edge; the head of a residual or MLP edge is -1."""

    kind: str
    block: int
    head: int
    source: int
    target: int

    @property
    def place(self) -> tuple[int, ...]:
        """Its index in the arrays of its kind."""
        if self.kind == "attn":
            return self.block, self.head, self.target, self.source
        return self.block, self.target


class Graph:
    """A weighted graph, with the operations of METHOD §1, §3 and §4."""

    def __init__(
        self,
        weights: Weights,
        parallel: bool = False,
        causal: Bools | None = None,
        values: Sequence[int] | None = None,
    ) -> None:
        """Build a graph from the edges whose weight is not NaN.

        Args:
            weights: attn [L, H, T target, T source]; res_attn, mlp, res_mlp [L, T].
            parallel: one node layer per block, without res_mlp edges; else two.
            causal: [T, T] attention edges without sliding windows, for `count="causal"`; all with
                source <= target if None.
            values: for each block, the block whose keys and values its attention reads; its own if
                None.
        """
        self.weights = weights
        self.exists: Kept = {kind: ~np.isnan(weights[kind]) for kind in KINDS}
        self.blocks, self.heads, self.tokens, _ = weights["attn"].shape
        self.parallel = parallel
        self.values = range(self.blocks) if values is None else values
        self.top = self.blocks * (1 if parallel else 2)
        self._causal = np.tri(self.tokens, dtype=bool) if causal is None else causal
        self._full: dict[tuple[int, str], int] = {}
        self.in_edges: dict[NodeName, list[Edge]] = {
            (layer, token): list(self._edges_into(layer, token))
            for layer in range(1, self.top + 1)
            for token in range(self.tokens)
        }

    def _edges_into(self, layer: int, token: int) -> Iterable[Edge]:
        """In-edges of a node: residual, MLP, then attention by head and source."""
        block = layer - 1 if self.parallel else (layer - 1) // 2
        attention = self.parallel or layer % 2 == 1
        if self.parallel:
            side: tuple[str, ...] = ("res_attn", "mlp")
        else:
            side = ("res_attn",) if attention else ("res_mlp", "mlp")
        for kind in side:
            yield Edge(kind, block, -1, token, token)
        for head in range(self.heads if attention else 0):
            for source in range(self.tokens):
                edge = Edge("attn", block, head, source, token)
                if self.exists["attn"][edge.place]:
                    yield edge

    def below(self, layer: int, edge: Edge) -> NodeName:
        """The node where an edge starts that ends in a node layer."""
        if edge.kind == "attn":
            return self.values[edge.block] * (1 if self.parallel else 2), edge.source
        return layer - 1, edge.source

    def weight(self, edge: Edge) -> float:
        """The edge's weight."""
        return float(self.weights[edge.kind][edge.place])

    def keep(
        self, rule: str, value: float, output: int | None = None, count: str = "window"
    ) -> Kept:
        """All edges that a rule keeps, reachable or not (METHOD §3).

        - threshold tau: weight > tau, strictly.
        - nucleus p: in-edges of weight > 0 whose strictly heavier siblings sum to less than p: the
          fewest heaviest that reach p, with all ties of the lightest.
        - top_fraction s: of n in-edges, those heavier than the (ceil(s n) + 1)-th; all if there is
          none. s is read as the decimal it is written as.
        - size s: the first int(s |E_t|) edges of the best-first search from `output`.
        """
        if rule == "threshold":
            return {kind: w > value for kind, w in self.weights.items()}  # NaN > value is False
        if rule == "size":
            assert output is not None
            order = self.search(output)
            return self._set(order[: int(value * self.full_size(output, count))])
        choose = {"nucleus": self._nucleus, "top_fraction": self._top_fraction}[rule]
        return self._set(e for edges in self.in_edges.values() for e in choose(edges, value))

    def _nucleus(self, edges: list[Edge], p: float) -> Iterable[Edge]:
        weights = [self.weight(e) for e in edges]
        for edge, w in zip(edges, weights, strict=True):
            if w > 0 and math.fsum(v for v in weights if v > w) < p:
                yield edge

    def _top_fraction(self, edges: list[Edge], s: float) -> Iterable[Edge]:
        heaviest = sorted((self.weight(e) for e in edges), reverse=True)
        count = math.ceil(Fraction(str(s)) * len(edges))
        cut = heaviest[count] if count < len(edges) else -math.inf
        return (e for e in edges if self.weight(e) > cut)

    def search(self, output: int) -> list[Edge]:
        """All edges of an output's full graph in the order of best-first search.

        Each step takes the heaviest in-edge of the nodes reached so far and reaches its source.
        Equal weights go in order of discovery, those of one node in the order of `in_edges`.
        """
        heap: list[tuple[float, int, Edge, NodeName]] = []
        reached: set[NodeName] = set()
        order: list[Edge] = []
        pushed = 0
        node: NodeName = (self.top, output % self.tokens)
        while True:
            if node not in reached:
                reached.add(node)
                for edge in self.in_edges.get(node, ()):
                    below = self.below(node[0], edge)
                    heapq.heappush(heap, (-self.weight(edge), pushed, edge, below))
                    pushed += 1
            if not heap:
                return order
            _, _, edge, node = heapq.heappop(heap)
            order.append(edge)

    def reach(self, keep: Mapping[str, Bools], output: int) -> Kept:
        """The trace: the kept edges on a path of kept edges to the output (METHOD §4)."""
        start: NodeName = (self.top, output % self.tokens)
        edges, reached, todo = [], {start}, [start]
        while todo:
            layer, token = todo.pop()
            for edge in self.in_edges.get((layer, token), ()):
                if keep[edge.kind][edge.place]:
                    edges.append(edge)
                    below = self.below(layer, edge)
                    if below not in reached:
                        reached.add(below)
                        todo.append(below)
        return self._set(edges)

    def full_size(self, output: int, count: str = "window") -> int:
        """|E_t|: the number of edges that can reach the output, by counting.

        "causal" also counts attention edges outside a sliding window, as the papers' reference
        does. No rule keeps those: they carry nothing.
        """
        if (output, count) not in self._full:
            graph = self
            if count == "causal":
                attn = np.where(self._causal, 0.0, np.nan)
                unbounded = np.broadcast_to(attn, self.weights["attn"].shape)
                graph = Graph(
                    {**self.weights, "attn": unbounded}, self.parallel, values=self.values
                )
            self._full[output, count] = int(sizes(graph.reach(graph.exists, output)).sum())
        return self._full[output, count]

    def inverse(self, keep: Mapping[str, Bools]) -> Kept:
        """Exchange kept and dropped attention and MLP edges; keep all residual edges."""
        flipped = {kind: self.exists[kind] & ~keep[kind] for kind in ("attn", "mlp")}
        return {kind: flipped.get(kind, self.exists[kind]) for kind in KINDS}

    def _set(self, edges: Iterable[Edge]) -> Kept:
        kept: Kept = {kind: np.zeros(e.shape, dtype=bool) for kind, e in self.exists.items()}
        for edge in edges:
            kept[edge.kind][edge.place] = True
        return kept


def sizes(trace: Mapping[str, Bools]) -> NDArray[np.int64]:
    """Number of a trace's edges by kind, in the order of KINDS, and block: [4, L]."""
    return np.stack([trace[kind].reshape(len(trace[kind]), -1).sum(-1) for kind in KINDS])
