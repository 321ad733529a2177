"""Triton ops on edges of every supported kind, and with many strata, against the definition.

`test_ops` covers the variants of attention under one kind of weight.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attention_problem import (
    KINDS,
    Problem,
    Shape,
    all_cuts,
    assert_lanes_keep_what_levels_count,
    close,
    many_heavy_weights,
    weight_of,
    weights_that_tie,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from triton import language as tl

from densitrace import kernels
from densitrace.kernels import (
    AttentionEdges,
    CosineWeight,
    GivenWeight,
    NormWeight,
    RandomWeight,
    triton,
)
from densitrace.kernels.triton import configs, node_cuts, tiles

pytestmark = pytest.mark.usefixtures("poisoned")

SHAPE = Shape(length=37, d_k=16, d_v=8, window=30, segments=True, scattered=True)


@pytest.fixture(params=KINDS)
def edges(request: pytest.FixtureRequest) -> AttentionEdges:
    problem = Problem(SHAPE, backend="reference")
    return problem.edges(weight_of(request.param, problem))


def cuts_of(edges: AttentionEdges, strata: int) -> torch.Tensor:
    """float32 [K, B, T]: quantiles of each target's weights, high ones first."""
    weights = kernels.edge_weights(edges, backend="reference").transpose(1, 2).flatten(2)
    quantiles = torch.linspace(0.95, 0.05, strata)
    return torch.nanquantile(weights, quantiles, -1)


def margin(edges: AttentionEdges) -> float:
    """Relative difference between two orders of summation; 0 if nothing is summed."""
    return 0.0 if isinstance(edges.weight, RandomWeight | GivenWeight) else 1e-5


def test_levels(edges: AttentionEdges) -> None:
    """Between the levels of slightly higher and slightly lower cuts."""
    cuts, slack = cuts_of(edges, 3), margin(edges)
    actual = kernels.edge_levels(edges, cuts, backend="triton")
    fewest, most = (
        kernels.edge_levels(edges, cuts * (1 + shift), backend="reference")
        for shift in (slack, -slack)
    )
    assert (most.degrees - fewest.degrees).sum() < 0.1 * most.degrees.sum()
    for name in ("levels", "degrees"):
        low, ours, high = (getattr(x, name).int() for x in (fewest, actual, most))
        assert ((low <= ours) & (ours <= high)).all()


def test_as_many_strata_as_a_level_map_holds() -> None:
    problem = Problem(Shape(batch=1, heads=2, groups=1, length=9), backend="reference")
    edges = problem.edges(weight_of("random", problem))
    cuts = cuts_of(edges, 255)
    actual, expected = (
        kernels.edge_levels(edges, cuts, backend=name) for name in ("triton", "reference")
    )
    assert expected.levels.max() == 255
    torch.testing.assert_close(actual.levels, expected.levels)
    torch.testing.assert_close(actual.degrees, expected.degrees)


def test_mass(edges: AttentionEdges) -> None:
    actual, expected = (kernels.edge_mass(edges, backend=name) for name in ("triton", "reference"))
    close("mass", actual, expected.double().numpy())


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("attention", ["live", "frozen"])
def test_lanes(edges: AttentionEdges, attention: str, invert: bool) -> None:
    strata, pattern = 3, edges.pattern  # not a multiple of the lanes per program
    # Between two weights, so that rounding decides nothing
    weights = kernels.edge_weights(edges, backend="reference").nan_to_num(-1)
    ordered = weights.transpose(1, 2).flatten(2).sort(-1, descending=True).values
    cuts = torch.stack([ordered[..., i] + ordered[..., i + 1] for i in range(strata)]) / 2
    lanes = [Problem(SHAPE, seed) for seed in range(1, strata + 1)]
    own = replace(
        pattern,
        lse=None,
        q=torch.stack([lane.pattern.q for lane in lanes]),
        k=torch.stack([lane.pattern.k for lane in lanes]),
    )
    values = torch.stack([lane.v for lane in lanes])
    actual, expected = (
        kernels.lane_attention(
            edges, cuts, values, own if attention == "live" else None, invert=invert, backend=name
        )
        for name in ("triton", "reference")
    )
    assert expected.any()
    close("lanes", actual, expected.double().numpy())


def test_memory_of_lanes_has_tokens_before_heads(edges: AttentionEdges) -> None:
    values = torch.zeros(1, *Problem(SHAPE).v.shape)
    actual = kernels.lane_attention(edges, cuts_of(edges, 1), values, backend="triton")
    assert actual.transpose(2, 3).is_contiguous()


