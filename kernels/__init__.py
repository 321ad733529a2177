"""The ops of densitrace: one function each, with its contract; `dispatch` picks the backend.

Shapes: B sequences, T tokens, H query heads, G key/value heads, d_k and d_v their sizes, D hidden,
K strata, V vocabulary, E side edges (the in-edges of a node that are not attention: residual, MLP).
Queries, keys and values are float32, bfloat16 or float16; sums are float32.

Cuts are ordered with the sparsest stratum first, so cuts[0] >= cuts[1] >= ...; an edge is in
stratum k iff its unnormalised weight > cuts[k], and its *level* is the number of cuts it clears.

`backend` is "auto" (the first of the device's backends that serves the op) or one of
`dispatch.BACKENDS`. Tensors of a wrong shape, or on different devices, are refused with an
InputError that names the argument; no op computes gradients. `cpu` also needs `pattern.lse` for
every weight that follows from attention; the others compute it where it is None.
"""

from collections.abc import Iterator, Sequence, Sized
from dataclasses import replace

import torch
from torch import Tensor

from . import dispatch, reference
from .constants import on_device
from .contracts import check, check_dtype, of_edges, of_pattern, op, refusal
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


@op
def source_norms(v: Tensor, w_o: Tensor, p: int, *, backend: str = "auto") -> Tensor:
    """Norm of what each source token sends through each head: nu of METHOD §2.

    Args:
        v: [B, G, T, d_v] values.
        w_o: [H, D, d_v] output projection by head, with a norm's gamma folded in. For p = 2 any
            [H, n, d_v] with the same Gram matrices w_o^T w_o gives the same norms.
        p: 1 or 2.

    Returns:
        float32 [B, H, T]: norm_p(w_o[h] v[g(h), s]).

    Raises:
        BackendError: `backend` is not built or lacks the op.
        InputError: shapes do not fit.

    Example:
        >>> source_norms(torch.ones(1, 1, 2, 3), torch.ones(4, 5, 3), p=1)[0, 0]
        tensor([15., 15.])
    """
    check({"v": (v, "B G T d_v"), "w_o": (w_o, "H D d_v")})
    if p not in (1, 2):
        raise refusal(f"p={p!r}; wanted 1 or 2")
    return dispatch.pick(reference.source_norms, v.device, backend)(v, w_o, p)


@op
def attention_stats(
    pattern: Pattern, v: Tensor, source: Tensor | None = None, *, backend: str = "auto"
) -> AttentionStats:
    """Attention output, log-sum-exp and edge mass in one sweep: METHOD §2.

    Args:
        pattern: queries [B, H, T, d_k] and keys [B, G, T, d_k]; `lse` is not read.
        v: [B, G, T, d_v] values.
        source: float32 [B, H, T] source norms; None if no edge mass is needed.

    Returns:
        AttentionStats: output [B, H, T, d_v], lse [B, H, T], mass [B, T], all float32. The mass is
        0 without `source`.

    Raises:
        BackendError: `backend` is not built or lacks the op.
        InputError: shapes do not fit; under triton, `pattern.scale` is not above 0.

    Example:
        >>> token = torch.zeros(1, 1, 2, 4)
        >>> stats = attention_stats(Pattern(token, token, 0.5), torch.ones(1, 1, 2, 3))
        >>> stats.output.shape, stats.lse
        (torch.Size([1, 1, 2, 3]), tensor([[[0.0000, 0.6931]]]))
    """
    check(of_pattern(pattern) | {"v": (v, "B G T d_v"), "source": (source, "B H T?")})
    return dispatch.pick(reference.attention_stats, v.device, backend)(pattern, v, source)


