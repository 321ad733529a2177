"""The CUDA kernels, built for the host: against their definitions and each other."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest import mock

import cuda_host
import numpy as np
import pytest
import torch
from attention_problem import (
    VARIANTS,
    Problem,
    Shape,
    all_cuts,
    close,
    cuts_for,
    gap_cuts,
    joined,
    many_heavy_weights,
    rows_of,
    weights_that_tie,
)
from golden import golden, tracer_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from densitrace import BackendError, Nucleus, Threshold, Trace, Tracer, kernels
from densitrace.kernels import (
    AttentionEdges,
    EdgeLevels,
    EdgeTable,
    GivenWeight,
    NormWeight,
    Pattern,
    ProximityWeight,
    dispatch,
    reference,
)

pytestmark = pytest.mark.usefixtures("poisoned")
ops, budgets, extension = cuda_host.ops, cuda_host.budgets, cuda_host.extension

T = TypeVar("T")
METHODS = ["packed", "boolean"]


def both_orders(run: Callable[[], T]) -> tuple[T, T]:
    """Results of a run with threads and blocks taking turns in either order."""
    first = run()
    extension.go_backwards(True)
    try:
        return first, run()
    finally:
        extension.go_backwards(False)


@pytest.fixture(params=[False, True], ids=["forwards", "backwards"])
def order(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run threads and blocks in both orders: a race shows as a different result."""
    extension.go_backwards(request.param)
    yield
    extension.go_backwards(False)


# ---- bottlenecks and sizes -------------------------------------------------------------------


def level_maps(
    seed: int, batch: int, length: int, strata: int, zeros: float
) -> tuple[Tensor, Tensor]:
    """Two maps, uint8 [B, T, T] each; garbage above the diagonal."""
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, strata + 1, (2, batch, length, length), dtype=np.uint8)
    maps[rng.random(maps.shape) < zeros] = 0
    reach, levels = torch.from_numpy(maps)
    return reach, levels


def assert_product(reach: Tensor, levels: Tensor, method: str) -> None:
    expected = reference.bottleneck(reach.tril(), levels.tril())
    assert torch.equal(ops.bottleneck(reach, levels, method), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [1, 2, 31, 33, 63, 64, 65, 129, 132, 193, 256])
@pytest.mark.usefixtures("order")
def test_product_is_the_definition(length: int, method: str) -> None:
    strata = 255 if method == "packed" else 5  # one product per level
    assert_product(*level_maps(length, 2, length, strata, zeros=0.3), method)


@pytest.mark.parametrize("levels", [0, 1, 12, 127, 300])  # whose planes have room
@pytest.mark.parametrize("strata", [0, 12, 13, 255])
def test_boolean_product_of_any_levels(
    levels: int, strata: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "PLANE_WORDS", levels * extension.plane_words(2, 33))
    assert_product(*level_maps(0, 2, 33, strata, zeros=0.5), "boolean")


@pytest.mark.parametrize("length", [255, 256, 300])
def test_boolean_product_of_many_nodes(length: int) -> None:
    """Sparse, so that few of the paths a wrong product may miss exist twice."""
    maps = level_maps(length, 1, length, strata=3, zeros=0.97)
    for actual in both_orders(lambda: ops.bottleneck(*maps, "boolean")):
        assert torch.equal(actual, reference.bottleneck(*(m.tril() for m in maps)))


@given(
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 3),
    length=st.integers(1, 80),
    strata=st.integers(1, 12),
    zeros=st.sampled_from([0.0, 0.5, 0.99]),
    method=st.sampled_from(METHODS),
)
def test_product_of_any_maps(
    seed: int, batch: int, length: int, strata: int, zeros: float, method: str
) -> None:
    assert_product(*level_maps(seed, batch, length, strata, zeros), method)


@pytest.mark.parametrize("method", METHODS)
def test_tensors_of_any_layout(method: str) -> None:
    reach, levels = level_maps(5, 2, 65, strata=12, zeros=0.3)
    across = [m.transpose(1, 2).contiguous().transpose(1, 2) for m in (reach, levels)]
    result = ops.bottleneck(*across, method)
    assert result.is_contiguous()
    assert torch.equal(result, ops.bottleneck(reach, levels, method))


@pytest.mark.parametrize("method", METHODS)
def test_rows_at_any_alignment(method: str) -> None:
    """With a length that is a multiple of 4, at an address that is not."""
    maps = level_maps(7, 2, 132, strata=5, zeros=0.3)
    shifted = []
    for aligned in maps:
        memory = torch.zeros(aligned.numel() + 1, dtype=torch.uint8)
        shifted.append(memory[1:].view(aligned.shape).copy_(aligned))
    for reach, levels in (shifted, (maps[0], shifted[1]), (shifted[0], maps[1])):
        assert_product(reach, levels, method)


@pytest.mark.parametrize(
    ("length", "strata"), [(1, 1), (8, 12), (9, 255), (65, 12), (257, 5), (130, 4), (40, 2)]
)
@pytest.mark.usefixtures("order")
def test_sizes_are_the_definition(length: int, strata: int) -> None:
    reach = level_maps(length, 2, length, strata, zeros=0.3)[0]
    drawn = torch.randint(0, 1000, (length, 2, strata), dtype=torch.int32)
    degrees = drawn.permute(2, 1, 0)
    expected = reference.trace_sizes(reach, degrees)
    assert torch.equal(ops.trace_sizes(reach, degrees), expected)


