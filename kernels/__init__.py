"""The ops of densitrace: one function each, with its contract; backends are picked by `dispatch`.

Shapes: B sequences, T tokens, H query heads, G key/value heads, d_k and d_v their sizes, D hidden,
K strata, V vocabulary, E side edges (the in-edges of a node that are not attention: residual, MLP).
Cuts are ordered with the sparsest stratum first, so cuts[0] >= cuts[1] >= ...; an edge is in
stratum k iff its unnormalised weight > cuts[k], and its *level* is the number of cuts it clears.
"""

from collections.abc import Iterator, Sequence, Sized

import torch
from torch import Tensor

from . import dispatch, reference
from .constants import on_device
from .edges import (
    AttentionEdges,
    CosineWeight,
    EdgeWeight,
    GivenWeight,
    NormWeight,
    Pattern,
    ProximityWeight,
    RandomWeight,
)
from .hashing import hash_uniform
from .results import AttentionStats, EdgeLevels, EdgeTable, OutputErrors

__all__ = [
    "OPS",
    "AttentionEdges",
    "AttentionStats",
    "CosineWeight",
    "EdgeLevels",
    "EdgeTable",
    "EdgeWeight",
    "GivenWeight",
    "NormWeight",
    "OutputErrors",
    "Pattern",
    "ProximityWeight",
    "RandomWeight",
    "attention_stats",
    "backends",
    "bottleneck",
    "collect_edges",
    "edge_levels",
    "edge_mass",
    "edge_weights",
    "fraction_cuts",
    "hash_uniform",
    "lane_attention",
    "nucleus_cuts",
    "output_errors",
    "product",
    "random_cuts",
    "source_norms",
    "trace_sizes",
]


def source_norms(v: Tensor, w_o: Tensor, p: int, *, backend: str = "auto") -> Tensor:
    """Norm of what each source token would send through each head: nu of METHOD §2.

    Args:
        v: [B, G, T, d_v] values.
        w_o: [H, D, d_v] output projection by head, with a norm's gamma folded in. For p = 2 any
            [H, n, d_v] with the same Gram matrices w_o^T w_o gives the same norms.
        p: 1 or 2.

    Returns:
        float32 [B, H, T]: norm_p(w_o[h] v[g(h), s]).

    Example:
        >>> source_norms(torch.ones(1, 1, 2, 3), torch.ones(4, 5, 3), p=1)[0, 0]
        tensor([15., 15.])
    """
    return dispatch.pick(reference.source_norms, v.device, backend)(v, w_o, p)


def attention_stats(
    pattern: Pattern, v: Tensor, source: Tensor | None = None, *, backend: str = "auto"
) -> AttentionStats:
    """Attention output, log-sum-exp and edge mass in one sweep: METHOD §2.

    Args:
        pattern: queries and keys; its `lse` is not read.
        v: [B, G, T, d_v] values.
        source: float32 [B, H, T] source norms, or None where no edge mass is wanted.

    Returns:
        AttentionStats: output [B, H, T, d_v], lse [B, H, T], mass [B, T], all float32.
    """
    return dispatch.pick(reference.attention_stats, v.device, backend)(pattern, v, source)


def edge_mass(edges: AttentionEdges, *, backend: str = "auto") -> Tensor:
    """Sum of the weights of all attention edges into each target: float32 [B, T]."""
    return dispatch.pick(reference.edge_mass, edges.pattern.device, backend, edges)(edges)


def edge_weights(edges: AttentionEdges, *, backend: str = "auto") -> Tensor:
    """All unnormalised weights, float32 [B, H, T target, T source], NaN where no edge: small T."""
    return dispatch.pick(reference.edge_weights, edges.pattern.device, backend, edges)(edges)


