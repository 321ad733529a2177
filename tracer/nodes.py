"""Importances: the weights of all in-edges of a node (METHOD §2)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import torch
from torch import Tensor

from .. import kernels
from ..kernels import (
    AttentionEdges,
    CosineWeight,
    EdgeWeight,
    GivenWeight,
    NormWeight,
    Pattern,
    ProximityWeight,
    RandomWeight,
)
from .batch import BatchPart
from .graph import KINDS

if TYPE_CHECKING:  # reading a store must not import transformers
    from .models import Block, LinearNorm

ImportanceName = Literal["norm_l1", "norm_l2", "proximity", "cosine", "random"]
IMPORTANCES: tuple[str, ...] = get_args(ImportanceName)


@dataclass(frozen=True)
class Node:
    """The nodes of one node layer, one per token, with the weights of all their in-edges."""

    layer: int  # block
    kinds: tuple[str, ...]  # kinds of the E side edges (all but attention)
    edges: AttentionEdges | None  # None for an MLP node
    side: Tensor  # float32 [E, B, T]
    total: Tensor  # float32 [B, T]: Z_t, the divisor of normalised weights


@dataclass(frozen=True)
class AttentionBranch:
    """The clean attention branch of a block."""

    block: "Block"
    pattern: Pattern
    v: Tensor  # [B, G, T, d_v]
    norms: "tuple[LinearNorm, ...]"  # linearised norms that all attention edges pass through


class Importance(Protocol):
    """Weighs the in-edges of nodes.

    Side vectors [B, T, D] already have the final norm folded in where it applies (METHOD §7).
    """

    def attention_node(
        self, layer: int, branch: AttentionBranch, kinds: Sequence[str], side: Sequence[Tensor]
    ) -> tuple[Node, Tensor]:
        """Weigh a node with attention edges; returns it and the attention output [B, H, T, d_v]."""
        ...

    def mlp_node(self, layer: int, kinds: Sequence[str], side: Sequence[Tensor]) -> Node:
        """Weigh the node after a sequential block's MLP half."""
        ...


@dataclass(frozen=True)
class NormImportance:
    """|e|_p over the node's sum of norms: `norm_l1`, `norm_l2`."""

    p: int
    backend: str = "auto"

    def attention_node(
        self, layer: int, branch: AttentionBranch, kinds: Sequence[str], side: Sequence[Tensor]
    ) -> tuple[Node, Tensor]:
        block, norms = branch.block, branch.norms
        matrix = block.folded_w_o(norms) if self.p == 1 else block.folded_root(norms)
        source = kernels.source_norms(branch.v, matrix, self.p, backend=self.backend)
        stats = kernels.attention_stats(branch.pattern, branch.v, source, backend=self.backend)
        target = branch.block.inverse_scale(stats.output)
        mass = stats.mass if target is None else stats.mass * target
        pattern = replace(branch.pattern, lse=stats.lse)
        edges = AttentionEdges(pattern, NormWeight(source, target))
        node = self.mlp_node(layer, kinds, side)
        return replace(node, edges=edges, total=mass + node.total), stats.output

    def mlp_node(self, layer: int, kinds: Sequence[str], side: Sequence[Tensor]) -> Node:
        weights = self._side(side)
        return Node(layer, tuple(kinds), edges=None, side=weights, total=weights.sum(0))

    def _side(self, side: Sequence[Tensor]) -> Tensor:
        return torch.stack([self._norm(vectors) for vectors in side])

    def _norm(self, vectors: Tensor) -> Tensor:
        # Accumulate in float32 or wider without converting the vectors.
        wide = torch.promote_types(vectors.dtype, torch.float32)
        norm: Tensor = torch.linalg.vector_norm(vectors, self.p, -1, dtype=wide)
        return norm.float()


@dataclass(frozen=True)
class VectorImportance:
    """Importances that compare an edge with its node vector: `proximity`, `cosine`."""

    name: Literal["proximity", "cosine"]
    backend: str = "auto"

    def attention_node(
        self, layer: int, branch: AttentionBranch, kinds: Sequence[str], side: Sequence[Tensor]
    ) -> tuple[Node, Tensor]:
        stats = kernels.attention_stats(branch.pattern, branch.v, backend=self.backend)
        w_o = branch.block.folded_w_o(branch.norms)
        target = branch.block.inverse_scale(stats.output)
        # The node vector is the sum of its edges, so without the projection's bias (METHOD §1).
        merged = stats.output.transpose(1, 2).flatten(2)
        attention = kernels.product(merged.flatten(0, 1), _merged(w_o).T)
        attention = attention.view(*merged.shape[:2], -1)
        if target is not None:
            attention = attention * target[..., None]
        vectors = [vector.float() for vector in side]
        node_vector = sum(vectors, attention)
        weight = self._weight(branch, w_o, node_vector, target)
        edges = AttentionEdges(replace(branch.pattern, lse=stats.lse), weight)
        weights = self._side(vectors, node_vector)
        total = torch.ones_like(weights[0])
        if self.name == "proximity":
            total = weights.sum(0) + kernels.edge_mass(edges, backend=self.backend)
        node = Node(layer, tuple(kinds), edges=edges, side=weights, total=total)
        return node, stats.output

    def mlp_node(self, layer: int, kinds: Sequence[str], side: Sequence[Tensor]) -> Node:
        vectors = [vector.float() for vector in side]
        weights = self._side(vectors, sum(vectors[1:], vectors[0]))
        total = weights.sum(0) if self.name == "proximity" else torch.ones_like(weights[0])
        return Node(layer, tuple(kinds), edges=None, side=weights, total=total)

    def _weight(
        self, branch: AttentionBranch, w_o: Tensor, node_vector: Tensor, target: Tensor | None
    ) -> EdgeWeight:
        v = branch.v
        if self.name == "proximity":
            return ProximityWeight(node_vector, v, w_o, target)
        root = branch.block.folded_root(branch.norms)
        norms = kernels.source_norms(v, root, 2, backend=self.backend)
        inverse = torch.where(norms > 0, 1 / norms, 0.0)
        direction = kernels.product(_unit(node_vector).flatten(0, 1), _merged(w_o))
        by_head = direction.view(*node_vector.shape[:2], len(w_o), -1).transpose(1, 2)
        return CosineWeight(by_head, inverse, v)

    def _side(self, side: Sequence[Tensor], node_vector: Tensor) -> Tensor:
        if self.name == "proximity":
            # |n| - |n - e| without the difference, in which a small e would be lost.
            negative = node_vector < 0
            twice = 2 * node_vector.abs() + (node_vector - node_vector)  # the latter: 0, or NaN
            along = (torch.where(negative, -vector, vector) for vector in side)
            gains = [torch.minimum(gain, twice - gain).sum(-1) for gain in along]
            return torch.stack(gains).clamp(min=0)
        cosines = [(_unit(vector) * _unit(node_vector)).sum(-1).clamp(-1, 1) for vector in side]
        return (1 + torch.stack(cosines)) / 2