def test_sizes_do_not_overflow() -> None:
    largest = torch.iinfo(torch.int32).max
    reach = torch.full((1, 200, 200), 3, dtype=torch.uint8)
    degrees = torch.full((3, 1, 200), largest, dtype=torch.int32)
    assert torch.equal(ops.trace_sizes(reach, degrees)[0, 0], torch.arange(1, 201) * largest)


@pytest.mark.parametrize("shape", [(0, 5, 5), (2, 0, 0)])
def test_nothing_to_do(shape: tuple[int, ...]) -> None:
    empty = torch.zeros(shape, dtype=torch.uint8)
    for method in METHODS:
        assert ops.bottleneck(empty, empty, method).shape == shape
    assert ops.trace_sizes(empty, torch.zeros(3, *shape[:2], dtype=torch.int32)).shape[0] == 3


def test_arguments_of_kernels_are_checked() -> None:
    problem = Problem(Shape(), backend="reference")
    square = torch.zeros(1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"levels has shape \[1, 5, 5\]; wanted \[1, 4, 4\]"):
        ops.bottleneck(square, torch.zeros(1, 5, 5, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"levels is not a contiguous tensor of torch\.uint8"):
        ops.bottleneck(square, square.int())
    with pytest.raises(ValueError, match="cuts has more than 255 strata"):
        ops.fraction_cuts(None, torch.ones(1, 1, 1), torch.ones(256))
    with pytest.raises(ValueError, match="cuts has more than 255 strata"):
        ops.edge_levels(proximity_edges(problem), torch.zeros(256, 2, 13))
    with pytest.raises(ValueError, match="neither packed nor boolean"):
        ops.bottleneck(square, square, "fast")
    with pytest.raises(ValueError, match="tensors are on meta"):
        ops.bottleneck(square.to("meta"), square.to("meta"))
    with pytest.raises(ValueError, match="levels is on meta; wanted on cpu, as the others are"):
        ops.bottleneck(square, square.to("meta"))
    edges = problem.edges(NormWeight(torch.ones(2, 3, 13)))
    with pytest.raises(ValueError, match=r"source has shape \[2, 3, 13\]; wanted \[2, 4, 13\]"):
        table_of(edges, torch.zeros(1, 2, 13))
    for op, whose in (
        (table_of, written_edges(problem)),
        (ops.edge_levels, proximity_edges(problem)),
    ):
        with pytest.raises(ValueError, match=r"cuts has shape \[1, 2, 12\]; wanted \[1, 2, 13\]"):
            op(whose, torch.zeros(1, 2, 12))
        with pytest.raises(ValueError, match="cuts is on meta"):
            op(whose, torch.zeros(1, 2, 13, device="meta"))


def test_kernels_are_queued_on_the_current_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 1)
    stream = SimpleNamespace(device_index=1, cuda_stream=77)
    monkeypatch.setattr(extension, "DEVICE", "cuda", raising=False)
    monkeypatch.setattr(torch.cuda, "current_stream", {device: stream}.__getitem__)
    assert ops.device.device_and_stream(device) == (1, 77)


def test_only_the_boolean_method_looks_up_the_highest_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reach, levels = level_maps(0, 1, 9, strata=3, zeros=0.3)
    monkeypatch.setattr(Tensor, "amax", None)
    ops.bottleneck(reach, levels, "packed")
    with pytest.raises(TypeError):
        ops.bottleneck(reach, levels, "boolean")


# ---- edges -----------------------------------------------------------------------------------

# The edges of a tile of 64, heads that share keys, every variant of attention.
WIDE = Shape(
    heads=4, length=130, d_k=19, d_v=33, hidden=45, window=100, softcap=3.0, sinks=True,
    segments=True, scattered=True,
)  # fmt: skip


def table_of(edges: AttentionEdges, cuts: Tensor) -> EdgeTable:
    """The table of all kept edges."""
    return joined(ops.collect_edges(edges, cuts))


def written_edges(problem: Problem) -> AttentionEdges:
    """Weights that are equal bit for bit on every backend: tenths, of which many equal a cut."""
    shape = problem.shape
    weight = problem.normal(shape.batch, shape.heads, shape.length, shape.length)
    return problem.edges(GivenWeight(weight.mul(10).round().div(10)))


