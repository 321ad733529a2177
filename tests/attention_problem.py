"""Random inputs of the attention ops, and their definitions by loops in float64."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from oracles import errors as oracle_errors

from densitrace import kernels
from densitrace.kernels import (
    AttentionEdges,
    AttentionStats,
    CosineWeight,
    EdgeTable,
    GivenWeight,
    NormWeight,
    OutputErrors,
    Pattern,
    RandomWeight,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """Shape of an attention problem, odd on purpose."""

    batch: int = 2
    heads: int = 4
    groups: int = 2
    length: int = 13
    d_k: int = 5
    d_v: int = 7
    hidden: int = 11
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    segments: bool = False
    scattered: bool = False  # documents alternate, so that a segment resumes after another
    dtype: torch.dtype = torch.float32  # of queries, keys and values
    wide: bool = False  # queries and keys stay float32, as in CodeGen


VARIANTS = {
    "plain": Shape(),
    "one token": Shape(length=1, batch=1),
    "heads alone": Shape(groups=4, length=9),
    "one group": Shape(heads=3, groups=1),
    "window": Shape(window=4),
    "window of one": Shape(window=1),
    "softcap": Shape(softcap=1.5),
    "sinks": Shape(sinks=True),
    "segments": Shape(segments=True),
    "scattered segments": Shape(segments=True, scattered=True),
    "all": Shape(length=17, window=6, softcap=2.0, sinks=True, segments=True),
    "bfloat16": Shape(length=35, dtype=torch.bfloat16),
    # Several panels of sources and columns, and strips of targets.
    "long": Shape(batch=1, heads=2, groups=1, length=111, d_k=40, d_v=37, hidden=67),
    "long, all": Shape(
        heads=2, length=65, d_k=32, d_v=64, window=40, sinks=True, segments=True, scattered=True,
        dtype=torch.bfloat16,
    ),
}  # fmt: skip


class Problem:
    """Random queries, keys, values and projections, and their definition by loops."""

    def __init__(self, shape: Shape, seed: int = 0, backend: str = "auto") -> None:
        self.shape = shape
        self.backend = backend
        self.generator = torch.Generator().manual_seed(seed)
        b, t = shape.batch, shape.length
        self.segments = self._segments() if shape.segments else None
        of_queries = torch.float32 if shape.wide else shape.dtype
        self.pattern = Pattern(
            self._rows(shape.heads, shape.d_k, of_queries),
            self._rows(shape.groups, shape.d_k, of_queries),
            scale=0.7,
            window=shape.window,
            softcap=shape.softcap,
            sinks=self.normal(shape.heads) if shape.sinks else None,
            segments=self.segments,
        )
        self.v = self._rows(shape.groups, shape.d_v, shape.dtype)
        self.w_o = self.normal(shape.heads, shape.hidden, shape.d_v)
        self.target = self.normal(b, t).abs() + 0.1
        self.node = self.normal(b, t, shape.hidden)
        self.positions = torch.arange(t).expand(b, -1)

    @property
    def product_ratio(self) -> float:
        """Tolerance of a product with the values, relative to its largest entry.

        Tensor cores take the attention weights, which sum to 1, in the values' 16 bits: rounded by
        2^-9 each in bfloat16.
        """
        rounded = self.backend == "triton" and self.shape.dtype != torch.float32
        return 2.0**-8 if rounded else 1e-5

    @property
    def norm_ratio(self) -> float:
        """Tolerance of source norms, relative to the largest.

        For bfloat16 values W_O is split into two bfloat16 parts, which leave 2^-17 = 7.6e-6 of an
        entry.
        """
        return 2e-5 if self.shape.dtype == torch.bfloat16 else 1e-5

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def _rows(self, heads: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        """[B, heads, T, width] laid out as in models: tokens before heads."""
        rows = self.normal(self.shape.batch, self.shape.length, heads, width)
        return rows.to(dtype).transpose(1, 2)

    def _segments(self) -> torch.Tensor:
        """Two documents a row; the first row is padded on the left."""
        t = self.shape.length
        position = torch.arange(t).expand(self.shape.batch, -1)
        rows = position // 3 % 2 == 1 if self.shape.scattered else position >= t // 2
        segments = rows.int().clone()
        segments[0, : t // 4] = -1
        return segments

    def allowed(self) -> NDArray[np.bool_]:
        """bool [B, T, T]: where attention is allowed."""
        s = self.shape
        mask = np.zeros((s.batch, s.length, s.length), dtype=bool)
        for b, t, u in np.ndindex(mask.shape):
            same = self.segments is None or self.segments[b, t] == self.segments[b, u]
            mask[b, t, u] = u <= t and (s.window is None or t - u < s.window) and bool(same)
        return mask

    def alpha(self) -> tuple[Floats, Floats]:
        """Attention weights [B, H, T, T] and log-sum-exp [B, H, T]."""
        s, p = self.shape, self.pattern
        alpha = np.zeros((s.batch, s.heads, s.length, s.length))
        lse = np.zeros(alpha.shape[:3])
        allowed = self.allowed()
        q, k = p.q.double().numpy(), p.k.double().numpy()
        for b, h, t in np.ndindex(lse.shape):
            sources = np.nonzero(allowed[b, t])[0]
            logits = p.scale * k[b, h * s.groups // s.heads, sources] @ q[b, h, t]
            if s.softcap is not None:
                logits = s.softcap * np.tanh(logits / s.softcap)
            others = [float(p.sinks[h])] if p.sinks is not None else []
            lse[b, h, t] = np.logaddexp.reduce([*logits, *others])
            alpha[b, h, t, sources] = np.exp(logits - lse[b, h, t])
        return alpha, lse

    def sent(self) -> Floats:
        """W_O^h v [B, H, T source, D]."""
        repeats = self.shape.heads // self.shape.groups
        v = self.v.double().repeat_interleave(repeats, 1).numpy()
        sent: Floats = np.einsum("bhsd,hed->bhse", v, self.w_o.double().numpy())
        return sent

    def stats(self, source: torch.Tensor | None = None) -> AttentionStats:
        backend = self._having("attention_stats")
        return kernels.attention_stats(self.pattern, self.v, source, backend=backend)

    def clean(self) -> Pattern:
        return replace(self.pattern, lse=self.stats().lse)

    def edges(self, weight: Any) -> AttentionEdges:
        return AttentionEdges(self.clean(), weight)

    def source_norms(self, p: int) -> torch.Tensor:
        return kernels.source_norms(self.v, self.w_o, p, backend=self._having("source_norms"))

    def _having(self, op: str) -> str:
        """The problem's backend if it has the op, else the reference."""
        auto = self.backend == "auto"
        module = kernels if auto else import_module(f"densitrace.kernels.{self.backend}")
        return self.backend if hasattr(module, op) else "reference"

    def norm_edges(self) -> AttentionEdges:
        return self.edges(NormWeight(self.source_norms(1), self.target))

    def norm_weights(self) -> Floats:
        """Float64 weights of `norm_edges` [B, H, T, T]."""
        source = np.abs(self.sent()).sum(-1)
        target = self.target.double().numpy()[:, None, :, None]
        weights: Floats = self.alpha()[0] * source[:, :, None] * target
        return weights