def _merged(w_o: Tensor) -> Tensor:
    """Reshape [H, D, d_v] to the model's own layout [D, H * d_v]; a view if it has that layout."""
    return w_o.transpose(0, 1).flatten(1)


def _unit(vectors: Tensor) -> Tensor:
    """Scale vectors [..., D] to length 1; zero vectors stay zero, so their cosine is 0."""
    norms = vectors.norm(2, -1, keepdim=True)
    return torch.where(norms > 0, vectors / norms, 0.0)


@dataclass(frozen=True)
class RandomImportance:
    """Uniform in [0, 1), from a hash of seed, edge and position: the `random` control."""

    seed: int
    positions: Tensor  # int64 [B, T]
    backend: str = "auto"

    def attention_node(
        self, layer: int, branch: AttentionBranch, kinds: Sequence[str], side: Sequence[Tensor]
    ) -> tuple[Node, Tensor]:
        stats = kernels.attention_stats(branch.pattern, branch.v, backend=self.backend)
        here = self._on(branch.pattern.device)
        edges = here.edges(layer, replace(branch.pattern, lse=stats.lse))
        return replace(here.mlp_node(layer, kinds, side), edges=edges), stats.output

    def mlp_node(self, layer: int, kinds: Sequence[str], side: Sequence[Tensor]) -> Node:
        here = self._on(side[0].device)
        weights = torch.stack([here.side(layer, kind) for kind in kinds])
        total = torch.ones_like(weights[0])
        return Node(layer, tuple(kinds), edges=None, side=weights, total=total)

    def _on(self, device: torch.device) -> "RandomImportance":
        return replace(self, positions=self.positions.to(device))

    def edges(self, layer: int, pattern: Pattern) -> AttentionEdges:
        """The attention edges of a block with random weights."""
        return AttentionEdges(pattern, self.weight(layer))

    def weight(self, layer: int) -> RandomWeight:
        """The random weights of a block's attention edges."""
        return RandomWeight(self.seed, 2 * layer, self.positions)

    def side(self, layer: int, kind: str) -> Tensor:
        """float32 [B, T]: the random weight of each token's side edge of a kind."""
        # Fill on the device: copying a scalar there would synchronise.
        index = torch.full((), KINDS.index(kind), device=self.positions.device)
        return kernels.hash_uniform(self.seed, 2 * layer + 1, index, self.positions)


@dataclass(frozen=True)
class GivenImportance:
    """Explicit weights by layer and kind: how the s-Trace's order of edges enters the lanes."""

    weights: dict[str, Tensor]  # attn [L, H, T, T]; others [L, T]
    backend: str = "auto"

    def attention_node(
        self, layer: int, branch: AttentionBranch, kinds: Sequence[str], side: Sequence[Tensor]
    ) -> tuple[Node, Tensor]:
        stats = kernels.attention_stats(branch.pattern, branch.v, backend=self.backend)
        given = GivenWeight(self.weights["attn"][layer][None].to(branch.pattern.device))
        edges = AttentionEdges(replace(branch.pattern, lse=stats.lse), given)
        return replace(self.mlp_node(layer, kinds, side), edges=edges), stats.output

    def mlp_node(self, layer: int, kinds: Sequence[str], side: Sequence[Tensor]) -> Node:
        weights = torch.stack([self.weights[kind][layer][None] for kind in kinds])
        weights = weights.to(side[0].device)
        total = torch.ones_like(weights[0])
        return Node(layer, tuple(kinds), edges=None, side=weights, total=total)


def importance(
    name: ImportanceName, seed: int, positions: Tensor, backend: str = "auto"
) -> Importance:
    """Look up an importance by name; `seed` and `positions` [B, T] are for the random one."""
    match name:
        case "norm_l1":
            return NormImportance(1, backend)
        case "norm_l2":
            return NormImportance(2, backend)
        case "proximity":
            return VectorImportance("proximity", backend)
        case "cosine":
            return VectorImportance("cosine", backend)
        case "random":
            return RandomImportance(seed, positions, backend)


def of_part(importance: Importance, part: BatchPart) -> Importance:
    """Restrict an importance to a part of the batch: slices the random one's positions."""
    if isinstance(importance, RandomImportance):
        return replace(importance, positions=importance.positions[part.rows, : part.columns])
    return importance
