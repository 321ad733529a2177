"""Guarantees of the C++ ops beyond their contracts: bits, any shape, checked arguments."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from attention_problem import (
    Problem,
    Shape,
    all_cuts,
    assert_errors_agree,
    assert_rankings_of_ties,
    errors_of,
    joined,
    weight_of,
    weights_that_tie,
)
from hypothesis import given
from hypothesis import strategies as st

from densitrace import _cpu, kernels
from densitrace.kernels import (
    AttentionEdges,
    CosineWeight,
    GivenWeight,
    Pattern,
    ProximityWeight,
    RandomWeight,
    cpu,
)


def cosine_edges(problem: Problem) -> AttentionEdges:
    norms = kernels.source_norms(problem.v, problem.w_o, 2, backend=problem.backend)
    unit = problem.node / problem.node.norm(dim=-1, keepdim=True)
    direction = torch.einsum("bte,hed->bhtd", unit, problem.w_o)
    return problem.edges(CosineWeight(direction, 1 / norms, problem.v))


def proximity_edges(problem: Problem) -> AttentionEdges:
    return problem.edges(ProximityWeight(problem.node, problem.v, problem.w_o, problem.target))


def random_edges(problem: Problem) -> AttentionEdges:
    return problem.edges(RandomWeight(11, 3, problem.positions))


EDGES: dict[str, Callable[[Problem], AttentionEdges]] = {
    "norm": Problem.norm_edges,
    "cosine": cosine_edges,
    "proximity": proximity_edges,
    "random": random_edges,
}


def thresholds(edges: AttentionEdges) -> torch.Tensor:
    """float32 [3, B, T]: cuts between weights, high ones first."""
    weights = kernels.edge_weights(edges, backend="reference").transpose(1, 2).flatten(2)
    return torch.stack([torch.nanquantile(weights, q, -1) * 1.0001 + 1e-6 for q in (0.9, 0.6, 0.2)])


def lanes_of(problem: Problem, strata: int = 3) -> tuple[Pattern, torch.Tensor]:
    """Queries and keys of lanes near the clean one, and their values."""
    pattern = problem.pattern

    def near(tensor: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(strata, *tensor.shape, generator=problem.generator)
        return (tensor + 0.1 * noise).to(tensor.dtype)

    return replace(pattern, q=near(pattern.q), k=near(pattern.k)), near(problem.v)


def results(problem: Problem, kind: str) -> Iterator[tuple[str, Any]]:
    """Every op that looks at attention, on one problem."""
    backend = problem.backend
    source = kernels.source_norms(problem.v, problem.w_o, 1, backend=backend)
    yield "source_norms", source
    yield "source_norms, 2", kernels.source_norms(problem.v, problem.w_o, 2, backend=backend)
    yield "attention_stats", problem.stats(source)
    edges = EDGES[kind](problem)
    cuts = thresholds(EDGES[kind](replace_backend(problem)))
    yield "edge_mass", kernels.edge_mass(edges, backend=backend)
    yield "edge_weights", kernels.edge_weights(edges, backend=backend)
    yield "edge_levels", kernels.edge_levels(edges, cuts, backend=backend)
    yield "collect_edges", joined(kernels.collect_edges(edges, cuts, backend=backend))
    lanes, values = lanes_of(Problem(problem.shape, 1))
    for live in (lanes, None):
        for invert in (False, True):
            name = f"lane_attention, live={live is not None}, {invert=}"
            yield (
                name,
                kernels.lane_attention(edges, cuts, values, live, invert=invert, backend=backend),
            )
    side = problem.target[None]
    total = kernels.edge_mass(edges, backend="reference") + side[0]
    yield "nucleus_cuts", kernels.nucleus_cuts(edges, side, [0.3, 0.9], total, backend=backend)
    yield "fraction_cuts", kernels.fraction_cuts(edges, side, [0.1, 0.7], backend=backend)

    eligible = problem.target > 0.3
    counts = torch.tensor([[0] * len(side[0]), [5] * len(side[0])])
    drawn = random_edges(problem)
    yield "random_cuts", kernels.random_cuts(drawn, eligible, counts, backend=backend)
    yield "output_errors", errors_of(problem, vocabulary=331, backend=backend)


def replace_backend(problem: Problem) -> Problem:
    """The same problem for the plain torch ops, so that all backends get the same cuts."""
    return Problem(problem.shape, backend="reference")


def tensors(result: Any) -> dict[str, torch.Tensor]:
    if not is_dataclass(result):
        return {"result": result}
    values = {field.name: getattr(result, field.name) for field in fields(result)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def assert_same_bits(first: Any, second: Any, name: str) -> None:
    for part, tensor in tensors(first).items():
        # As bytes: NaN marks absent edges.
        ours, theirs = (t.contiguous().numpy().tobytes() for t in (tensor, tensors(second)[part]))
        assert ours == theirs, f"{name}: {part}"


@pytest.fixture(params=_cpu.instruction_sets())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(cpu, "ISA", request.param)
    return str(request.param)


LARGE = Shape(heads=4, length=129, d_k=16, d_v=24, hidden=48, window=100, segments=True)


@pytest.mark.parametrize("kind", EDGES)
@pytest.mark.usefixtures("isa")
def test_same_bits_on_two_runs_and_any_number_of_threads(kind: str) -> None:
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(list(results(Problem(LARGE, backend="cpu"), kind)))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        for (name, first), (_, second) in zip(runs[0], other, strict=True):
            assert_same_bits(first, second, name)


@pytest.mark.usefixtures("isa")
def test_a_sequence_has_the_same_bits_in_any_batch() -> None:
    """The same holds for a prefix: no weight depends on the rest of a strip or batch."""
    problem = Problem(Shape(batch=3, length=77, d_k=16), backend="cpu")
    pattern, v = problem.pattern, problem.v
    source = kernels.source_norms(v, problem.w_o, 1, backend="cpu")
    whole = kernels.attention_stats(pattern, v, source, backend="cpu")
    alone = replace(pattern, q=pattern.q[1:2, :, :50], k=pattern.k[1:2, :, :50])
    own = kernels.source_norms(v[1:2, :, :50], problem.w_o, 1, backend="cpu")
    part = kernels.attention_stats(alone, v[1:2, :, :50], own, backend="cpu")
    assert torch.equal(own, source[1:2, :, :50])
    assert torch.equal(part.lse, whole.lse[1:2, :, :50])
    assert torch.equal(part.output, whole.output[1:2, :, :50])
    assert torch.equal(part.mass, whole.mass[1:2, :50])


def assert_close(first: Any, second: Any, name: str) -> None:
    for part, tensor in tensors(first).items():
        theirs = tensors(second)[part]
        if tensor.is_floating_point():
            # Sums of up to a few hundred float32 terms in two orders.
            bound = 2e-5 * max(1.0, float(theirs.nan_to_num().abs().max()) if len(theirs) else 1.0)
            torch.testing.assert_close(
                tensor, theirs, atol=bound, rtol=0, equal_nan=True, msg=f"{name}: {part}"
            )
        else:
            assert torch.equal(tensor, theirs), f"{name}: {part}"


@given(
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(1, 70),
    groups=st.integers(1, 3),
    repeats=st.integers(1, 3),
    kind=st.sampled_from(list(EDGES)),
    isa=st.sampled_from(_cpu.instruction_sets()),
)
def test_any_shape_agrees_with_the_definition(
    data: st.DataObject,
    seed: int,
    length: int,
    groups: int,
    repeats: int,
    kind: str,
    isa: str,
) -> None:
    segments = data.draw(st.booleans())
    shape = Shape(
        batch=data.draw(st.integers(1, 2)),
        heads=groups * repeats,
        groups=groups,
        length=length,
        d_k=data.draw(st.integers(1, 40)),
        d_v=data.draw(st.integers(1, 40)),
        hidden=data.draw(st.integers(1, 40)),
        window=data.draw(st.none() | st.integers(1, 70)),
        softcap=data.draw(st.none() | st.floats(0.5, 50)),
        sinks=data.draw(st.booleans()),
        segments=segments,
        scattered=segments and data.draw(st.booleans()),
        dtype=data.draw(st.sampled_from([torch.float32, torch.bfloat16])),
    )
    problems = [Problem(shape, seed, backend) for backend in ("cpu", "reference")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "ISA", isa)
        source = [kernels.source_norms(p.v, p.w_o, 1, backend=p.backend) for p in problems]
        assert_close(source[0], source[1], "source_norms")
        stats = [p.stats(source[1]) for p in problems]
        assert_close(stats[0], stats[1], "attention_stats")
        edges = EDGES[kind](problems[1])  # one log-sum-exp for both
        weights = [kernels.edge_weights(edges, backend=p.backend) for p in problems]
        assert_close(weights[0], weights[1], "edge_weights")
        # Labels are compared under weights that are equal bit for bit.
        written = AttentionEdges(edges.pattern, GivenWeight(weights[1].nan_to_num()))
        cuts = thresholds(edges)
        lanes, values = lanes_of(problems[1])
        side = problems[1].target[None]
        total = kernels.edge_mass(written, backend="reference") + side[0]
        ops: dict[str, Callable[[str], Any]] = {
            "edge_levels": lambda b: kernels.edge_levels(written, cuts, backend=b),
            "collect_edges": lambda b: joined(kernels.collect_edges(written, cuts, backend=b)),
            "live": lambda b: kernels.lane_attention(written, cuts, values, lanes, backend=b),
            "frozen": lambda b: kernels.lane_attention(written, cuts, values, backend=b),
            "nucleus": lambda b: kernels.nucleus_cuts(written, side, [0.5], total, backend=b),
            "fraction": lambda b: kernels.fraction_cuts(written, side, [0.3], backend=b),
        }
        for name, op in ops.items():
            assert_close(op("cpu"), op("reference"), name)


@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(1, 20),
    hidden=st.integers(1, 40),
    vocabulary=st.integers(2, 400),
    noise=st.sampled_from([1e-4, 1e-2, 0.3, 3.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    isa=st.sampled_from(_cpu.instruction_sets()),
)
def test_any_errors_agree_with_the_definition(
    seed: int,
    length: int,
    hidden: int,
    vocabulary: int,
    noise: float,
    dtype: torch.dtype,
    isa: str,
) -> None:
    problem = Problem(Shape(batch=1, length=length, hidden=hidden, dtype=dtype), seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "ISA", isa)
        patch.setattr(cpu, "LOGIT_ROWS", 8)  # several products
        patch.setattr(cpu, "LOGIT_BYTES", 1)
        ours, theirs = (errors_of(problem, vocabulary, b, noise) for b in ("cpu", "reference"))
    assert_errors_agree(ours, theirs)


def test_more_lanes_than_rows_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "LOGIT_ROWS", 2)
    monkeypatch.setattr(cpu, "LOGIT_BYTES", 1)
    problem = Problem(Shape(batch=1, length=5, hidden=4), 0)
    assert_errors_agree(errors_of(problem, 7, "cpu"), errors_of(problem, 7, "reference"))


@pytest.mark.parametrize("vocabulary", [157, 301])
@pytest.mark.usefixtures("isa")
def test_rankings_among_equal_logits(vocabulary: int) -> None:
    assert_rankings_of_ties("cpu", vocabulary)


@pytest.mark.usefixtures("isa")
def test_lanes_that_rank_another_token_second() -> None:
    """One that is second for the token before, but no candidate here; one of equal logit."""
    clean = torch.zeros(3, 100)
    clean[0, [0, 99]] = torch.tensor([5.0, 4.0])
    clean[1, [1, 2]], clean[1, 71:] = torch.tensor([5.0, 4.9]), -1.0
    clean[2, [50, 40, 3]] = torch.tensor([6.0, 5.0, 4.0])
    lane = clean.clone()
    lane[1, 99], lane[1, 10], lane[2, 3] = 4.95, -1.0, 5.0
    ids = torch.arange(3)
    errors = kernels.output_errors(clean, lane[None], torch.eye(100), next_ids=ids, backend="cpu")
    assert errors.nucleus.tolist() == [[99, 20, 50]]


@pytest.mark.usefixtures("isa")
def test_a_large_vocabulary() -> None:
    """More tokens than are summed in float32."""
    problem = Problem(Shape(batch=1, length=2, hidden=4))
    assert_errors_agree(errors_of(problem, 9001, "cpu"), errors_of(problem, 9001, "reference"))


@pytest.mark.usefixtures("isa")
def test_as_many_strata_as_a_level_map_holds() -> None:
    problem = Problem(Shape(batch=1, length=9), backend="reference")
    edges = problem.edges(weight_of("random", problem))
    cuts = torch.linspace(0.99, 0.01, 255)[:, None, None].expand(-1, 1, 9)
    ours, theirs = (kernels.edge_levels(edges, cuts, backend=b) for b in ("cpu", "reference"))
    assert torch.equal(ours.levels, theirs.levels)
    assert torch.equal(ours.degrees, theirs.degrees)


@pytest.mark.usefixtures("isa")
def test_cuts_among_zeros_of_both_signs() -> None:
    generator = torch.Generator().manual_seed(0)
    empty = torch.zeros(1, 2, 20, 1)
    weight = GivenWeight(weights_that_tie(generator, 1, 2, 20, 20))
    edges = AttentionEdges(Pattern(empty, empty, 1.0), weight)
    side = weights_that_tie(generator, 3, 1, 20)
    ours, theirs = (
        all_cuts(b, edges, side, (0.05, 0.3, 0.5, 0.8, 1.0)) for b in ("cpu", "reference")
    )
    assert torch.equal(ours, theirs)


@pytest.mark.usefixtures("isa")
def test_proximity_is_exact_where_a_cut_decides() -> None:
    """Levels are those of the full sums, though few edges are summed in full."""
    problem = Problem(Shape(length=97, d_k=16, d_v=16, hidden=64), backend="cpu")
    edges = proximity_edges(problem)
    total = kernels.edge_mass(edges, backend="reference")
    cuts = torch.tensor([0.1, 0.02, 0.005])[:, None, None] * total
    ours, theirs = (kernels.edge_levels(edges, cuts, backend=b) for b in ("cpu", "reference"))
    assert torch.equal(ours.levels, theirs.levels)
    assert torch.equal(ours.degrees, theirs.degrees)
    assert ours.evaluated is not None
    assert 0 < ours.evaluated < 0.4
    everything = kernels.edge_levels(edges, cuts * 0, backend="cpu")
    assert everything.evaluated is not None
    assert ours.evaluated < everything.evaluated < 1


@pytest.mark.usefixtures("isa")
def test_lanes_of_proximities() -> None:
    """Exact up to the lowest cut of all lanes."""
    problem = Problem(Shape(length=97, d_k=16, d_v=16, hidden=64), backend="cpu")
    edges = proximity_edges(problem)
    total = kernels.edge_mass(edges, backend="reference")
    cuts = torch.tensor([0.1, 0.005])[:, None, None] * total
    values = problem.v.expand(2, *problem.v.shape)
    ours, theirs = (
        kernels.lane_attention(edges, cuts, values, backend=b) for b in ("cpu", "reference")
    )
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.usefixtures("isa")
def test_a_nucleus_whose_sum_depends_on_the_order() -> None:
    """Two edges of 1 are lost beside one of 2^53 if they are added one by one."""
    side = torch.tensor([2.0**53, 1.0, 1.0, 0.25])[:, None, None]
    mass, total = 0.5 + 2.0**-53, torch.tensor([[2.0**54]])
    cut = kernels.nucleus_cuts(None, side, [mass], total, backend="cpu")
    assert cut.item() == (1 + 0.25) / 2


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_small_proximities_are_not_rounded_away(backend: str) -> None:
    """Edges so small that subtracting them leaves the node's float32 unchanged."""
    node = torch.tensor([[[8.0, -8.0, 0.0]]])
    for value, expected in ((1e-9, 2e-9), (-1e-9, 0.0)):
        v, w_o = torch.full((1, 1, 1, 1), value), torch.tensor([[[2.0], [-1.0], [1.0]]])
        q = torch.zeros(1, 1, 1, 1)
        pattern = Pattern(q, q, 1.0, lse=q[0])
        edges = AttentionEdges(pattern, ProximityWeight(node, v, w_o))
        mass = kernels.edge_mass(edges, backend=backend)
        weights = kernels.edge_weights(edges, backend=backend)
        assert mass.item() == pytest.approx(expected, rel=1e-5)
        assert weights.item() == pytest.approx(expected, rel=1e-5)


