"""On a GPU: each kernel against loops in float64, and the lane engine against the goldens.

Inputs are drawn, and results checked, on the CPU; the ops in between run on the GPU.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import cache
from importlib import import_module
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from attention_problem import (
    OTHER_KINDS,
    VARIANTS,
    Floats,
    Problem,
    Shape,
    assert_attention_stats,
    assert_cuts_of_ties,
    assert_lanes_keep_what_levels_count,
    close,
    gap_cuts,
    joined,
    weight_of,
)
from golden import CUT_RULES, FAMILIES, GOLDENS, assert_golden, golden, golden_trace
from oracles import errors as oracle_errors

from densitrace import Threshold, Trace, Tracer, kernels
from densitrace.kernels import CosineWeight, dispatch, triton
from densitrace.tracer.engine import LaneLoop
from densitrace.tracer.tracing import Settings

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
TRITON_OPS = tuple(triton.__all__)
CUDA_OPS = (
    "bottleneck", "trace_sizes", "collect_edges", "nucleus_cuts", "fraction_cuts", "proximity",
    "product",
)  # fmt: skip

WIDE = {
    "width 64": Shape(heads=4, groups=2, length=129, d_k=64, d_v=64, hidden=96),
    "width 128, bfloat16": Shape(
        batch=1, heads=4, groups=1, length=191, d_k=128, d_v=128, dtype=torch.bfloat16
    ),
    "width 256, float16": Shape(
        batch=1, heads=2, groups=1, length=65, d_k=256, d_v=256, dtype=torch.float16
    ),
    "width 512, bfloat16": Shape(
        batch=1, heads=2, groups=1, length=35, d_k=512, d_v=512, dtype=torch.bfloat16
    ),
    "bfloat16, wide queries": Shape(
        batch=1, length=65, d_k=40, d_v=24, dtype=torch.bfloat16, wide=True
    ),
    "unequal, all": Shape(
        heads=4, length=111, d_k=96, d_v=40, window=50, softcap=3.0, sinks=True, segments=True,
        dtype=torch.bfloat16,
    ),
}  # fmt: skip
SHAPES = VARIANTS | WIDE


def moved(value: Any, device: str) -> Any:
    """Move tensors to a device, also in dataclasses and iterators; everything else is unchanged.

    Strides are kept.
    """
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Iterator):
        return (moved(entry, device) for entry in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value,
            **{entry.name: moved(getattr(value, entry.name), device) for entry in fields(value)},
        )
    return value


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch, poisoned: None) -> None:
    """Run ops on CPU tensors on the GPU."""
    pick = dispatch.pick

    def pick_there(op: Callable[..., Any], device: Any, *how: Any) -> Callable[..., Any]:
        if how[0] in ("cpu", "reference"):  # the expected results
            return pick(op, device, *how)
        function = pick(op, DEVICE, *how)

        def there(*arguments: Any) -> Any:
            return moved(function(*(moved(value, DEVICE) for value in arguments)), "cpu")

        return there

    monkeypatch.setattr(dispatch, "pick", pick_there)


# ---- one check per op ------------------------------------------------------------------------


def check_source_norms(problem: Problem) -> None:
    for p in (1, 2):
        actual = kernels.source_norms(problem.v, problem.w_o, p, backend="triton")
        # w_o may be rounded to the values' 16 bits: by 2^-9 each in bfloat16.
        ratio = 2e-5 if problem.shape.dtype == torch.float32 else 2.0**-8
        close(f"L{p}", actual, np.linalg.norm(problem.sent(), p, axis=-1), ratio)


def exact_norm_edges(problem: Problem) -> kernels.AttentionEdges:
    """Edges with the oracle's source norms, so that no rounding of norms moves a weight."""
    norms = torch.from_numpy(np.abs(problem.sent()).sum(-1)).float()
    return problem.edges(kernels.NormWeight(norms, problem.target))