OTHER_KINDS = ["cosine", "random", "given"]  # than norms, of edge weight
KINDS = ["norm", "norm alone", *OTHER_KINDS]


def weight_of(kind: str, problem: Problem) -> kernels.EdgeWeight:
    """Random edge weights of one of the kinds."""
    shape = problem.shape
    source = problem.normal(shape.batch, shape.heads, shape.length).abs()
    match kind:
        case "norm":
            return NormWeight(source, problem.target)
        case "norm alone":
            return NormWeight(source)
        case "cosine":
            direction = problem.normal(shape.batch, shape.heads, shape.length, shape.d_v)
            source[:, 1, ::9] = 0  # sources that send nothing; few, because their weights all tie
            return CosineWeight(0.1 * direction, source, problem.v)
        case "random":
            # A seed and a stream with their highest bits set
            return RandomWeight(0xFEDCBA9876, 0x89ABCDEF, problem.positions)
    return GivenWeight(problem.normal(shape.batch, shape.heads, shape.length, shape.length).abs())


def close(name: str, actual: torch.Tensor, expected: Floats, ratio: float = 1e-5) -> None:
    """Within `ratio` of the largest entry; the default suits float32 sums of some hundred terms."""
    scale = max(1e-6, float(np.abs(expected).max()))
    np.testing.assert_allclose(actual.double().numpy(), expected, atol=ratio * scale, err_msg=name)