@op
def edge_mass(edges: AttentionEdges, *, backend: str = "auto") -> Tensor:
    """Sum of the weights of all attention edges into each target, negative weights left out.

    Args:
        edges: attention edges of one block, B sequences of T tokens.

    Returns:
        float32 [B, T].

    Raises:
        BackendError: `backend` is not built, or does not serve the op for this kind of edge weight.
        InputError: shapes do not fit, or `pattern.lse` is missing.

    Example:
        >>> token = torch.zeros(1, 1, 2, 4)
        >>> edges = AttentionEdges(Pattern(token, token, 0.5), GivenWeight(torch.ones(1, 1, 2, 2)))
        >>> edge_mass(edges)
        tensor([[1., 2.]])
    """
    check(of_edges(edges))
    return dispatch.pick(reference.edge_mass, edges.pattern.device, backend, edges)(edges)


@op
def edge_weights(edges: AttentionEdges, *, backend: str = "auto") -> Tensor:
    """All unnormalised weights of attention edges, written out: for small T.

    Args:
        edges: attention edges of one block, B sequences of T tokens in H heads.

    Returns:
        float32 [B, H, T target, T source]; NaN where there is no edge.

    Raises:
        BackendError: `backend` is not built, or does not serve the op for this kind of edge weight.
        InputError: shapes do not fit, or `pattern.lse` is missing.

    Example:
        >>> token = torch.zeros(1, 1, 2, 4)
        >>> edges = AttentionEdges(Pattern(token, token, 0.5), GivenWeight(torch.ones(1, 1, 2, 2)))
        >>> edge_weights(edges)[0, 0]
        tensor([[1., nan],
                [1., 1.]])
    """
    check(of_edges(edges))
    return dispatch.pick(reference.edge_weights, edges.pattern.device, backend, edges)(edges)


