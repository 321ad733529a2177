"""Node and edge geometry (METHOD §1) and edge counts (§4)."""

from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

KINDS = ("attn", "res_attn", "mlp", "res_mlp")  # edge kinds, in the order of every topology array
KIND_NAMES = ("attention", "residual-attention", "mlp", "residual-mlp")

QUARTILES = 4  # of depth, by which a store counts the edges of traces
MLP_KINDS = ("mlp", "res_mlp")  # in a sequential block, the edges into its second node layer

Count = Literal["window", "causal"]
Layer = TypeVar("Layer", int, NDArray[np.int64])


def node_layer(layer: Layer, is_mlp: Layer, parallel: bool) -> Layer:
    """The node layer that edges start from; they end at the next one (METHOD §1).

    Args:
        layer: block.
        is_mlp: 1 for edges of `MLP_KINDS`, 0 for others.
        parallel: whether a block has one node layer instead of two.

    Example:
        >>> node_layer(3, True, parallel=False), node_layer(3, True, parallel=True)
        (7, 3)
    """
    return layer if parallel else 2 * layer + is_mlp


def most_edges(length: int, heads: int, blocks: int) -> int:
    """Upper bound on the edges of a full graph over `length` tokens, whatever the wiring.

    Example:
        >>> most_edges(2, heads=4, blocks=1)
        18
    """
    return blocks * (3 * length + heads * length * (length + 1) // 2)


def full_edge_counts(
    length: int,
    heads: int,
    windows: Sequence[int | None],
    parallel: bool,
    count: Count = "window",
) -> NDArray[np.int64]:
    """|E_t| of every position of a document: the edges that can reach output t (METHOD §4).

    Args:
        length: number of positions.
        heads: query heads of a block.
        windows: sliding window of each block, None for full attention.
        parallel: whether a block has one node layer instead of two.
        count: "window" counts the edges that exist; "causal" counts every s <= t regardless of the
            window, as the papers' reference does.

    Returns:
        int64 [length].

    Example:
        >>> full_edge_counts(2, heads=4, windows=[None], parallel=False)
        array([ 7, 11])
    """
    position = np.arange(length, dtype=np.int64)
    dense = 2 if parallel else 3  # residual and MLP edges of a token in a block
    # In each block, the targets that can still reach output t are [first, t].
    first = position.copy()
    total = np.zeros(length, dtype=np.int64)
    for window in reversed(windows):
        reach = length if window is None or count == "causal" else window
        degree = dense + heads * np.minimum(position + 1, reach)
        below = np.concatenate([[0], np.cumsum(degree)])
        total += below[position + 1] - below[first]
        first = np.maximum(first - reach + 1, 0)
    return total