def assert_attention_stats(problem: Problem) -> None:
    """Check output, log-sum-exp and edge mass against the definition."""
    alpha, lse = problem.alpha()
    source = problem.normal(*lse.shape).abs()
    result = problem.stats(source)
    repeats = problem.shape.heads // problem.shape.groups
    v = problem.v.double().repeat_interleave(repeats, 1).numpy()
    close("output", result.output, alpha @ v, problem.product_ratio)
    close("lse", result.lse, lse)
    close("mass", result.mass, np.einsum("bhts,bhs->bt", alpha, source.double().numpy()))


def cuts_for(weights: Floats, quantiles: tuple[float, ...]) -> torch.Tensor:
    """float32 [K, B, T] cuts between the weights of each target, high ones first."""
    rows = weights.transpose(0, 2, 1, 3).reshape(*weights.shape[::2], -1)
    cuts = [np.quantile(rows, q, axis=-1) * 1.0001 for q in sorted(quantiles, reverse=True)]
    return torch.from_numpy(np.stack(cuts)).float()


def gap_cuts(weights: Floats, quantiles: tuple[float, ...]) -> torch.Tensor:
    """float32 [K, B, T] cuts in the widest gap near each quantile of a target's weights.

    Hundreds of weights lie close together: in a narrow gap float32 rounding would decide the side.
    """
    b, h, t, s = weights.shape
    rows = np.sort(weights.transpose(0, 2, 1, 3).reshape(b, t, h * s), axis=-1)
    cuts = np.zeros((len(quantiles), b, t))
    for k, i, j in np.ndindex(cuts.shape):
        row = rows[i, j][rows[i, j] > 0]
        if len(row) < 2:
            continue
        middle = round(sorted(quantiles, reverse=True)[k] * (len(row) - 1))
        first, last = max(0, middle - 4), min(len(row) - 1, middle + 4)
        widest = first + int(np.argmax(row[first + 1 : last + 1] / row[first:last]))
        cuts[k, i, j] = np.sqrt(row[widest] * row[widest + 1])
    return torch.from_numpy(np.sort(cuts, axis=0)[::-1].copy()).float()


def assert_lanes_keep_what_levels_count(live: bool, dtype: torch.dtype) -> None:
    """Of Triton, also edges whose weight equals the cut up to rounding: sizes match the lanes."""
    length, strata = 33, 3
    shape = Shape(batch=1, heads=2, groups=1, length=length, d_k=4, d_v=4, dtype=dtype)
    problem = Problem(shape, backend="reference")
    edges = problem.edges(weight_of("norm", problem))
    weights = kernels.edge_weights(edges, backend="reference").nan_to_num(-1)[0]  # [H, T, T]
    ordered = weights.transpose(0, 1).flatten(1).sort(-1, descending=True).values
    cuts = ordered[:, [0, 4, 9]].T[:, None].contiguous()
    degrees = kernels.edge_levels(edges, cuts, backend="triton").degrees
    # Each source sends its own unit vector, so that an output shows what was kept.
    v = torch.eye(length, dtype=dtype).expand(strata, 1, 1, -1, -1)
    q, k = (tensor.expand(strata, *tensor.shape) for tensor in (edges.pattern.q, edges.pattern.k))
    lanes = replace(edges.pattern, q=q, k=k, lse=None) if live else None
    output = kernels.lane_attention(edges, cuts, v, lanes, backend="triton")
    assert torch.equal((output > 0).sum((2, 4)), degrees)


def joined(tables: Iterable[EdgeTable]) -> EdgeTable:
    """Concatenate tables; there may be none."""
    listed = list(tables)
    if not listed:
        return EdgeTable.of(*torch.empty(6, 0).unbind())
    names = [column.name for column in fields(EdgeTable)]
    return EdgeTable(*(torch.cat([getattr(table, name) for table in listed]) for name in names))


def rows_of(table: EdgeTable) -> list[tuple[int, ...]]:
    """(sequence, head, target, source, stratum) of every edge, in the table's order."""
    columns = (table.sequence, table.head, table.target, table.source, table.stratum)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def errors_of(problem: Problem, vocabulary: int, backend: str, noise: float = 0.1) -> OutputErrors:
    """Output errors of lanes near the problem's nodes, which are taken as final states."""
    states = problem.node.flatten(0, 1).to(problem.shape.dtype)
    generator = torch.Generator().manual_seed(vocabulary)
    near = noise * torch.randn(3, *states.shape, generator=generator)
    near[2] = 0  # the third lane equals the clean one
    table = torch.randn(vocabulary, states.shape[-1], generator=generator).to(states.dtype)
    ids = torch.arange(len(states)) % vocabulary
    ids[::3] = -1
    lanes = (states + near).to(states.dtype)
    return kernels.output_errors(
        states, lanes, table, table[:, 0], scale=0.8, softcap=9.0, next_ids=ids, backend=backend
    )