def check_edge_mass(problem: Problem) -> None:
    actual = kernels.edge_mass(exact_norm_edges(problem), backend="triton")
    close("mass", actual, problem.norm_weights().sum((1, 3)))


def check_edge_levels(problem: Problem) -> None:
    weights = problem.norm_weights()
    cuts = gap_cuts(weights, (0.9, 0.7, 0.2))
    kept = weights[None] > cuts.double().numpy()[:, :, None, :, None]  # [K, B, H, T, T]
    actual = kernels.edge_levels(exact_norm_edges(problem), cuts, backend="triton")
    np.testing.assert_array_equal(actual.levels, kept.sum(0).max(1))
    np.testing.assert_array_equal(actual.degrees, kept.sum((2, 4)))


def check_nucleus_cuts(problem: Problem) -> None:
    """The kept edges reach the mass, and without the lightest of them they do not."""
    weights = problem.norm_weights()
    side = problem.normal(2, problem.shape.batch, problem.shape.length).abs()
    attention = weights.transpose(0, 2, 1, 3).reshape(*side.shape[1:], -1)
    rows = np.concatenate([attention, np.moveaxis(side.double().numpy(), 0, -1)], axis=-1)
    total = rows.sum(-1)
    masses = (0.2, 0.6, 0.97)
    cuts = kernels.nucleus_cuts(
        exact_norm_edges(problem),
        side,
        masses,
        torch.from_numpy(total).float(),
        backend=problem.backend,
    )
    for (k, b, t), cut in np.ndenumerate(cuts.double().numpy()):
        kept = rows[b, t][rows[b, t] > cut]
        wanted = masses[k] * total[b, t]
        assert kept.sum() >= wanted * (1 - 1e-5)
        assert kept.sum() - kept.min() <= wanted * (1 + 1e-5)
    assert_cuts_of_ties(problem)


def check_fraction_cuts(problem: Problem) -> None:
    """The number of edges above the cut is the fraction of the node's edges, rounded up."""
    weights, allowed = problem.norm_weights(), problem.allowed()
    side = problem.normal(2, problem.shape.batch, problem.shape.length).abs()
    fractions = (0.1, 0.5, 1.0)
    edges = exact_norm_edges(problem)
    cuts = kernels.fraction_cuts(edges, side, fractions, backend=problem.backend).double().numpy()
    for (k, b, t), cut in np.ndenumerate(cuts):
        node = np.append(weights[b, :, t][:, allowed[b, t]], side[:, b, t].double().numpy())
        wanted = math.ceil(fractions[k] * len(node))
        # Two neighbours swapped by rounding lie equally close to the cut, which is between them.
        assert (node > cut + 1e-4 * abs(cut)).sum() <= wanted
        assert (node > cut - 1e-4 * abs(cut)).sum() >= wanted