@op
def nucleus_cuts(
    edges: AttentionEdges | None,
    side: Tensor,
    masses: Sequence[float],
    total: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """The cut of each node above which its heaviest in-edges sum to at least p of its total.

    Kept are the fewest edges in descending weight, with all ties of the last one; at least one
    edge, none of weight 0: METHOD §3. The cut lies half-way to the next lighter weight.

    Args:
        edges: the attention edges into the nodes; None for nodes without any (MLP nodes).
        side: float32 [E, B, T] weights of the other in-edges.
        masses: p of each stratum, ascending; K <= 255.
        total: float32 [B, T], the Z that p is a share of.

    Returns:
        float32 [K, B, T].

    Raises:
        BackendError: `backend` is not built, or does not serve the op for this kind of edge weight.
        InputError: more than 255 strata, shapes do not fit, or `pattern.lse` is missing.

    Example:
        >>> side = torch.tensor([3.0, 1.0]).view(2, 1, 1)
        >>> nucleus_cuts(None, side, [0.5, 0.9], total=side.sum(0)).flatten()
        tensor([2., 0.])
    """
    _check_strata(masses)
    check(of_edges(edges) | {"side": (side, "E B T"), "total": (total, "B T")})
    wanted = on_device(tuple(masses), torch.float64, side.device)
    pick = dispatch.pick(reference.nucleus_cuts, side.device, backend, edges)
    return pick(edges, side, wanted, total)


@op
def fraction_cuts(
    edges: AttentionEdges | None,
    side: Tensor,
    fractions: Sequence[float],
    *,
    backend: str = "auto",
) -> Tensor:
    """The cut of each node above which the heaviest ceil(s * n) of its n in-edges lie: METHOD §3.

    An edge that ties with the heaviest one left out is left out too. The cut lies half-way to the
    next lighter weight; it is -1 where all edges are kept.

    Args:
        edges: the attention edges into the nodes; None for nodes without any (MLP nodes).
        side: float32 [E, B, T] weights of the other in-edges.
        fractions: s of each stratum, ascending; K <= 255.

    Returns:
        float32 [K, B, T].

    Raises:
        BackendError: `backend` is not built, or does not serve the op for this kind of edge weight.
        InputError: more than 255 strata, shapes do not fit, or `pattern.lse` is missing.

    Example:
        >>> side = torch.tensor([3.0, 1.0]).view(2, 1, 1)
        >>> fraction_cuts(None, side, [0.5, 1.0]).flatten()
        tensor([ 2., -1.])
    """
    _check_strata(fractions)
    check(of_edges(edges) | {"side": (side, "E B T")})
    wanted = on_device(tuple(fractions), torch.float64, side.device)
    pick = dispatch.pick(reference.fraction_cuts, side.device, backend, edges)
    return pick(edges, side, wanted)


@op
def random_cuts(
    edges: AttentionEdges, eligible: Tensor, counts: Tensor, *, backend: str = "auto"
) -> Tensor:
    """The cut of each sequence above which `counts` randomly weighted edges lie.

    Args:
        edges: attention edges of one block, with a RandomWeight.
        eligible: bool [B, T], the targets whose edges may be drawn.
        counts: int64 [K, B], how many edges to keep in each sequence.

    Returns:
        float32 [K, B], +inf for a count of 0. The count is exact except for ties of the 24-bit
        weights.

    Raises:
        BackendError: `backend` is not built or lacks the op.
        InputError: shapes do not fit, or the weight is no RandomWeight.

    Example:
        >>> token, positions = torch.zeros(1, 1, 2, 4), torch.arange(2)[None]
        >>> edges = AttentionEdges(Pattern(token, token, 0.5), RandomWeight(0, 0, positions))
        >>> cuts = random_cuts(edges, torch.ones(1, 2, dtype=torch.bool), torch.tensor([[2]]))
        >>> (edge_weights(edges) > cuts[0, 0]).sum()
        tensor(2)
    """
    check(of_edges(edges) | {"eligible": (eligible, "B T"), "counts": (counts, "K B")})
    if not isinstance(edges.weight, RandomWeight):
        raise refusal(f"weight is a {type(edges.weight).__name__}; wanted a RandomWeight")
    pick = dispatch.pick(reference.random_cuts, counts.device, backend, edges)
    return pick(edges, eligible, counts)


def _check_strata(by_stratum: Sized) -> None:
    if not isinstance(by_stratum, Sized):
        raise refusal(f"{by_stratum!r} is given for all strata; wanted a list of a number for each")
    strata, limit = len(by_stratum), torch.iinfo(torch.uint8).max
    if strata > limit:
        raise refusal(f"{strata} strata, but eight-bit levels hold at most {limit}")


@op
def edge_levels(edges: AttentionEdges, cuts: Tensor, *, backend: str = "auto") -> EdgeLevels:
    """Level map S and in-degrees of the attention edges of a block: METHOD §4.

    Args:
        edges: attention edges of one block, B sequences of T tokens.
        cuts: float32 [K, B, T], K <= 255.

    Returns:
        EdgeLevels: levels uint8 [B, T, T] (0 above the diagonal), degrees int32 [K, B, T].

    Raises:
        BackendError: `backend` is not built, or does not serve the op for this kind of edge weight.
        InputError: more than 255 strata, shapes do not fit, or `pattern.lse` is missing.

    Example:
        >>> token = torch.zeros(1, 1, 2, 4)
        >>> edges = AttentionEdges(Pattern(token, token, 0.5), GivenWeight(torch.ones(1, 1, 2, 2)))
        >>> result = edge_levels(edges, torch.tensor([[[1.5, 1.5]], [[0.5, 0.5]]]))
        >>> result.levels[0], result.degrees[:, 0]
        (tensor([[1, 0],
                [1, 1]], dtype=torch.uint8), tensor([[0, 0],
                [1, 2]], dtype=torch.int32))
    """
    check(of_edges(edges) | {"cuts": (cuts, "K B T")})
    _check_strata(cuts)
    return dispatch.pick(reference.edge_levels, cuts.device, backend, edges)(edges, cuts)


@op
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

    The softmax is over all sources; after it an entry is kept iff its *clean* weight clears the
    lane's cut. No mask is stored.

    Args:
        edges: the clean lane's, with `pattern.lse` known.
        cuts: float32 [K, B, T].
        v: [K, B, G, T, d_v] values of the lanes.
        lanes: queries [K, B, H, T, d_k] and keys [K, B, G, T, d_k] of the lanes (live), all else
            being as in `edges.pattern`; None to use the clean attention weights for all lanes
            (frozen).
        invert: keep the entries that do not clear the cut instead.
        dtype: of the result; the float32 sums are rounded to it once.

    Returns:
        [K, B, H, T, d_v] in `dtype`.

    Raises:
        BackendError: `backend` is not built, or does not serve the op for this kind of edge weight.
        InputError: shapes do not fit, or `pattern.lse` is missing.

    Example:
        >>> token = torch.zeros(1, 1, 2, 4)
        >>> pattern = Pattern(token, token, 0.5, lse=torch.tensor([[[1.0, 2.0]]]).log())
        >>> edges = AttentionEdges(pattern, GivenWeight(torch.eye(2)[None, None]))
        >>> lane_attention(edges, torch.zeros(1, 1, 2), torch.ones(1, 1, 1, 2, 3))[0, 0, 0]
        tensor([[1.0000, 1.0000, 1.0000],
                [0.5000, 0.5000, 0.5000]])
    """
    given = of_edges(edges) | {"cuts": (cuts, "K B T"), "v": (v, "K B G T d_u")}
    if lanes is not None:
        given |= {"lanes.q": (lanes.q, "K B H T d_k"), "lanes.k": (lanes.k, "K B G T d_k")}
        lanes = replace(edges.pattern, q=lanes.q, k=lanes.k, lse=None)
    check(given)
    pick = dispatch.pick(reference.lane_attention, v.device, backend, edges)
    return pick(edges, cuts, v, lanes, invert, dtype)


@op
def collect_edges(
    edges: AttentionEdges, cuts: Tensor, *, backend: str = "auto"
) -> Iterator[EdgeTable]:
    """The attention edges that the densest stratum keeps, in tables of bounded size: METHOD §3.

    The tables together hold every edge of that stratum once, each with the sparsest stratum that
    keeps it, ordered by (sequence, head, target, source) across tables, as in the store. A table is
    made when the iterator is advanced; none is empty.

    Args:
        edges: attention edges of one block; `edges` and `cuts` are read until the iterator ends.
        cuts: float32 [K, B, T], K <= 255; +inf at targets outside a trace.

    Returns:
        Tables of 19 bytes an edge, with at most 2^21 edges each (reference on a GPU: 2^24; cuda:
        2^23), unless one target of one head has more. Under cuda a table and the weights it is made
        from take at most 23 * 2^23 bytes (184 MiB) of the device, in addition to float32 copies of
        the weights' inputs and a few numbers for each target of a head.

    Raises:
        BackendError: `backend` is not built, or does not serve the op for this kind of edge weight.
        InputError: more than 255 strata, shapes do not fit, or `pattern.lse` is missing.

    Example:
        >>> token = torch.zeros(1, 1, 2, 1)
        >>> edges = AttentionEdges(Pattern(token, token, 1.0), GivenWeight(torch.ones(1, 1, 2, 2)))
        >>> [table.source.tolist() for table in collect_edges(edges, torch.zeros(1, 1, 2))]
        [[0, 0, 1]]
    """
    check(of_edges(edges) | {"cuts": (cuts, "K B T")})
    _check_strata(cuts)
    return dispatch.pick(reference.collect_edges, cuts.device, backend, edges)(edges, cuts)


@op
def bottleneck(reach: Tensor, levels: Tensor, *, backend: str = "auto") -> Tensor:
    """The (max, min) product of METHOD §4: bottlenecks one node layer further down.

    Args:
        reach: uint8 [B, T, T], beta of output t and node j, lower triangular.
        levels: uint8 [B, T, T], highest level of the edges from token i to token j, lower
            triangular.

    Returns:
        uint8 [B, T, T]: the largest min(reach[t, j], levels[j, i]) over i <= j <= t.

    Raises:
        BackendError: `backend` is not built or lacks the op.
        InputError: shapes do not fit.

    Example:
        >>> reach = torch.tensor([[[2, 0], [1, 2]]], dtype=torch.uint8)
        >>> levels = torch.tensor([[[2, 0], [2, 1]]], dtype=torch.uint8)
        >>> bottleneck(reach, levels).tolist()
        [[[2, 0], [2, 1]]]
    """
    check({"reach": (reach, "B T T"), "levels": (levels, "B T T")})
    check_dtype(torch.uint8, reach=reach, levels=levels)
    return dispatch.pick(reference.bottleneck, reach.device, backend)(reach, levels)


@op
def trace_sizes(reach: Tensor, degrees: Tensor, *, backend: str = "auto") -> Tensor:
    """Number of edges of every trace that enter one node layer: METHOD §4.

    Args:
        reach: uint8 [B, T, T], beta of output t and node j.
        degrees: int32 [K, B, T], kept in-edges of node j at stratum k, sparsest first; K <= 255.

    Returns:
        int64 [K, B, T]: sum over j <= t of degrees[k, j] where reach[t, j] >= K - k.

    Raises:
        BackendError: `backend` is not built or lacks the op.
        InputError: more than 255 strata, or shapes do not fit.

    Example:
        >>> reach = torch.tensor([[[2, 0], [1, 2]]], dtype=torch.uint8)
        >>> degrees = torch.tensor([[[1, 1]], [[3, 3]]], dtype=torch.int32)
        >>> trace_sizes(reach, degrees).tolist()
        [[[1, 1]], [[3, 6]]]
    """
    check({"reach": (reach, "B T T"), "degrees": (degrees, "K B T")})
    check_dtype(torch.uint8, reach=reach)
    check_dtype(torch.int32, degrees=degrees)
    _check_strata(degrees)
    return dispatch.pick(reference.trace_sizes, reach.device, backend)(reach, degrees)


@op
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
        hidden: [M, D] final-normed clean states of M tokens, float32, bfloat16 or float16.
        lanes: [K, M, D] those of the lanes.
        unembedding: [V, D].
        bias: [V], or None.
        scale: factor on the logits.
        softcap: tanh cap on the logits, or None.
        next_ids: int64 [M], the id of the following token; -1 where there is none.

    Returns:
        OutputErrors: eight float32 tensors, [K, M] and [M]. The [K, M, V] logits are never held at
        once.

    Raises:
        BackendError: `backend` is not built or lacks the op.
        InputError: shapes do not fit, or under cpu an id is beyond the vocabulary.

    Example:
        >>> hidden, lanes = torch.tensor([[1.0, 0.0]]), torch.zeros(1, 1, 2)
        >>> output_errors(hidden, lanes, torch.eye(2), next_ids=torch.tensor([0])).tv
        tensor([[0.2311]])
    """
    check(
        {
            "hidden": (hidden, "M D"),
            "lanes": (lanes, "K M D"),
            "unembedding": (unembedding, "V D"),
            "bias": (bias, "V?"),
            "next_ids": (next_ids, "M"),
        }
    )
    check_dtype(torch.int64, next_ids=next_ids)
    pick = dispatch.pick(reference.output_errors, hidden.device, backend)
    return pick(hidden, lanes, unembedding, bias, scale, softcap, next_ids)


@op
def product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product as precise as one in float32, on the backend that suits the device.

    Where `cuda` is built, a GPU computes it on its matrix units, in pieces of bfloat16.

    Args:
        left: [n, d], of any dtype.
        right: [d, m].

    Returns:
        float32 [n, m].

    Raises:
        InputError: shapes do not fit.

    Example:
        >>> product(torch.ones(2, 3), torch.ones(3, 1)).flatten()
        tensor([3., 3.])
    """
    check({"left": (left, "n d"), "right": (right, "d m")})
    return dispatch.pick(reference.product, left.device, "auto")(left, right)


WITHOUT_BACKENDS = ("backends", "hash_uniform", "product")  # these take no `backend` argument
OPS = tuple(name for name in __all__ if name.islower() and name not in WITHOUT_BACKENDS)


def backends(device: torch.device | str = "cpu") -> dict[str, str]:
    """The name of the backend that serves each op on a device under `backend="auto"`."""
    return {op: dispatch.serving(op, device) for op in OPS}