def assert_errors_agree(ours: OutputErrors, theirs: OutputErrors) -> None:
    """Two backends' results of `errors_of` are equal up to rounding."""
    # A ranking flips if two logits differ by less than their rounding, so these may differ for a
    # few tokens; all others are sums.
    for name in ("top1", "nucleus"):
        same = getattr(ours, name) == getattr(theirs, name)
        assert same.sum() >= same.numel() - 1 - same.numel() // 20, name
        assert same[2].all()
    # A library's product of small matrices may sum equal rows in different orders.
    assert (ours.tv[2] < 1e-6).all()
    for name, tensor in vars(ours).items():
        if name not in ("top1", "nucleus"):
            torch.testing.assert_close(
                tensor, getattr(theirs, name), atol=1e-5, rtol=1e-5, equal_nan=True, msg=name
            )


def assert_rankings_of_ties(backend: str, vocabulary: int) -> None:
    """Among equal logits the first token ranks first.

    Logits are small integers, exact in any order of summation; a lane differs from the clean one by
    what two hidden dimensions add to the logits of few tokens.
    """
    hidden, tokens = 9, 6
    generator = torch.Generator().manual_seed(3)

    def integers(least: int, most: int, *shape: int) -> torch.Tensor:
        return torch.randint(least, most + 1, shape, generator=generator).float()

    table, states = integers(-1, 1, vocabulary, hidden), integers(-1, 1, tokens, hidden)
    table[torch.rand(vocabulary, generator=generator) > 0.04, :2] = 0
    lanes = states.repeat(4, 1, 1)
    lanes[:, :, :2] += integers(-2, 2, 4, tokens, 2)
    actual = kernels.output_errors(
        states, lanes, table, next_ids=torch.arange(tokens), backend=backend
    )
    for k, m in np.ndindex(4, tokens):
        clean, lane = ((table @ vector).double().numpy() for vector in (states[m], lanes[k, m]))
        expected = oracle_errors(clean, lane, m)
        assert actual.top1[k, m] == expected["top1"]
        assert actual.nucleus[k, m] == expected["nucleus"]
    assert len(actual.nucleus.unique()) > 4


def weights_that_tie(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """A few distinct weights over 30 powers of two, and zeros of both signs; all sums are exact."""
    digits = torch.randint(-1, 4, shape, generator=generator)
    exponents = torch.randint(0, 4, shape, generator=generator) * 10
    weights = digits.clamp(min=0) * 2.0 ** -exponents.float()
    return torch.where(digits < 0, -torch.zeros(shape), weights)


def many_heavy_weights(count: int) -> torch.Tensor:
    """Weights [count, 1, 1] from 1.5 to 2, no more than four the same; all sums are exact."""
    return 2 - (1 + torch.arange(count).remainder(1 << 22)[:, None, None]) * 2.0**-23


def all_cuts(
    backend: str, edges: AttentionEdges | None, side: torch.Tensor, shares: Iterable[float]
) -> torch.Tensor:
    """[2, K, B, T]: nucleus and fraction cuts, with totals summed in float64."""
    shares, total = tuple(shares), side.double().sum(0)
    if edges is not None:
        weights = kernels.edge_weights(edges, backend="reference").nan_to_num(0)
        total = total + weights.double().clamp(min=0).sum((1, 3))
    nucleus = kernels.nucleus_cuts(edges, side, shares, total.float(), backend=backend)
    return torch.stack([nucleus, kernels.fraction_cuts(edges, side, shares, backend=backend)])


def assert_cuts_of_ties(problem: Problem) -> None:
    """Nucleus and fraction cuts equal the definition's bit for bit, in any order of summation."""
    shape, generator = problem.shape, problem.generator
    given = weights_that_tie(generator, shape.batch, shape.heads, shape.length, shape.length)
    edges = problem.edges(GivenWeight(given))
    side = weights_that_tie(generator, 3, shape.batch, shape.length)
    cuts, expected = (
        all_cuts(backend, edges, side, (0.05, 0.5, 0.99))
        for backend in (problem.backend, "reference")
    )
    assert torch.equal(cuts, expected)
