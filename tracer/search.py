"""The s-Trace: best-first search from one output, in the order of the papers' reference."""

import heapq
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from .graph import Geometry

Edge = tuple[str, int, int, int, int]  # kind, layer, head (-1: none), source, target


def best_first(
    weights: Mapping[str, NDArray[np.float32]], geometry: Geometry, output: int
) -> Iterator[Edge]:
    """Yield edges in the order in which the search from `output` takes them.

    Each step takes the heaviest in-edge of the nodes reached so far, and reaches its source; ties
    are broken by order of discovery (METHOD §4, 'The s-Trace is a bottleneck order').

    Args:
        weights: normalised, NaN for no edge: attn [L, H, T, T], others [L, T].
        geometry: of the graph.
        output: position of the last node, from which the search starts.
    """
    heap: list[tuple[float, int, Edge, int]] = []
    seen: set[tuple[int, int]] = set()
    discovered = 0

    def reach(node_layer: int, token: int) -> None:
        nonlocal discovered
        if node_layer == 0 or (node_layer, token) in seen:
            return
        seen.add((node_layer, token))
        for weight, edge in _in_edges(weights, geometry, node_layer, token):
            heapq.heappush(heap, (-weight, discovered, edge, geometry.source(*edge[:2])))
            discovered += 1

    reach(geometry.node_layers, output)
    while heap:
        _, _, edge, source_layer = heapq.heappop(heap)
        yield edge
        reach(source_layer, edge[3])


def _in_edges(
    weights: Mapping[str, NDArray[np.float32]], geometry: Geometry, node_layer: int, token: int
) -> Iterator[tuple[float, Edge]]:
    parallel = geometry.parallel
    layer = (node_layer - 1) if parallel else (node_layer - 1) // 2
    has_attention = parallel or node_layer % 2 == 1
    if parallel:
        side: tuple[str, ...] = ("res_attn", "mlp")
    else:
        side = ("res_attn",) if has_attention else ("res_mlp", "mlp")
    for kind in side:
        yield float(weights[kind][layer, token]), (kind, layer, -1, token, token)
    if has_attention:
        attention = weights["attn"][layer, :, token]  # [H, T source]
        for head, source in zip(*np.nonzero(~np.isnan(attention)), strict=True):
            edge = ("attn", layer, int(head), int(source), token)
            yield float(attention[head, source]), edge


def ranks(
    weights: Mapping[str, NDArray[np.float32]], geometry: Geometry, output: int
) -> tuple[dict[str, NDArray[np.float32]], int]:
    """Rank edges by the search's order: edge i of the n taken gets n - i, edges not taken get 0.

    Args:
        weights, geometry, output: see `best_first`.

    Returns:
        The ranks by kind, in the shapes of `weights`, and n.
    """
    order = list(best_first(weights, geometry, output))
    ranked = {kind: np.zeros_like(array) for kind, array in weights.items()}
    for step, (kind, layer, head, source, target) in enumerate(order):
        index = (layer, head, target, source) if kind == "attn" else (layer, target)
        ranked[kind][index] = len(order) - step
    return ranked, len(order)