def nucleus_cuts(
    edges: AttentionEdges | None,
    side: Tensor,
    masses: Sequence[float],
    total: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """The cut under which the heaviest in-edges of each node sum to at least p of its total.

    The fewest edges in descending weight, ties with the last one all kept, at least one edge, none
    of weight 0: METHOD §3. The cut lies half-way to the next lighter weight.

    Args:
        edges: the attention edges into the nodes; None where there are none (an MLP node).
        side: float32 [E, B, T] weights of the other in-edges.
        masses: p of each stratum, ascending; K <= 255.
        total: float32 [B, T], the Z that p is a share of.

    Returns:
        float32 [K, B, T].

    Raises:
        ValueError: more strata than levels of eight bits tell apart.
    """
    _check_strata(masses)
    wanted = on_device(tuple(masses), torch.float64, side.device)
    pick = dispatch.pick(reference.nucleus_cuts, side.device, backend, edges)
    return pick(edges, side, wanted, total)


def fraction_cuts(
    edges: AttentionEdges | None,
    side: Tensor,
    fractions: Sequence[float],
    *,
    backend: str = "auto",
) -> Tensor:
    """The cut under which ceil(s * n) of a node's n in-edges are kept, the heaviest: METHOD §3.

    An edge that ties with the heaviest one left out is left out too. Arguments, result and errors
    as in `nucleus_cuts`.
    """
    _check_strata(fractions)
    wanted = on_device(tuple(fractions), torch.float64, side.device)
    pick = dispatch.pick(reference.fraction_cuts, side.device, backend, edges)
    return pick(edges, side, wanted)


def random_cuts(
    edges: AttentionEdges, eligible: Tensor, counts: Tensor, *, backend: str = "auto"
) -> Tensor:
    """The cut of a `RandomWeight` above which lie `counts` of a block's attention edges.

    Args:
        edges: of one block, with a RandomWeight.
        eligible: bool [B, T], the targets whose edges may be drawn.
        counts: int64 [K, B], edges to keep in each sequence.

    Returns:
        float32 [K, B]; the count is met exactly but for ties among 24-bit weights.
    """
    pick = dispatch.pick(reference.random_cuts, counts.device, backend, edges)
    return pick(edges, eligible, counts)


def _check_strata(by_stratum: Sized) -> None:
    strata, most = len(by_stratum), torch.iinfo(torch.uint8).max
    if strata > most:
        raise ValueError(f"{strata} strata, where levels of eight bits tell {most} apart")


def edge_levels(edges: AttentionEdges, cuts: Tensor, *, backend: str = "auto") -> EdgeLevels:
    """Level map S and in-degrees of a block's attention edges: METHOD §4.

    Args:
        edges: of one block.
        cuts: float32 [K, B, T], K <= 255.

    Returns:
        EdgeLevels: levels uint8 [B, T, T] (0 above the diagonal), degrees int32 [K, B, T].

    Raises:
        ValueError: more strata than levels of eight bits tell apart.
    """
    _check_strata(cuts)
    return dispatch.pick(reference.edge_levels, cuts.device, backend, edges)(edges, cuts)


def lane_attention(
    edges: AttentionEdges,
    cuts: Tensor,
    v: Tensor,
    lanes: Pattern | None = None,
    *,
    invert: bool = False,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> Tensor:
    """Attention output of the masked lanes: METHOD §5.

    The softmax is over all sources; after it an entry is kept iff the *clean* weight clears the
    lane's cut. No mask is stored.

    Args:
        edges: the clean lane's, with `pattern.lse` known.
        cuts: float32 [K, B, T].
        v: [K, B, G, T, d_v] the lanes' values.
        lanes: the lanes' own queries [K, B, H, T, d_k] and keys [K, B, G, T, d_k] (live), or None:
            the clean attention weights serve all lanes (frozen).
        invert: keep what does not clear the cut instead.
        dtype: of the result, to which float32 sums are rounded once: what is read next.

    Returns:
        [K, B, H, T, d_v] in `dtype`.
    """
    pick = dispatch.pick(reference.lane_attention, v.device, backend, edges)
    return pick(edges, cuts, v, lanes, invert, dtype)


def collect_edges(
    edges: AttentionEdges, cuts: Tensor, *, backend: str = "auto"
) -> Iterator[EdgeTable]:
    """The attention edges of the last stratum, table after table, each of bounded size: METHOD §3.

    Together they hold every edge of the stratum once, each with the first stratum that holds it,
    ordered by (sequence, head, target, source) from the first table to the last: put one after the
    other they are what a store has. A table is made when it is asked for; none is empty.

    Args:
        edges: of one block; the iterator reads them, and cuts, until it has ended.
        cuts: float32 [K, B, T], K <= 255; +inf at targets outside a trace.

    Returns:
        Tables of at most 2^21 edges (reference, cpu) or 2^23 (cuda), of 19 bytes each, or of the
        edges of one target of a head. Under cuda the device holds at most 23 * 2^23 bytes (184 MiB)
        for a table and the weights that it is made of, besides float32 copies of what they are
        weighed by and a few numbers for each target of a head.

    Raises:
        BackendError: the backend asked for lacks the op, or does not know the kind of edge weight.
        ValueError: more strata than levels of eight bits tell apart.

    Example:
        >>> token = torch.zeros(1, 1, 2, 1)
        >>> edges = AttentionEdges(Pattern(token, token, 1.0), GivenWeight(torch.ones(1, 1, 2, 2)))
        >>> [table.source.tolist() for table in collect_edges(edges, torch.zeros(1, 1, 2))]
        [[0, 0, 1]]
    """
    _check_strata(cuts)
    return dispatch.pick(reference.collect_edges, cuts.device, backend, edges)(edges, cuts)


def bottleneck(reach: Tensor, levels: Tensor, *, backend: str = "auto") -> Tensor:
    """The (max, min) product of METHOD §4: bottlenecks one node layer further down.

    Args:
        reach: uint8 [B, T, T], beta of output t and node j, lower triangular.
        levels: uint8 [B, T, T], highest level of the edges from token i to token j, lower
            triangular.

    Returns:
        uint8 [B, T, T]: the largest min(reach[t, j], levels[j, i]) over i <= j <= t.
    """
    return dispatch.pick(reference.bottleneck, reach.device, backend)(reach, levels)


def trace_sizes(reach: Tensor, degrees: Tensor, *, backend: str = "auto") -> Tensor:
    """Edges of every trace that enter one node layer: METHOD §4.

    Args:
        reach: uint8 [B, T, T], beta of output t and node j.
        degrees: int32 [K, B, T], kept in-edges of node j at stratum k, sparsest first; K <= 255.

    Returns:
        int64 [K, B, T]: sum over j of degrees[k, j] where reach[t, j] >= K - k.

    Raises:
        ValueError: more strata than levels of eight bits tell apart.
    """
    _check_strata(degrees)
    return dispatch.pick(reference.trace_sizes, reach.device, backend)(reach, degrees)


def output_errors(
    hidden: Tensor,
    lanes: Tensor,
    unembedding: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    next_ids: Tensor,
    backend: str = "auto",
) -> OutputErrors:
    """Distances of the lanes' next-token distributions from the clean one: METHOD §6.

    Args:
        hidden: [M, D] final-normed clean states of M tokens.
        lanes: [K, M, D] those of the lanes.
        unembedding: [V, D]; bias [V] or None.
        scale: factor on the logits.
        softcap: tanh cap on the logits, or None.
        next_ids: int64 [M], the token that follows; -1 where there is none.

    Returns:
        OutputErrors; the [K, M, V] logits are never held at once.
    """
    pick = dispatch.pick(reference.output_errors, hidden.device, backend)
    return pick(hidden, lanes, unembedding, bias, scale, softcap, next_ids)


def product(left: Tensor, right: Tensor) -> Tensor:
    """A matrix product as precise as one in float32.

    No backend is asked for: the device does it as it can. A GPU with `cuda` does it on its matrix
    units, in pieces of bfloat16.

    Args:
        left: [n, d], of any dtype.
        right: [d, m].

    Returns:
        float32 [n, m].
    """
    return dispatch.pick(reference.product, left.device, "auto")(left, right)


WITHOUT_BACKENDS = ("backends", "hash_uniform", "product")  # what no backend is asked for
OPS = tuple(name for name in __all__ if name.islower() and name not in WITHOUT_BACKENDS)


def backends(device: torch.device | str = "cpu") -> dict[str, str]:
    """Which backend serves each op on a device under `backend="auto"`."""
    return {op: dispatch.serving(op, device) for op in OPS}