def test_every_op_is_served() -> None:
    assert set(kernels.backends("cpu").values()) == {"cpu"}


def arrays(*shape: int) -> Any:
    return np.zeros(shape, dtype=np.float32)


def test_arguments_are_checked() -> None:
    q, k = arrays(1, 4, 5, 3), arrays(1, 2, 5, 3)

    def pattern(q: Any = q, k: Any = k, lse: Any = None, segments: Any = None) -> _cpu.Pattern:
        return _cpu.Pattern(q, k, 1.0, 0, 0.0, None, segments, lse)

    with pytest.raises(ValueError, match=r"k has the wrong shape; wanted \[1, 2, 5, 3\]"):
        pattern(k=arrays(1, 2, 6, 3))
    with pytest.raises(ValueError, match="not a multiple"):
        pattern(k=arrays(1, 3, 5, 3))
    with pytest.raises(TypeError, match="neither float32 nor bfloat16"):
        pattern(q=q.astype(np.float64))
    with pytest.raises(TypeError, match="not contiguous"):
        pattern(q=arrays(1, 4, 3, 5).swapaxes(2, 3))
    with pytest.raises(TypeError, match="negative"):
        pattern(q=q[:, :, ::-1])
    with pytest.raises(ValueError, match=r"segments has the wrong shape; wanted \[1, 5\]"):
        pattern(segments=np.zeros((1, 4), dtype=np.int32))
    with pytest.raises(TypeError):  # never converted
        pattern(segments=np.zeros((1, 5), dtype=np.int64))
    with pytest.raises(ValueError, match="lse is missing"):
        _cpu.Edges.norm(pattern(), arrays(1, 4, 5), None)
    edges = _cpu.Edges.norm(pattern(lse=arrays(1, 4, 5)), arrays(1, 4, 5), None)
    levels, degrees = np.zeros((1, 5, 5), dtype=np.uint8), np.zeros((2, 1, 5), dtype=np.int32)
    with pytest.raises(ValueError, match="cuts has the wrong shape"):
        _cpu.edge_levels(edges, arrays(0, 1, 5), levels, degrees, 1)
    with pytest.raises(ValueError, match=r"degrees has the wrong shape; wanted \[3, 1, 5\]"):
        _cpu.edge_levels(edges, arrays(3, 1, 5), levels, degrees, 1)
    with pytest.raises(ValueError, match=r"counts has the wrong shape; wanted \[1, 4, 5\]"):
        _cpu.collect_edges(edges, arrays(1, 1, 5), np.zeros((1, 4, 6), dtype=np.int64), 1, 0, 1)
    with pytest.raises(ValueError, match="isa='sse9' is not available"):
        _cpu.edge_mass(edges, arrays(1, 5), 1, "sse9")
    with pytest.raises(ValueError, match=r"v has the wrong shape; wanted \[2, 2, 5, 3\]"):
        _cpu.lane_attention(edges, arrays(2, 1, 5), k, None, False, arrays(2, 1, 4, 5, 3), 1)
    with pytest.raises(ValueError, match="has to have a random weight"):
        _cpu.random_cuts(
            edges, np.ones((1, 5), dtype=np.uint8), np.ones((1, 1), dtype=np.int64), arrays(1, 1), 1
        )
    eight = [arrays(1, 2)] * 6 + [arrays(2)] * 2
    for ids, first, message in (([0, 9], 0, "beyond the vocabulary"), ([0, 1], 1, "too few")):
        with pytest.raises(ValueError, match=message):
            _cpu.output_errors(arrays(2, 2, 16), None, 1.0, 0.0, np.array(ids), 9, eight, first, 1)