@pytest.mark.parametrize("kind", ["norm", "cosine"])
def test_missing_log_sum_exp_is_computed(kind: str) -> None:
    """Also for cosines, which are those of zero where an attention weight is."""
    problem = Problem(Shape(batch=1, length=9), backend="reference")
    q, k = torch.ones_like(problem.pattern.q), torch.zeros_like(problem.pattern.k)
    k[:, :, 0] = 40  # a score of 140 beside those of 0
    problem.pattern = replace(problem.pattern, q=q, k=k)
    edges = problem.edges(weight_of(kind, problem))
    cuts, side = cuts_of(edges, 1), torch.ones(1, 1, 9)

    def results(lse: torch.Tensor | None) -> list[torch.Tensor]:
        given = replace(edges, pattern=replace(edges.pattern, lse=lse))
        return [
            kernels.edge_mass(given, backend="triton"),
            kernels.edge_levels(given, cuts, backend="triton").levels,
            kernels.fraction_cuts(given, side, [0.4], backend="triton"),
        ]

    torch.testing.assert_close(results(None), results(edges.pattern.lse))


def test_kinds_cover_all_supported_weights() -> None:
    problem = Problem(SHAPE, backend="reference")
    assert {type(weight_of(kind, problem)) for kind in KINDS} == set(triton.WEIGHTS)


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(1, 5),
    heads=st.sampled_from([None, 1, 3]),
    count=st.integers(1, 3),
    window=st.sampled_from([None, 1, 3]),
    scratch=st.sampled_from([1, 40, 1 << 20]),
    shares=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=5).map(sorted),
)
def test_any_cuts_agree_with_the_definition(
    seed: int,
    length: int,
    heads: int | None,
    count: int,
    window: int | None,
    scratch: int,
    shares: list[float],
) -> None:
    """Bit for bit, twice, with one run of targets or several; some nodes have a single edge."""
    generator = torch.Generator().manual_seed(seed)
    side = weights_that_tie(generator, count, 1, length)
    edges = None
    if heads is not None:
        empty = torch.zeros(1, heads, length, 1)
        pattern = kernels.Pattern(empty, empty, 1.0, window=window)
        weight = GivenWeight(weights_that_tie(generator, 1, heads, length, length))
        edges = AttentionEdges(pattern, weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node_cuts, "SCRATCH_ELEMENTS", scratch)
        patch.setattr(node_cuts, "ROW_TILES", 4)
        patch.setattr(node_cuts, "HISTOGRAM_ELEMENTS", 1)  # one program handles several rows
        actual = all_cuts("triton", edges, side, shares)
        assert torch.equal(actual, all_cuts("triton", edges, side, shares))
    assert torch.equal(actual, all_cuts("reference", edges, side, shares))