def check_lane_attention(problem: Problem) -> None:
    shape, weights = problem.shape, problem.norm_weights()
    cuts = gap_cuts(weights, (0.8, 0.3))
    lanes = [Problem(shape, seed) for seed in (1, 2)]
    own = replace(
        problem.pattern,
        q=torch.stack([lane.pattern.q for lane in lanes]),
        k=torch.stack([lane.pattern.k for lane in lanes]),
    )
    values = torch.stack([lane.v for lane in lanes])
    for live, invert in ((True, False), (True, True), (False, False), (False, True)):
        actual = kernels.lane_attention(
            exact_norm_edges(problem), cuts, values, own if live else None, invert=invert,
            backend="triton",
        )  # fmt: skip
        kept = (weights[None] > cuts.double().numpy()[:, :, None, :, None]) != invert
        for k, lane in enumerate(lanes):
            lane.pattern = replace(lane.pattern, sinks=problem.pattern.sinks)
            alpha = (lane if live else problem).alpha()[0]
            v = lane.v.double().repeat_interleave(shape.heads // shape.groups, 1).numpy()
            close(f"lane {k} {live}", actual[k], (alpha * kept[k]) @ v, problem.product_ratio)


def levels_of(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Random level maps uint8 [B, T, T] of the problem's size."""
    size = (problem.shape.batch, problem.shape.length, problem.shape.length)
    drawn = torch.randint(0, 4, (2, *size), generator=problem.generator)
    return drawn[0].tril().byte(), drawn[1].tril().byte()


def check_bottleneck(problem: Problem) -> None:
    reach, levels = levels_of(problem)
    paths = [np.minimum(row.numpy()[:, :, None], other.numpy()[None]).max(1)
             for row, other in zip(reach, levels, strict=True)]  # fmt: skip
    actual = kernels.bottleneck(reach, levels, backend=problem.backend)
    np.testing.assert_array_equal(actual, np.stack(paths))
    if problem.backend == "cuda":  # the method not chosen, too
        other = import_module("densitrace.kernels.cuda").bottleneck
        actual = other(reach.to(DEVICE), levels.to(DEVICE), "boolean")
        np.testing.assert_array_equal(actual.cpu(), np.stack(paths))


def check_trace_sizes(problem: Problem) -> None:
    reach, _ = levels_of(problem)
    degrees = torch.randint(0, 9, (3, *reach.shape[:2]), generator=problem.generator).int()
    actual = kernels.trace_sizes(reach, degrees, backend=problem.backend)
    for k in range(3):
        inside = reach.numpy() >= 3 - k
        np.testing.assert_array_equal(actual[k], (inside * degrees[k].numpy()[:, None]).sum(-1))


def check_collect_edges(problem: Problem) -> None:
    """The kept edges in order, each with its weight and first stratum."""
    weights = problem.norm_weights()
    cuts = gap_cuts(weights, (0.9, 0.6))
    tables = kernels.collect_edges(exact_norm_edges(problem), cuts, backend=problem.backend)
    actual = joined(tables)
    kept = weights[None] > cuts.double().numpy()[:, :, None, :, None]
    places = np.argwhere(kept[1])  # in the table's order: sequence, head, target, source
    columns = (actual.sequence, actual.head, actual.target, actual.source)
    np.testing.assert_array_equal(torch.stack(columns, 1), places)
    np.testing.assert_array_equal(actual.stratum, 1 - kept[0][kept[1]])
    np.testing.assert_allclose(actual.weight, weights[kept[1]], rtol=1e-4)


def check_proximity(problem: Problem) -> None:
    """Levels and mass under proximity equal plain torch, which is checked by float64 loops."""
    weight = kernels.ProximityWeight(problem.node, problem.v, problem.w_o, problem.target)
    edges = problem.edges(weight)
    dense = kernels.edge_weights(edges, backend="reference").nan_to_num(0)
    close("mass", kernels.edge_mass(edges, backend=problem.backend), dense.sum((1, 3)).numpy())
    # Halfway between a target's heaviest edges, so that rounding decides nothing.
    ordered = dense.transpose(1, 2).flatten(2).sort(-1, descending=True).values
    cuts = torch.stack([ordered[..., i : i + 2].mean(-1) for i in (0, 1)])
    actual = kernels.edge_levels(edges, cuts, backend=problem.backend)
    kept = dense > cuts[:, :, None, :, None]  # [K, B, H, T, T]
    assert torch.equal(actual.levels.int(), kept.sum(0, dtype=torch.int32).amax(1))
    assert torch.equal(actual.degrees, kept.sum((2, 4), dtype=torch.int32))


def check_product(problem: Problem) -> None:
    """With 16-bit and float32 factors, as precise as float32."""
    exact = problem.w_o.transpose(1, 2).flatten(0, 1)
    left = problem.normal(7, len(exact))
    for right in (exact, exact.to(problem.shape.dtype)):
        close("product", kernels.product(left, right), (left.double() @ right.double()).numpy())


def check_output_errors(problem: Problem) -> None:
    tokens, hidden, vocabulary = min(9, problem.shape.length), 48, 301
    states = problem.normal(tokens, hidden)
    noise = torch.tensor([2.0, 0.05, 0.0])[:, None, None]
    lanes = states + noise * problem.normal(3, tokens, hidden)
    table, bias = problem.normal(vocabulary, hidden) / hidden**0.5, problem.normal(vocabulary)
    next_ids = torch.arange(tokens) * 7
    actual = kernels.output_errors(
        states, lanes, table, bias, scale=0.9, softcap=5.0, next_ids=next_ids, backend="triton"
    )

    def logits(vectors: torch.Tensor) -> Floats:
        plain = 0.9 * (vectors.double() @ table.double().T).numpy() + bias.double().numpy()
        capped: Floats = 5.0 * np.tanh(plain / 5.0)
        return capped

    for k, m in np.ndindex(3, tokens):
        expected = oracle_errors(logits(states[m]), logits(lanes[k, m]), int(next_ids[m]))
        for name, value in expected.items():
            ours = float(getattr(actual, name)[k, m])
            np.testing.assert_allclose(ours, value, atol=2e-5, rtol=2e-5, err_msg=name)


def check_kind(kind: str, problem: Problem) -> None:
    """What Triton computes from weights other than norms, against the definition."""
    edges = problem.edges(weight_of(kind, problem))
    weights = kernels.edge_weights(edges, backend="reference").nan_to_num(0)
    cuts = gap_cuts(weights.double().numpy(), (0.9, 0.3))
    kept = weights > cuts[:, :, None, :, None]  # [K, B, H, T, T]
    mass = kernels.edge_mass(edges, backend="triton")
    close("mass", mass, weights.sum((1, 3)).double().numpy())
    if isinstance(edges.weight, CosineWeight):
        direction = edges.weight.direction.clone()
        direction[:, :, -1] = torch.nan
        spoilt = replace(edges, weight=replace(edges.weight, direction=direction))
        shown = kernels.edge_mass(spoilt, backend="triton").isnan()
        assert torch.equal(shown[:, -1], mass[:, -1] > 0) and not shown[:, :-1].any()
    levels = kernels.edge_levels(edges, cuts, backend="triton")
    assert torch.equal(levels.levels.int(), kept.sum(0, dtype=torch.int32).amax(1))
    assert torch.equal(levels.degrees, kept.sum((2, 4), dtype=torch.int32))
    side = problem.normal(1, problem.shape.batch, problem.shape.length).abs()
    drawn = [
        kernels.fraction_cuts(edges, side, (0.1, 0.5), backend=name)
        for name in ("triton", "reference")
    ]
    close("cuts", drawn[0], drawn[1].double().numpy(), 1e-4)
    pattern = edges.pattern
    q, k, values = (x.expand(2, *x.shape) for x in (pattern.q, pattern.k, problem.v))
    for lanes in (replace(pattern, lse=None, q=q, k=k), None):
        actual, expected = (
            kernels.lane_attention(edges, cuts, values, lanes, backend=name)
            for name in ("triton", "reference")
        )
        close(f"lanes, {kind}", actual, expected.double().numpy(), problem.product_ratio)


def check_few_strata(problem: Problem) -> None:
    """Cuts of few edges by one or two strata: a program has more threads than bins."""
    side = problem.normal(9, problem.shape.batch, problem.shape.length).abs()
    for fractions in ((0.5,), (0.1, 0.5)):
        actual, expected = (
            kernels.fraction_cuts(None, side, fractions, backend=name)
            for name in (problem.backend, "reference")
        )
        assert torch.equal(actual, expected)


CHECKS: dict[str, Callable[[Problem], None]] = {
    "source_norms": check_source_norms,
    "attention_stats": assert_attention_stats,
    "edge_mass": check_edge_mass,
    "edge_levels": check_edge_levels,
    "nucleus_cuts": check_nucleus_cuts,
    "fraction_cuts": check_fraction_cuts,
    "lane_attention": check_lane_attention,
    "bottleneck": check_bottleneck,
    "trace_sizes": check_trace_sizes,
    "collect_edges": check_collect_edges,
    "proximity": check_proximity,
    "product": check_product,
    "output_errors": check_output_errors,
}


BUILT = pytest.mark.skipif(dispatch.missing("cuda") is not None, reason="no nvcc, no build")
SERVED = [
    *(pytest.param("triton", op) for op in TRITON_OPS),
    *(pytest.param("cuda", op, marks=BUILT) for op in CUDA_OPS),
]


@pytest.mark.parametrize(("backend", "op"), SERVED)
@pytest.mark.parametrize("shape", list(SHAPES.values()), ids=list(SHAPES))
def test_op(shape: Shape, backend: str, op: str, on_gpu: None) -> None:
    CHECKS[op](Problem(shape, backend=backend))


@pytest.mark.parametrize("kind", OTHER_KINDS)
@pytest.mark.parametrize("shape", list(SHAPES.values()), ids=list(SHAPES))
def test_other_kinds_of_weight_under_triton(shape: Shape, kind: str, on_gpu: None) -> None:
    check_kind(kind, Problem(shape, backend="triton"))


@pytest.mark.parametrize("backend", ["triton", pytest.param("cuda", marks=BUILT)])
def test_few_strata(backend: str, on_gpu: None) -> None:
    check_few_strata(Problem(Shape(), backend=backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("live", [False, True])
def test_lanes_keep_the_edges_that_levels_count_under_triton(
    live: bool, dtype: torch.dtype, on_gpu: None
) -> None:
    assert_lanes_keep_what_levels_count(live, dtype)


@BUILT
@pytest.mark.parametrize("length", [65, 255, 700, 704])
def test_ways_of_the_max_min_product_agree(length: int) -> None:
    cuda = import_module("densitrace.kernels.cuda")
    drawn = torch.randint(0, 13, (2, 2, length, length), dtype=torch.uint8, device=DEVICE)
    expected = kernels.bottleneck(*drawn.cpu().tril(), backend="reference")
    for method in ("packed", "boolean"):
        assert torch.equal(cuda.bottleneck(*drawn, method).cpu(), expected)


@BUILT
@pytest.mark.parametrize("elements", [1, 5000, 20_000])  # a row, rows of a head, heads
def test_tables_in_turn(elements: int, on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets = import_module("densitrace.kernels.cuda.budgets")
    monkeypatch.setattr(budgets, "TABLE_ELEMENTS", elements)
    check_collect_edges(Problem(WIDE["unequal, all"], backend="cuda"))


@BUILT
def test_a_table_takes_the_memory_that_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = import_module("densitrace.kernels.cuda")
    monkeypatch.setattr(cuda.budgets, "TABLE_ELEMENTS", 1 << 20)
    shape = Shape(batch=2, heads=4, groups=2, length=1024, d_k=16, d_v=16, hidden=16)
    problem = Problem(shape, backend="reference")
    edges = moved(problem.norm_edges(), DEVICE)
    cuts = torch.full((1, 2, 1024), -1.0, device=DEVICE)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    sizes = list(map(lambda table: len(table.weight), cuda.collect_edges(edges, cuts)))  # noqa: C417
    assert sizes == [1024 * 1025 // 2] * 8
    few = 1 << 20  # for rows: copies of a head's queries and keys, counts
    assert torch.cuda.max_memory_allocated() - before <= 23 * (1 << 20) + few


@pytest.mark.parametrize(("backend", "op"), SERVED)
def test_sanitized(backend: str, op: str, on_gpu: None) -> None:
    """Small and odd, every variant on: run under compute-sanitizer by benches/gpu.sh."""
    shape = Shape(length=33, d_k=40, d_v=24, window=20, softcap=5.0, sinks=True, segments=True)
    for dtype in (torch.float32, torch.bfloat16):
        CHECKS[op](Problem(replace(shape, dtype=dtype), backend=backend))


# ---- the engine ------------------------------------------------------------------------------


@cache
def tracer_on(family: str) -> Tracer:
    return Tracer.from_pretrained(GOLDENS / family, device=DEVICE)


def traced(tracer: Tracer, family: str, rule: str = "threshold", **options: Any) -> Trace:
    return golden_trace(tracer, golden(family, "T16"), rule, count="causal", **options)


@pytest.mark.parametrize("rule", CUT_RULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_goldens(family: str, rule: str) -> None:
    """Sizes and errors of one output's traces and of their inverse."""
    trace = traced(tracer_on(family), family, rule, scope="output", controls=("inverse",))
    assert_golden(trace, golden(family, "T16"), rule)


@pytest.mark.parametrize("attention", ["live", "frozen"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_output(family: str, attention: str) -> None:
    """All outputs in one pass, under the controls, equal to the CPU's results."""
    options: dict[str, Any] = {"attention": attention, "controls": ("inverse", "random")}
    plain = Tracer.from_pretrained(GOLDENS / family, device="cpu", backend="reference")
    actual, expected = (traced(tracer, family, **options) for tracer in (tracer_on(family), plain))
    np.testing.assert_array_equal(actual.edge_count, expected.edge_count)
    for name, values in expected.errors.items():
        if name.startswith(("nucleus", "top1")):  # these jump where two tokens are equally likely
            assert (actual.errors[name] != values).any(1).sum() <= 2, name
        else:
            np.testing.assert_allclose(actual.errors[name], values, atol=1e-4, err_msg=name)


@contextmanager
def no_waits() -> Iterator[None]:
    """Raise an error if the host synchronises with the device while the context is open."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("attention", ["live", "frozen"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_block_makes_the_host_wait(
    family: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By CUDA's own check, under every control, once kernels are compiled and constants copied."""
    options: dict[str, Any] = {"attention": attention, "controls": ("inverse", "random")}
    traced(tracer_on(family), family, **options)
    run_block, blocks = LaneLoop._run_block, []

    def watched(*arguments: Any) -> Any:
        with no_waits():
            states = run_block(*arguments)
        blocks.append(states)
        return states

    monkeypatch.setattr(LaneLoop, "_run_block", watched)
    traced(tracer_on(family), family, **options)
    assert len(blocks) == tracer_on(family).n_layers
    with no_waits(), pytest.raises(RuntimeError, match="synchroniz"):
        blocks[0].sum().item()


def test_two_runs_agree() -> None:
    """Bit for bit: configurations are pinned, and no floats are summed in a random order."""
    first, second = (traced(tracer_on("mistral"), "mistral") for _ in range(2))
    for name, values in first.errors.items():
        np.testing.assert_array_equal(second.errors[name], values)


@pytest.mark.parametrize("family", FAMILIES)
def test_replayed_passes_agree(family: str) -> None:
    """Bit for bit, whatever the tokens, while the previous pass's results are being copied."""
    rows = [[[5, 9, 33, 2, 60, 17, first], [7, 7, 1, 30, first]] for first in range(6)]
    batches = [(row, [3, -1]) for row in rows]
    rule, settings = Threshold([0.4, 0.1, 0.01]), Settings(controls=("inverse",))
    model = tracer_on(family)._decoder.model
    tracers = Tracer(model), Tracer(model, cuda_graphs=True)
    plain, replayed = (
        list(chain(*tracer.trace_batches(batches, rule, settings))) for tracer in tracers
    )
    cache = tracers[1]._graphs
    assert cache is not None
    assert cache._graphs  # captured, not refused
    for ours, expected in zip(replayed, plain, strict=True):
        np.testing.assert_array_equal(ours.topology, expected.topology)
        for name, values in expected.errors.items():
            np.testing.assert_array_equal(ours.errors[name], values, err_msg=name)