@pytest.mark.parametrize("elements", [1, 3000, 1 << 24])  # per tile: a row, some, all
def test_table_is_in_order(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By sequence, head, target and source, whatever the tiles and the order of blocks."""
    monkeypatch.setattr(budgets, "TABLE_ELEMENTS", elements)
    edges = written_edges(Problem(replace(WIDE, length=70), backend="reference"))
    cuts = torch.tensor([1.5, 0.5, -0.3])[:, None, None].expand(3, 2, 70).clone()
    cuts[:, 1, 40] = torch.inf  # a target outside the trace
    expected = joined(reference.collect_edges(edges, cuts))
    for actual in both_orders(lambda: table_of(edges, cuts)):
        assert rows_of(actual) == rows_of(expected)
        assert actual.weight.sum() == pytest.approx(float(expected.weight.sum()), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 65, 200])  # of a tile: a block may begin at any target
@pytest.mark.parametrize("window", [None, 1, 63, 64, 127, 128])
def test_table_of_all_edges(window: int | None, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that lie within the window, end with it or cross the diagonal."""
    monkeypatch.setattr(budgets, "TABLE_ELEMENTS", 200 * rows)
    shape = Shape(batch=1, heads=1, groups=1, length=200, window=window)
    problem = Problem(shape, backend="reference")
    assert_table_of_all_edges(problem)


def assert_table_of_all_edges(problem: Problem) -> None:
    """Of one sequence and one head."""
    actual = table_of(written_edges(problem), torch.full((1, 1, problem.shape.length), -1e9))
    places = np.argwhere(problem.allowed()[0])
    np.testing.assert_array_equal(torch.stack([actual.target, actual.source], 1), places)


@pytest.mark.parametrize("segment", [-1, 1])
@pytest.mark.parametrize("token", [0, 63, 64, 127])
def test_table_of_all_edges_but_those_of_a_token(token: int, segment: int) -> None:
    """The first or the last of a block's sources or targets, in a document of its own."""
    problem = Problem(Shape(batch=1, heads=1, groups=1, length=128), backend="reference")
    problem.segments = torch.zeros(1, 128, dtype=torch.int32)
    problem.segments[0, token] = segment
    problem.pattern = replace(problem.pattern, segments=problem.segments)
    assert_table_of_all_edges(problem)


@pytest.mark.parametrize("length", [4096, 4100])  # columns are written 4,096 at a time
@pytest.mark.usefixtures("order")
def test_table_of_long_rows(length: int) -> None:
    problem = Problem(Shape(batch=1, heads=1, groups=1, length=length), backend="reference")
    drawn = torch.full((1, 1, length, length), -1.0)
    drawn[..., -3:, :] = problem.normal(1, 1, 3, length)  # the longest
    edges = AttentionEdges(
        replace(problem.pattern, lse=torch.zeros(1, 1, length)), GivenWeight(drawn)
    )
    cuts = torch.zeros(1, 1, length)
    kept = (drawn[0, 0].tril() > 0).nonzero()
    actual = table_of(edges, cuts)
    assert torch.equal(torch.stack([actual.target, actual.source], 1), kept.int())
    assert torch.equal(actual.weight, drawn[0, 0][tuple(kept.T)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_table_of_norm_weights(dtype: torch.dtype) -> None:
    """Weights are close to the definition's and equal bit for bit on every run."""
    problem = Problem(replace(WIDE, dtype=dtype), backend="reference")
    edges = problem.norm_edges()
    dense = kernels.edge_weights(edges, backend="reference")
    cuts = cuts_for(dense.nan_to_num(0).double().numpy(), (0.9, 0.6))
    first, second = both_orders(lambda: table_of(edges, cuts))
    for name, column in vars(first).items():
        assert torch.equal(column, getattr(second, name)), name
    columns = (first.sequence, first.head, first.target, first.source)
    at = dense[tuple(column.long() for column in columns)]
    torch.testing.assert_close(first.weight, at, rtol=2e-5, atol=0)
    assert len(first.weight) == len(joined(reference.collect_edges(edges, cuts)).weight)


def test_table_without_log_sum_exp(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is computed once, over all sources, whatever the tables hold."""
    monkeypatch.setattr(budgets, "TABLE_ELEMENTS", 700)
    problem = Problem(replace(WIDE, length=70), backend="reference")
    edges = problem.norm_edges()
    cuts = gap_cuts(problem.norm_weights(), (0.9, 0.6))
    expected = rows_of(table_of(edges, cuts))
    weighing = ops.weighing.Weighing
    compute = weighing._logsumexp
    with mock.patch.object(weighing, "_logsumexp", autospec=True, side_effect=compute) as once:
        assert rows_of(table_of(replace(edges, pattern=problem.pattern), cuts)) == expected
    once.assert_called_once()


def test_segments_of_any_integers_and_layout() -> None:
    problem = Problem(replace(WIDE, length=30), backend="reference")
    edges, cuts, segments = written_edges(problem), torch.zeros(1, 2, 30), problem.segments
    assert segments is not None
    expected = rows_of(table_of(edges, cuts))
    for other in (segments.long(), segments.T.contiguous().T):
        moved = replace(edges, pattern=replace(edges.pattern, segments=other))
        assert rows_of(table_of(moved, cuts)) == expected


# ---- cuts of nodes -----------------------------------------------------------------------------


def assert_cuts(edges: AttentionEdges | None, side: Tensor, shares: list[float]) -> None:
    """Equal to the definition bit for bit, in either order of threads."""
    with pytest.MonkeyPatch.context() as patch:
        cuda_host.switch_on(patch)
        first, second = both_orders(lambda: all_cuts(cuda_host.NAME, edges, side, shares))
    assert torch.equal(first, second)
    assert torch.equal(first, all_cuts("reference", edges, side, shares))


@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 2),
    length=st.integers(1, 40),
    heads=st.sampled_from([0, 1, 3, 16, 33]),
    sides=st.integers(0, 3),
    window=st.sampled_from([None, 1, 7]),
    tie=st.booleans(),
    shares=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=20).map(sorted),
    elements=st.sampled_from([1, 1000, 1 << 24]),
)
def test_any_cuts_agree_with_the_definition(
    seed: int,
    batch: int,
    length: int,
    heads: int,
    sides: int,
    window: int | None,
    tie: bool,
    shares: list[float],
    elements: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        if tie:
            return weights_that_tie(generator, *shape)
        return torch.exp(4 * torch.randn(shape, generator=generator))

    edges = None
    if heads:
        empty = torch.zeros(batch, heads, length, 1)
        weight = GivenWeight(drawn(batch, heads, length, length))
        edges = AttentionEdges(Pattern(empty, empty, 1.0, window=window), weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budgets, "TILE_ELEMENTS", elements)
        patch.setattr(budgets, "FEWEST_NODES", 1)
        patch.setattr(budgets, "SIDE", 1)
        assert_cuts(edges, drawn(sides if heads else sides + 1, batch, length), shares)


@pytest.mark.parametrize("side", [1, 4])
@pytest.mark.parametrize("batch", [1, 3, 300])
def test_tiles_of_whole_nodes_occupy_a_gpu(
    batch: int, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few targets TILE_ELEMENTS allows; they make up whole blocks of weigh.cu."""
    monkeypatch.setattr(budgets, "TILE_ELEMENTS", 1)
    monkeypatch.setattr(budgets, "FEWEST_NODES", 7)
    monkeypatch.setattr(budgets, "SIDE", side)
    rows = [len(range(*tile.rows.indices(20))) for tile in ops.tiles.node_tiles(batch, 2, 20)]
    assert sum(rows) == 20
    assert all(batch * count >= 7 and count % side == 0 for count in rows[:-1])
    assert -(-7 // batch) <= max(rows) < -(-7 // batch) + side


@pytest.mark.parametrize(
    ("elements", "rows"), [(40, [2] * 10), (140, [4] * 5), (180, [8, 8, 4]), (999, [20])]
)
def test_tiles_of_more_than_a_block_end_with_one(
    elements: int, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "TILE_ELEMENTS", elements)
    monkeypatch.setattr(budgets, "SIDE", 4)
    tiles = list(ops.tiles.tiles(batch=1, head=0, heads=1, length=20))
    assert [tile.rows.stop - tile.rows.start for tile in tiles] == rows


@pytest.mark.parametrize("strata", [1, 2, 16, 17, 255])  # with 4,096, 256 and 16 bins each
def test_cuts_of_long_rows(strata: int) -> None:
    """Many stretches of sources, and bins with many edges."""
    generator = torch.Generator().manual_seed(strata)
    side = torch.exp(2 * torch.randn(30_000, 1, 2, generator=generator))
    side[:9000, :, 1] = 0.7  # and many ties
    assert_cuts(None, side, [(k + 1) / (strata + 1) for k in range(strata)])
    length, heads = 300, 20
    weight = torch.full((1, heads, length, length), -torch.inf)
    weight[:, :, -3:] = torch.exp(torch.randn(1, heads, 3, length, generator=generator))
    empty = torch.zeros(1, heads, length, 1)
    edges = AttentionEdges(Pattern(empty, empty, 1.0), GivenWeight(weight))
    assert_cuts(edges, side[:2, :, :1].expand(-1, -1, length), [0.2, 0.9, 1.0])


@pytest.mark.parametrize("weights", [[0.0, 0.0], [-0.0, 1e-45], [1e-45, 3e-45, 2e-38, 1.0], [1e38]])
def test_cuts_of_weights_at_either_end(weights: list[float]) -> None:
    assert_cuts(None, torch.tensor(weights)[:, None, None], [0.25, 0.75, 1.0])


@pytest.mark.parametrize("total", [1.000001, 1e30, torch.inf])
def test_a_total_above_the_sum_keeps_all_edges_that_weigh(total: float) -> None:
    """However little: 2^-70 and 2^-131 of the heaviest, of which no sum shows more."""
    side = torch.tensor([1.0, 2.0**-70, 2.0**-131, 0.0])[:, None, None]
    shares = torch.ones(1, dtype=torch.float64)
    assert ops.nucleus_cuts(None, side, shares, torch.full((1, 1), total)) == 2.0**-132


def test_a_bin_that_is_full_to_the_last_bit() -> None:
    """The low halves of its shares add up to 2^32 - 1, so that nothing is carried."""
    digits = torch.tensor([14316558.0] * 195 + [14316557.0] * 105)
    lightest = torch.tensor([9.0e6, 9.1e6, 9.2e6, 9.3e6])
    side = torch.cat([torch.tensor([2.0**40]), digits, lightest]) * 2.0**-40
    wanted = side[:302].double().sum() / side.double().sum()
    assert_cuts(None, side[:, None, None], [float(wanted)])


def test_light_edges_count_where_sums_are_rounded() -> None:
    """Each sum of 60 is too large by 28 units: of every one the last edge weighs less than half."""
    unit = 2.0**-23
    side = torch.tensor([1.0] + [0.51 * unit] * 57 + [0.45 * unit] + [0.0])
    assert_cuts(None, side.repeat_interleave(512)[:, None, None], [1.0])


@pytest.mark.parametrize("span", [4095, 4095 << 7 | 5])
def test_the_lightest_edge_alone_in_the_last_bin(span: int) -> None:
    """It is the last edge of a stratum that keeps all, not also the first that is left out."""
    lightest = torch.tensor([1.0]).view(torch.int32) - span
    side = torch.cat([torch.tensor([1.0, 0.9999]), lightest.view(torch.float32)])
    assert_cuts(None, side[:, None, None], [0.3, 1.0])


def test_sums_of_millions_of_heavy_edges_do_not_overflow() -> None:
    """With the units of few edges this one would pass 2^64."""
    assert_cuts(None, many_heavy_weights(10 << 20), [0.2, 0.45, 0.7, 0.95])


# ---- proximity ---------------------------------------------------------------------------------


def proximity_edges(problem: Problem) -> AttentionEdges:
    return problem.edges(ProximityWeight(problem.node, problem.v, problem.w_o, problem.target))


@pytest.mark.parametrize("width", [1, 8, 33, 128])  # part of a quad, a quad, several steps
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_of_tokens_are_as_precise_as_float32(width: int, dtype: torch.dtype) -> None:
    """Scores and bounds against float64, over the edges of a tile."""
    shape = Shape(length=70, d_k=width, d_v=width, dtype=dtype)
    problem = Problem(shape, backend="reference")
    weighing = ops.weighing.Weighing(replace(proximity_edges(problem), pattern=problem.pattern))
    (tile,) = ops.tiles.tiles(2, 0, 4, 70)
    share = torch.empty(tile.shape)
    bound = weighing.weigh(tile, share)
    alpha = problem.alpha()[0]
    expected = alpha * problem.target.double().numpy()[:, None, :, None]
    edge = np.tril_indices(70)
    close("share", share[:, :, *edge], expected[:, :, *edge])
    signs = np.where(problem.node.double().numpy() < 0, -1.0, 1.0)
    expected = expected * np.einsum("bte,bhse->bhts", signs, problem.sent())
    close("bound", bound[:, :, *edge], expected.clip(min=0)[:, :, *edge])


def test_factors_are_aligned_for_quads() -> None:
    """Whatever part of a larger tensor they are."""
    problem = Problem(Shape(d_k=8, d_v=8, dtype=torch.bfloat16), backend="reference")
    edges = proximity_edges(problem)
    shifted = []
    for tensor in (problem.pattern.q, problem.v):
        memory = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)
        shifted.append(memory[1:].view(tensor.shape).copy_(tensor))
        assert shifted[-1].data_ptr() % 16 == 2
    assert isinstance(edges.weight, ProximityWeight)
    moved = AttentionEdges(
        replace(edges.pattern, q=shifted[0]), replace(edges.weight, v=shifted[1])
    )
    assert all(tensor.data_ptr() % 16 == 0 for tensor in ops.weighing.Weighing(moved).tensors)
    assert torch.equal(ops.edge_mass(moved), ops.edge_mass(edges))
    fewer = replace(moved, weight=replace(edges.weight, v=problem.v[:, :1]))
    with pytest.raises(ValueError, match=r"a factor has shape \[2, 1, 13, 24\]; wanted \[2, 2, 1"):
        ops.edge_mass(fewer)


def assert_levels(actual: EdgeLevels, expected: EdgeLevels) -> None:
    assert torch.equal(actual.levels, expected.levels)
    assert torch.equal(actual.degrees, expected.degrees)


def test_proximity_is_exact_where_a_cut_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels are those of the full sums, though few edges are summed in full."""
    problem = Problem(Shape(length=97, d_k=16, d_v=16, hidden=64), backend="reference")
    edges = proximity_edges(problem)
    total = reference.edge_mass(edges)
    cuts = torch.tensor([0.1, 0.02, 0.005])[:, None, None] * total
    expected = reference.edge_levels(edges, cuts)
    for elements in (1, 3000, 1 << 24):
        monkeypatch.setattr(budgets, "TILE_ELEMENTS", elements)
        actual = ops.edge_levels(edges, cuts)
        assert_levels(actual, expected)
        assert 0 < float(actual.evaluated) < 0.4
    every = ops.edge_levels(edges, cuts * 0)
    assert float(actual.evaluated) < float(every.evaluated) < 1
    # A cut below zero: edges that add nothing clear it, absent ones do not.
    all_kept = torch.full_like(cuts, -1.0)
    assert_levels(ops.edge_levels(edges, all_kept), reference.edge_levels(edges, all_kept))


def exact_weights(edges: AttentionEdges) -> Tensor:
    """Proximities [B, H, T, T], all exact as the kernels sum them; -inf: no edge."""
    weights = torch.full((*edges.pattern.shape, edges.pattern.shape[-1]), -torch.inf)
    for tile, weight in ops.proximity.Proximity(edges).tiles():
        place = torch.arange(tile.rows.stop)
        exact = weight.masked_fill(place > place[tile.rows, None], -torch.inf)  # not written
        weights[:, tile.head : tile.head + tile.heads, tile.rows, : tile.rows.stop] = exact
    return weights


@pytest.mark.parametrize("elements", [1, 12_000, 1 << 25])  # per tile: a row, three heads, all
def test_labels_equal_those_of_full_sums(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: a bound is kept only if both ends of its interval have the same label."""
    monkeypatch.setattr(budgets, "TILE_ELEMENTS", elements)
    shape = Shape(heads=4, length=40, d_k=16, d_v=16, hidden=50, window=30, segments=True)
    edges = proximity_edges(Problem(shape, backend="reference"))
    weights = exact_weights(edges)
    ordered = weights.transpose(1, 2).flatten(2).sort(-1, descending=True).values
    at_a_weight, between = ordered[..., 5], ordered[..., 9:11].mean(-1)
    cuts = torch.stack([ordered[..., 1], at_a_weight, at_a_weight * 0.9999, between])
    cuts = cuts.clamp(min=0).sort(0, descending=True).values
    kept = weights > cuts[:, :, None, :, None]
    for actual in both_orders(lambda: ops.edge_levels(edges, cuts)):
        assert torch.equal(actual.levels.long(), kept.sum(0).amax(1))
        assert torch.equal(actual.degrees.long(), kept.sum((2, 4)))
        assert 0 < float(actual.evaluated) < 1
    close("mass", ops.edge_mass(edges), weights.clamp(min=0).sum((1, 3)).double().numpy())


def test_rounding_hides_no_doubt() -> None:
    """Edges as far below their bounds as can be, with cuts at their weights."""
    edge = torch.zeros(1000, 1, 1, 1)
    v = torch.linspace(1.01, 1.99, 1000)[:, None, None, None]
    weight = ProximityWeight(torch.ones(1000, 1, 45), v, torch.ones(1, 45, 1))
    edges = AttentionEdges(Pattern(edge, edge, 1.0), weight)
    cuts = exact_weights(edges).view(1, 1000, 1)
    assert (cuts > 0).all()
    assert not ops.edge_levels(edges, cuts).levels.any()


@pytest.mark.parametrize("elements", [700, 12_000, 1 << 25])  # per tile: some rows, heads, all
@pytest.mark.parametrize("room", [0, 5000, 1 << 27])  # for no tile, some, all
def test_levels_reuse_tiles_kept_by_the_mass(
    elements: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Levels are equal bit for bit; each kept tile, and the share summed, is used once."""
    monkeypatch.setattr(budgets, "TILE_ELEMENTS", elements)
    monkeypatch.setattr(budgets, "SCRATCH_ELEMENTS", room)
    shape = Shape(heads=4, length=40, d_k=16, d_v=16, hidden=50, window=30, segments=True)
    edges = proximity_edges(Problem(shape, backend="reference"))
    cuts = torch.tensor([0.1, 0.02, 0.005])[:, None, None] * reference.edge_mass(edges)
    alone = ops.edge_levels(edges, cuts)
    ops.edge_mass(edges)
    assert sum(map(Tensor.numel, edges.scratch.values())) <= room + 2 * 2 * 4 * 40
    with monkeypatch.context() as patch:
        if room == 1 << 27:
            patch.setattr(ops.proximity, "Weighing", None)
        actual = ops.edge_levels(edges, cuts)
    assert edges.scratch == {}
    assert_levels(actual, alone)
    assert float(alone.evaluated) <= float(actual.evaluated) < 1
    again = ops.edge_levels(edges, cuts)
    assert_levels(again, alone)
    assert again.evaluated == alone.evaluated
    # Edges with another pattern share nothing.
    ops.edge_mass(edges)
    assert replace(edges, pattern=edges.pattern).scratch == {}


@pytest.mark.parametrize("length", [1024, 1030])  # sources are listed 1,024 at a time
def test_many_sources(length: int) -> None:
    shape = Shape(batch=1, heads=2, groups=1, length=length, d_k=3, d_v=4, hidden=5)
    problem = Problem(shape, backend="reference")
    # Equal attention, so that all sources count.
    even = replace(problem.pattern, q=torch.zeros_like(problem.pattern.q))
    edges = replace(proximity_edges(problem), pattern=even)
    expected = reference.edge_mass(edges)
    first, second = both_orders(lambda: ops.edge_mass(edges))
    assert torch.equal(first, second)
    close("mass", first, expected.double().numpy())
    actual = ops.proximity.Proximity(edges)
    list(actual.tiles())
    assert torch.equal(actual.edge_counts[0, 0], torch.arange(1, length + 1, dtype=torch.int32))


def test_every_source_is_summed() -> None:
    """All terms of all edges, of which more are in doubt than are listed at a time."""
    length = 1030
    qk, node = torch.zeros(1, 1, length, 1), torch.zeros(1, length, 3)
    weight = ProximityWeight(node, torch.ones(1, 1, length, 1), torch.ones(1, 3, 1))
    actual = ops.proximity.Proximity(AttentionEdges(Pattern(qk, qk, 1.0), weight))
    list(actual.tiles())
    assert not actual.sums.any()
    assert torch.equal(actual.summed_counts[0, 0], torch.arange(1, length + 1, dtype=torch.int32))


@pytest.mark.parametrize("elements", [1, 3000, 1 << 24])  # per tile: a row, some, all
def test_cuts_by_proximity(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the same two edges as the definition's, and the same in both orders."""
    monkeypatch.setattr(budgets, "TILE_ELEMENTS", elements)
    monkeypatch.setattr(budgets, "FEWEST_NODES", 1)
    monkeypatch.setattr(budgets, "SIDE", 1)
    cuda_host.switch_on(monkeypatch)
    shape = Shape(heads=4, length=40, d_k=16, d_v=16, hidden=50, window=30, segments=True)
    edges = proximity_edges(Problem(shape, backend="reference"))
    side = torch.rand(2, 2, 40, generator=torch.Generator().manual_seed(0))
    expected = all_cuts("reference", edges, side, [0.2, 0.6, 0.95])
    first, second = both_orders(lambda: all_cuts(cuda_host.NAME, edges, side, [0.2, 0.6, 0.95]))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-6)


def test_few_heads_send_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they send is no more than the weights of a tile, however wide the model."""
    edges = proximity_edges(Problem(Shape(hidden=50), backend="reference"))
    monkeypatch.setattr(budgets, "TILE_ELEMENTS", 3 * 2 * 13 * 50)
    send, sizes = ops.proximity.Proximity._sent, []

    def noted(*arguments: Any) -> Tensor:
        sent: Tensor = send(*arguments)
        sizes.append(sent.numel())
        return sent

    monkeypatch.setattr(ops.proximity.Proximity, "_sent", noted)
    ops.edge_mass(edges)
    assert sizes == [3 * 2 * 13 * 50, 2 * 13 * 50]


def test_cuts_reuse_tiles_kept_by_the_mass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The levels can still use it afterwards."""
    edges = proximity_edges(Problem(Shape(), backend="reference"))
    side, shares = torch.ones(1, 2, 13), torch.tensor([0.5], dtype=torch.float64)
    alone = ops.fraction_cuts(edges, side, shares)
    mass = ops.edge_mass(edges)
    with monkeypatch.context() as patch:
        patch.setattr(ops.proximity, "Weighing", None)
        assert torch.equal(ops.fraction_cuts(edges, side, shares), alone)
        cuts = torch.tensor([0.1, 0.02])[:, None, None] * mass
        actual = ops.edge_levels(edges, cuts)
    assert edges.scratch == {}
    assert_levels(actual, reference.edge_levels(edges, cuts))


def test_what_no_kernel_has_written_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks above the diagonal, of whatever numbers: not only of NaN, which clears no cut."""
    cuda_host.switch_on(monkeypatch)
    problem = Problem(replace(WIDE, window=None), backend="reference")
    written, proximity = written_edges(problem), proximity_edges(problem)
    side, cuts = torch.ones(1, 2, 130), torch.full((1, 2, 130), -1.0)
    poisoned = torch.empty

    def results() -> list[Tensor]:
        levels = ops.edge_levels(proximity, cuts)
        return [
            *vars(table_of(written, cuts)).values(),
            *(all_cuts(cuda_host.NAME, edges, side, [0.5]) for edges in (written, proximity)),
            levels.levels,
            levels.degrees,
            ops.edge_mass(proximity),
        ]

    def large(*shape: Any, **kind: Any) -> Tensor:
        tensor: Tensor = poisoned(*shape, **kind)
        return tensor.nan_to_num(nan=1e9) if tensor.is_floating_point() else tensor

    expected = results()
    proximity.scratch.clear()
    monkeypatch.setattr(torch, "empty", large)
    for actual, one in zip(results(), expected, strict=True):
        assert torch.equal(actual, one)


def test_an_entry_that_is_zero() -> None:
    """A zero entry of the node, of either sign: adding to it brings the node no nearer."""
    problem = Problem(replace(WIDE, length=30), backend="reference")
    problem.node[:, ::2, ::3] = 0.0
    problem.node[:, ::2, 1::3] = -0.0
    problem.node[0, 4] = 0
    edges = proximity_edges(problem)
    expected = reference.edge_mass(edges)
    close("mass", ops.edge_mass(edges), expected.double().numpy())
    assert ops.edge_mass(edges)[0, 4] == 0
    cuts = torch.tensor([0.1, 0.01])[:, None, None] * expected
    assert_levels(ops.edge_levels(edges, cuts), reference.edge_levels(edges, cuts))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_are_not_hidden(value: float) -> None:
    """In a node or in what a source sends: the mass is NaN where the definition's is."""
    problem = Problem(Shape(), backend="reference")
    cuts = torch.full((1, 2, 13), 1e-3)
    problem.node[0, 3, 2] = value
    in_node = proximity_edges(problem)
    problem = Problem(Shape(), backend="reference")
    problem.v[1, :, 5, 1] = torch.nan  # in all heads: the definition's highest level is NaN's
    for edges in (in_node, proximity_edges(problem)):
        mass, expected = ops.edge_mass(edges), reference.edge_mass(edges)
        assert torch.equal(mass.isnan(), expected.isnan())
        assert 0 < int(expected.isnan().sum()) < 26
        assert_levels(ops.edge_levels(edges, cuts), reference.edge_levels(edges, cuts))


def test_entries_are_ranked_once() -> None:
    weight = proximity_edges(Problem(Shape(), backend="reference")).weight
    assert isinstance(weight, ProximityWeight)
    entry, dimension = weight.ranked
    assert weight.ranked[0] is entry
    assert torch.equal(entry, weight.node.gather(-1, dimension.long()))
    assert (entry.abs().diff(dim=-1) >= 0).all()
    assert torch.equal(dimension.long().sort().values[0, 0], torch.arange(11))


def test_small_proximities_are_not_rounded_away() -> None:
    """An edge so small that subtracting it leaves the node's float32 unchanged."""
    node, v = torch.full((1, 1, 3), 8.0), torch.full((1, 1, 1, 1), 1e-9)
    pattern = Pattern(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 1.0)
    edges = AttentionEdges(pattern, ProximityWeight(node, v, torch.ones(1, 3, 1)))
    assert ops.edge_mass(edges).item() == pytest.approx(3e-9, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", ["cpu", "meta"])  # meta: only checks, no results
def test_products_are_as_precise_as_float32(dtype: torch.dtype, device: str) -> None:
    drawn = torch.randn(2, 12, 300, generator=torch.Generator().manual_seed(0))
    many = drawn[:, :5].to(dtype), drawn[:, 5:].transpose(1, 2)
    for left, right in (many, (many[0][0], many[1][0])):  # batched, and single
        actual = ops.product(left.to(device), right.to(device))
        assert (actual.dtype, actual.shape) == (torch.float32, (*left.shape[:-1], 7))
        if device == "cpu":
            expected = left.double() @ right.double()
            rounded = (left.float() @ right - expected).abs().max()
            assert (actual - expected).abs().max() < 3 * rounded + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_public_product_is_the_precise_one(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On matrix units, and in plain torch."""
    left = torch.randn(9, 301, generator=torch.Generator().manual_seed(0))
    right = torch.randn(70, 301, generator=torch.Generator().manual_seed(1)).T.to(dtype)
    expected = (left.double() @ right.double()).numpy()
    close("in torch", kernels.product(left, right), expected)
    cuda_host.switch_on(monkeypatch)
    monkeypatch.setitem(dispatch.PREFERENCE, "cpu", (cuda_host.NAME, "reference"))
    actual = kernels.product(left, right)
    close("in pieces", actual, expected)
    assert torch.equal(actual, ops.product(left, right))


def test_a_16_bit_factor_is_not_copied() -> None:
    """W_O is not copied to 16 bits."""
    left, right = torch.randn(5, 8).bfloat16(), torch.randn(4, 8).bfloat16().T
    split = ops.products.split_factors(left, right, -2)
    for laid_out, factor in zip(split, (left, right), strict=True):
        assert laid_out.data_ptr() == factor.data_ptr()


@pytest.mark.parametrize(
    ("dtype", "count"), [(torch.float32, 3), (torch.float16, 2), (torch.bfloat16, 1)]
)
def test_pieces_of_8_bits(dtype: torch.dtype, count: int) -> None:
    """Each piece is bfloat16, and they sum to the tensor."""
    tensor = torch.randn(50).to(dtype)
    pieces = ops.products._pieces(tensor)
    assert [piece.dtype for piece in pieces] == [torch.bfloat16] * count
    assert torch.equal(sum(piece.double() for piece in pieces), tensor.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_proximity_on_two_runs(dtype: torch.dtype) -> None:
    problem = Problem(replace(WIDE, length=66, dtype=dtype), backend="reference")
    edges = proximity_edges(problem)
    expected = reference.edge_mass(edges)
    first, second = both_orders(lambda: ops.edge_mass(edges))
    assert torch.equal(first, second)
    close("mass", first, expected.double().numpy())
    cuts = torch.linspace(0.2, 1e-3, 255)[:, None, None] * expected
    levels, again = both_orders(lambda: ops.edge_levels(edges, cuts))
    assert_levels(levels, again)
    assert levels.levels.max() > 200
    slack = [reference.edge_levels(edges, cuts * (1 + shift)) for shift in (1e-4, -1e-4)]
    for name in ("levels", "degrees"):
        low, ours, high = (getattr(x, name).int() for x in (slack[0], levels, slack[1]))
        assert ((low <= ours) & (ours <= high)).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(1, 70),
    groups=st.integers(1, 3),
    repeats=st.integers(1, 3),
    width=st.integers(1, 40),
    variant=st.sampled_from(list(VARIANTS.values())),
    elements=st.sampled_from([1, 1000, 1 << 24]),
)
def test_any_shape_agrees_with_the_definition(
    seed: int, length: int, groups: int, repeats: int, width: int, variant: Shape, elements: int
) -> None:
    shape = replace(
        variant, length=length, groups=groups, heads=groups * repeats, d_k=width, d_v=width + 3
    )
    problem = Problem(shape, seed, backend="reference")
    written, proximity = written_edges(problem), proximity_edges(problem)
    if seed % 2:  # unknown log-sum-exp
        proximity = replace(proximity, pattern=problem.pattern)
    cuts = torch.tensor([1.0, 0.0])[:, None, None].expand(2, shape.batch, length)
    with pytest.MonkeyPatch.context() as patch:
        for budget in ("TILE_ELEMENTS", "TABLE_ELEMENTS"):
            patch.setattr(budgets, budget, elements)
        actual = table_of(written, cuts)
        mass = ops.edge_mass(proximity)
    assert rows_of(actual) == rows_of(joined(reference.collect_edges(written, cuts)))
    close("mass", mass, reference.edge_mass(proximity).double().numpy())


@pytest.mark.parametrize("rule", [Threshold([1e-3, 1e-2, 0.1]), Nucleus([0.5, 0.95])], ids=str)
def test_a_trace_by_proximity(rule: Threshold | Nucleus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Node vectors, mass, cuts and levels in the engine: sizes equal those of the CPU's ops."""
    ids = golden("mistral", "T08")["ids"].tolist()

    def sizes() -> Any:
        tracer = Tracer(tracer_of("mistral")._decoder.model)
        trace = tracer.trace(ids, importance="proximity", select=rule)
        assert isinstance(trace, Trace)
        return trace.edge_count

    expected = sizes()
    cuda_host.switch_on(monkeypatch)
    monkeypatch.setitem(dispatch.PREFERENCE, "cpu", (cuda_host.NAME, "cpu", "reference"))
    taken, keep_weights = [], ops.proximity.Proximity.keep_weights

    def noted(proximity: Any) -> None:
        keep_weights(proximity)
        taken.append(proximity.edges.scratch)

    monkeypatch.setattr(ops.proximity.Proximity, "keep_weights", noted)
    np.testing.assert_array_equal(sizes(), expected)
    assert taken and not any(taken)  # the levels took everything that the mass had kept


def test_kinds_of_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_host.switch_on(monkeypatch)
    problem = Problem(Shape(), backend="reference")
    cuts = torch.zeros(1, 2, 13)
    with pytest.raises(BackendError, match="no edge_levels for NormWeight"):
        kernels.edge_levels(problem.norm_edges(), cuts, backend=cuda_host.NAME)
    with pytest.raises(BackendError, match="no collect_edges for ProximityWeight"):
        kernels.collect_edges(proximity_edges(problem), cuts, backend=cuda_host.NAME)
    assert dispatch.weighs(ops, "edge_mass", ProximityWeight)
