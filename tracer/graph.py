"""Node and edge geometry (METHOD §1) and edge counts (§4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

KINDS = ("attn", "res_attn", "mlp", "res_mlp")  # edge kinds, in the order of every topology array
KIND_NAMES = ("attention", "residual-attention", "mlp", "residual-mlp")

QUARTILES = 4  # of depth, by which a store counts the edges of traces
MLP_KINDS = ("mlp", "res_mlp")  # in a sequential block, the edges into its second node layer

Count = Literal["window", "causal"]
Layer = TypeVar("Layer", int, NDArray[np.int64])


@dataclass(frozen=True)
class Geometry:
    """Which node layers the edges of each block connect (METHOD §1).

    Example:
        >>> Geometry.of_blocks(3).node_layers
        6
        >>> Geometry(parallel=False, value_blocks=(0, 1, 0)).attention_source(2)
        0
    """

    parallel: bool  # whether a block has one node layer instead of two
    value_blocks: tuple[int, ...]  # of each block: whose keys and values its attention reads

    @classmethod
    def of_blocks(cls, blocks: int, parallel: bool = False) -> "Geometry":
        """The geometry of blocks that read their own keys and values."""
        return cls(parallel, tuple(range(blocks)))

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> "Geometry":
        """Rebuild a geometry from what `to_json` returns, among other entries."""
        own = cls.of_blocks(json["blocks"], json["parallel"])
        return replace(own, value_blocks=tuple(json.get("value_blocks", own.value_blocks)))

    def to_json(self) -> dict[str, Any]:
        """A description for JSON; blocks that read their own keys and values go without saying."""
        json: dict[str, Any] = {"blocks": self.blocks, "parallel": self.parallel}
        shared = self != Geometry.of_blocks(self.blocks, self.parallel)
        return json | ({"value_blocks": list(self.value_blocks)} if shared else {})

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.value_blocks)

    @property
    def node_layers(self) -> int:
        """Number of node layers above the embedding."""
        return self.blocks if self.parallel else 2 * self.blocks

    def below(self, layer: Layer, is_mlp: Layer) -> Layer:
        """The node layer under the one where edges end: where all but attention edges start.

        Args:
            layer: block.
            is_mlp: 1 for edges of `MLP_KINDS`, 0 for others.
        """
        return layer if self.parallel else 2 * layer + is_mlp

    def attention_source(self, layer: int) -> int:
        """The node layer where the attention edges of a block start."""
        return self.below(self.value_blocks[layer], 0)

    def source(self, kind: str, layer: int) -> int:
        """The node layer where the edges of a kind and block start."""
        return (
            self.attention_source(layer) if kind == "attn" else self.below(layer, kind in MLP_KINDS)
        )

    def output_alone(self, layer: int) -> bool:
        """Whether from the nodes of a block on only those of its own token lead to an output."""
        return all(block <= layer for block in self.value_blocks[layer + 1 :])


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
    geometry: Geometry,
    count: Count = "window",
) -> NDArray[np.int64]:
    """|E_t| of every position of a document: the edges that can reach output t (METHOD §4).

    Args:
        length: number of positions.
        heads: query heads of a block.
        windows: sliding window of each block, None for full attention.
        geometry: of the graph.
        count: "window" counts the edges that exist; "causal" counts every s <= t regardless of the
            window, as the papers' reference does.

    Returns:
        int64 [length].

    Example:
        >>> full_edge_counts(2, heads=4, windows=[None], geometry=Geometry.of_blocks(1))
        array([ 7, 11])
    """
    position = np.arange(length, dtype=np.int64)
    dense = 2 if geometry.parallel else 3  # residual and MLP edges of a token in a block
    # At each block's input, the tokens that can reach output t are [first, t], and of each block
    # whose keys and values others read, at least [read[block], t].
    first = position.copy()
    read: dict[int, NDArray[np.int64]] = {}
    total = np.zeros(length, dtype=np.int64)
    for block in reversed(range(geometry.blocks)):
        window, values = windows[block], geometry.value_blocks[block]
        reach = length if window is None or count == "causal" else window
        degree = dense + heads * np.minimum(position + 1, reach)
        below = np.concatenate([[0], np.cumsum(degree)])
        total += below[position + 1] - below[first]
        read[values] = np.minimum(read.get(values, position), np.maximum(first - reach + 1, 0))
        first = np.minimum(first, read.pop(block, position))
    return total