def test_cuts_of_an_edge_alone_in_its_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 32 targets held at a time the last is the 33rd source, which a tile of its own holds."""
    length = 64
    monkeypatch.setattr(node_cuts, "SCRATCH_ELEMENTS", 32 * (16 + length))
    monkeypatch.setattr(node_cuts, "ROW_TILES", 8)
    generator = torch.Generator().manual_seed(0)
    empty = torch.zeros(1, 1, length, 1)
    weight = GivenWeight(torch.rand(1, 1, length, length, generator=generator))
    edges = AttentionEdges(kernels.Pattern(empty, empty, 1.0, window=2), weight)
    side = torch.rand(1, 1, length, generator=generator)
    cuts, expected = (
        kernels.fraction_cuts(edges, side, [0.3, 0.6], backend=backend)
        for backend in ("triton", "reference")
    )
    assert torch.equal(cuts, expected)


def test_sums_of_millions_of_heavy_edges_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the units of few edges this one would pass 2^63."""
    config = {"BE": 1 << 20, "BM": 1 << 16, "BITS": 7, "BB": 64}
    monkeypatch.setattr(configs, "launch", lambda *_: config)
    side, masses = many_heavy_weights(5 << 20), [0.2, 0.7, 0.95]
    total = side.double().sum(0).float()
    cuts, expected = (
        kernels.nucleus_cuts(None, side, masses, total, backend=backend)
        for backend in ("triton", "reference")
    )
    assert torch.equal(cuts, expected)


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["sequences", "heads", "tokens"])
def test_rows_farther_apart_than_32_bits_count(axis: int, tmp_path: Path) -> None:
    """2^31 elements from the first to the last, in files that are holes but for these."""
    sizes, strides = [1, 1, 1], [8, 4, 2, 1]
    sizes[axis], strides[axis] = 3, 1 << 30
    batch, heads, length = sizes
    shape = Shape(batch, heads, heads, length, d_k=2, d_v=2, dtype=torch.bfloat16)
    problem = Problem(shape, backend="reference")
    source, lse = problem.source_norms(1), problem.clean().lse
    direction, cuts = 0.1 * problem.v.float(), torch.full((1, batch, length), 0.5)

    def apart(tensor: torch.Tensor) -> torch.Tensor:
        file = tmp_path / str(len(list(tmp_path.iterdir())))
        memory = torch.from_file(str(file), True, (4 << 30) + 16, dtype=tensor.dtype)
        # Past the middle, so that an offset of 32 bits, which turns negative, finds a hole
        return memory.as_strided(tensor.shape, strides, 2 << 30).copy_(tensor)

    def results(place: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        q, k, v = map(place, (problem.pattern.q, problem.pattern.k, problem.v))
        pattern = replace(problem.pattern, q=q, k=k)
        lanes = replace(pattern, q=q[None], k=k[None])
        edges = AttentionEdges(replace(pattern, lse=lse), CosineWeight(direction, source, v))
        return [
            kernels.source_norms(v, problem.w_o, 1, backend="triton"),
            kernels.attention_stats(pattern, v, backend="triton").output,
            kernels.edge_mass(edges, backend="triton"),
            kernels.edge_levels(edges, cuts, backend="triton").levels,
            kernels.fraction_cuts(edges, cuts, [0.5], backend="triton"),
            kernels.lane_attention(edges, cuts, v[None], lanes, backend="triton"),
        ]

    torch.testing.assert_close(results(apart), results(lambda tensor: tensor))


def test_cuts_beyond_all_weights_and_norms_of_nothing() -> None:
    """Decided as weights compare, although norms compare by logarithms: exact with any zeros."""
    problem = Problem(
        Shape(batch=1, heads=2, groups=1, length=9, d_k=4, d_v=4), backend="reference"
    )
    source = problem.normal(1, 2, 9).abs()
    source[:, :, ::3] = 0
    target = problem.target.clone()
    target[:, 4] = 0
    edges = problem.edges(NormWeight(source, target))
    cuts = torch.tensor([torch.inf, 1e30, 1e-30, 0.0, -1.0])[:, None, None].expand(-1, 1, 9)
    actual, expected = (
        kernels.edge_levels(edges, cuts, backend=backend) for backend in ("triton", "reference")
    )
    assert torch.equal(actual.degrees, expected.degrees)
    assert torch.equal(actual.levels, expected.levels)
    nothing = kernels.edge_levels(edges, cuts * torch.nan, backend="triton")
    assert not nothing.degrees.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("live", [False, True])
def test_lanes_keep_the_edges_that_levels_count(live: bool, dtype: torch.dtype) -> None:
    assert_lanes_keep_what_levels_count(live, dtype)


def test_levels_of_more_heads_than_a_field_counts() -> None:
    """70 heads, each of which keeps an edge somewhere."""
    problem = Problem(Shape(batch=1, heads=70, groups=35, length=5, d_k=4, d_v=4))
    edges = problem.edges(GivenWeight(torch.rand(1, 70, 5, 5, generator=problem.generator)))
    cuts = torch.tensor([0.9, 0.3, 0.0])[:, None, None].expand(-1, 1, 5)
    actual, expected = (
        kernels.edge_levels(edges, cuts, backend=backend) for backend in ("triton", "reference")
    )
    assert torch.equal(actual.degrees, expected.degrees)
    assert torch.equal(actual.levels, expected.levels)


def test_levels_whatever_the_number_of_heads() -> None:
    """Target t has an edge in t + 1 heads: every number that a field counts."""
    problem = Problem(Shape(batch=1, heads=31, groups=31, length=31, d_k=1, d_v=1))
    given = (torch.arange(31)[:, None] <= torch.arange(31)).float()[None, ..., None]
    edges = problem.edges(GivenWeight(given.expand(1, 31, 31, 31)))
    levels = kernels.edge_levels(edges, torch.zeros(1, 1, 31), backend="triton").levels
    assert torch.equal(levels[0], torch.ones(31, 31, dtype=torch.uint8).tril())


@pytest.mark.parametrize(
    ("window", "ends"),
    [(34, None), (63, None), (None, (40, 33))],
    ids=["window", "window of whole tiles", "segments"],
)
def test_edges_at_the_ends_of_tiles(
    window: int | None, ends: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one target of a block attends to the first source of a tile, or all but one do."""
    monkeypatch.setattr(tiles, "SCANNED", tl.constexpr(32))
    length = 96
    problem = Problem(
        Shape(heads=1, groups=1, length=length, d_k=4, d_v=4, window=window), backend="reference"
    )
    if ends is not None:
        segments = torch.arange(length) >= torch.tensor(ends)[:, None]
        problem.pattern = replace(problem.pattern, segments=segments.int())
    edges, source = problem.norm_edges(), problem.source_norms(1)
    cuts, values = torch.full((1, 2, length), -1.0), problem.v[None]
    q, k = problem.pattern.q[None], problem.pattern.k[None]
    live = replace(problem.pattern, q=q, k=k)

    def results(backend: str) -> dict[str, torch.Tensor]:
        stats = kernels.attention_stats(problem.pattern, problem.v, source, backend=backend)
        return {
            "output": stats.output,
            "edge mass": kernels.edge_mass(edges, backend=backend),
            "levels": kernels.edge_levels(edges, cuts, backend=backend).levels,
            "live": kernels.lane_attention(edges, cuts, values, live, backend=backend),
            "frozen": kernels.lane_attention(edges, cuts, values, backend=backend),
        }

    expected = results("reference")
    for name, ours in results("triton").items():
        close(name, ours, expected[name].double().numpy())
