"""Each op of each backend against loops in float64, in every variant of attention."""

import math
from dataclasses import replace
from importlib import import_module
from typing import Any

import cuda_host
import numpy as np
import pytest
import torch
from attention_problem import (
    VARIANTS,
    Floats,
    Problem,
    Shape,
    assert_attention_stats,
    close,
    cuts_for,
    joined,
    rows_of,
)
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import errors as oracle_errors

from densitrace import _cpu, kernels
from densitrace.kernels import (
    AttentionEdges,
    CosineWeight,
    GivenWeight,
    NormWeight,
    Pattern,
    ProximityWeight,
    RandomWeight,
    cpu,
    dispatch,
    reference,
)

PROVIDERS = ["reference", *(f"cpu-{isa}" for isa in _cpu.instruction_sets()), "triton"]
PROVIDERS.append(cuda_host.NAME)


def serving(*ops: str, weight: type = NormWeight) -> pytest.MarkDecorator:
    """Run the test on every backend that has the ops; the CPU's in each instruction set.

    `weight` is the kind of edges that the ops must support.
    """

    def has(provider: str, op: str) -> bool:
        module = import_module(f"densitrace.kernels.{provider.partition('-')[0]}")
        return hasattr(module, op) and dispatch.weighs(module, op, weight)

    providers = [name for name in PROVIDERS if all(has(name, op) for op in ops)]
    return pytest.mark.parametrize("backend", providers, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, poisoned: None) -> str:
    """The name of a backend, set up as `serving` describes."""
    # Tiles so small that every op crosses several of them.
    monkeypatch.setattr(reference, "TILE_ELEMENTS", 300)
    # In the interpreter time depends on the number of programs.
    monkeypatch.setattr(import_module("densitrace.kernels.triton.node_cuts"), "ROW_TILES", 8)
    name, _, isa = str(request.param).partition("-")
    monkeypatch.setattr(cpu, "ISA", isa or "auto")
    monkeypatch.setattr(cpu, "TABLE_EDGES", 40)
    for budget in ("TILE_ELEMENTS", "TABLE_ELEMENTS"):
        monkeypatch.setattr(cuda_host.budgets, budget, 300)
    cuda_host.switch_on(monkeypatch)
    return name


@pytest.fixture(params=list(VARIANTS.values()), ids=list(VARIANTS))
def problem(request: pytest.FixtureRequest, backend: str) -> Problem:
    return Problem(request.param, backend=backend)


@serving("source_norms")
@pytest.mark.parametrize("p", [1, 2])
def test_source_norms(problem: Problem, p: int) -> None:
    expected = np.linalg.norm(problem.sent(), p, axis=-1)
    close(
        "source norms",
        kernels.source_norms(problem.v, problem.w_o, p, backend=problem.backend),
        expected,
        problem.norm_ratio,
    )


@serving("source_norms")
def test_source_norms_in_the_model_dtype(problem: Problem) -> None:
    """In the values' dtype: products are exact in float32, so the default tolerance holds."""
    problem.w_o = problem.w_o.to(problem.shape.dtype)
    actual = kernels.source_norms(problem.v, problem.w_o, 1, backend=problem.backend)
    close("source norms", actual, np.abs(problem.sent()).sum(-1))


@serving("source_norms")
def test_norms_of_what_nearly_vanishes(backend: str) -> None:
    """Values orthogonal to W_O up to rounding, whose squares may come out below 0."""
    generator = torch.Generator().manual_seed(0)
    w_o = torch.randn(1, 1, 9, generator=generator)
    v = torch.randn(1, 1, 50, 9, generator=generator)
    v -= (v @ w_o.mT) * w_o / w_o.square().sum()
    norms = kernels.source_norms(v, w_o, 2, backend=backend)
    assert (norms >= 0).all()
    assert (norms < 1e-2).all()


@serving("source_norms")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_by_small_projections(dtype: torch.dtype, backend: str) -> None:
    """Too small for 16 bits: they scale as the projection does."""
    problem = Problem(Shape(batch=1, length=3, dtype=dtype))
    norms, small = (
        kernels.source_norms(problem.v, problem.w_o * size, 1, backend=backend)
        for size in (1, 2.0**-30)
    )
    assert torch.equal(norms * 2.0**-30, small)


@serving("attention_stats")
def test_attention_stats(problem: Problem) -> None:
    assert_attention_stats(problem)
    assert not problem.stats().mass.any()


def dense(problem: Problem, weight: Any) -> Floats:
    """The op's weights with 0 for absent edges, which are checked to be exactly the NaN ones."""
    actual = kernels.edge_weights(problem.edges(weight), backend=problem.backend).double().numpy()
    absent = np.broadcast_to(~problem.allowed()[:, None], actual.shape)
    np.testing.assert_array_equal(np.isnan(actual), absent)
    weights: Floats = np.nan_to_num(actual)
    return weights


@serving("edge_weights", "edge_mass")
def test_norm_weights(problem: Problem) -> None:
    expected = problem.norm_weights()
    weight = problem.norm_edges().weight
    close("norm", torch.from_numpy(dense(problem, weight)), expected)
    close(
        "mass",
        kernels.edge_mass(problem.norm_edges(), backend=problem.backend),
        expected.sum((1, 3)),
    )


def proximity(problem: Problem) -> tuple[ProximityWeight, Floats]:
    """An edge weight and its expected values."""
    alpha, _ = problem.alpha()
    scaled = alpha * problem.target.double().numpy()[:, None, :, None]
    edge = scaled[..., None] * problem.sent()[:, :, None]  # [B, H, T, T, D]
    node = problem.node.double().numpy()[:, None, :, None]
    expected = np.maximum(0, np.abs(node).sum(-1) - np.abs(node - edge).sum(-1))
    expected *= problem.allowed()[:, None]
    return ProximityWeight(problem.node, problem.v, problem.w_o, problem.target), expected


@serving("edge_weights", weight=ProximityWeight)
def test_proximity_weights(problem: Problem) -> None:
    weight, expected = proximity(problem)
    close("proximity", torch.from_numpy(dense(problem, weight)), expected)


@serving("edge_levels", "edge_mass", weight=ProximityWeight)
def test_proximity_levels_and_mass(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "TILE_ELEMENTS", 10_000)  # tiles of [rows, S, D]: 300 is slow
    weight, expected = proximity(problem)
    edges = problem.edges(weight)
    actual = kernels.edge_mass(edges, backend=problem.backend)
    close("mass", actual, expected.sum((1, 3)))
    # Halfway between a target's heaviest edges, so that rounding decides nothing.
    rows = -np.sort(-expected.transpose(0, 2, 1, 3).reshape(*expected.shape[::2], -1), axis=-1)
    cuts = torch.from_numpy(np.stack([rows[..., i : i + 2].mean(-1) for i in (0, 1)])).float()
    kept = expected[None] > cuts.double().numpy()[:, :, None, :, None]  # [K, B, H, T, T]
    levels = kernels.edge_levels(edges, cuts, backend=problem.backend)
    np.testing.assert_array_equal(levels.levels, kept.sum(0).max(1))
    np.testing.assert_array_equal(levels.degrees, kept.sum((2, 4)))


@serving("edge_weights")
def test_cosine_weights(problem: Problem) -> None:
    sent, node = problem.sent(), problem.node.double().numpy()
    sent[0, 0] = 0  # a head that sends nothing: the cosine of the zero vector is 0 by definition
    problem.w_o[0] = 0 if problem.shape.batch == 1 else problem.w_o[0]
    inner = np.einsum("bhse,bte->bhts", problem.sent(), node)
    lengths = (
        np.linalg.norm(problem.sent(), axis=-1)[:, :, None]
        * np.linalg.norm(node, axis=-1)[:, None, :, None]
    )
    cosine = np.divide(inner, lengths, out=np.zeros_like(inner), where=lengths > 0)
    expected = (1 + cosine) / 2 * problem.allowed()[:, None]
    norms = kernels.source_norms(problem.v, problem.w_o, 2, backend=problem.backend)
    unit = problem.node / problem.node.norm(dim=-1, keepdim=True)
    direction = torch.einsum("bte,hed->bhtd", unit, problem.w_o)
    weight = CosineWeight(direction, torch.where(norms > 0, 1 / norms, 0.0), problem.v)
    close("cosine", torch.from_numpy(dense(problem, weight)), expected)


@serving("edge_levels", "edge_mass", "lane_attention", weight=CosineWeight)
def test_cosines_of_edges_that_send_nothing(backend: str) -> None:
    """An attention weight of 0 has the zero vector's cosine, 0; others end at 1 and -1.

    Here it is e^-120, which is 0 in float32; 2^-120 is not.
    """
    ones, apart = torch.ones(1, 1, 2, 1), torch.tensor([[[[0.0], [11.0]]]])
    pattern = Pattern(apart, apart, 1.0, lse=torch.tensor([[[0.0, 121.0]]]))
    cuts, none = (
        torch.tensor([0.75, 0.25])[:, None, None].expand(2, 1, 2),
        torch.zeros(2, 1, 1, 2, 1),
    )
    for sign in (1, -1):
        edges = AttentionEdges(pattern, CosineWeight(ones, 2 * ones[..., 0], sign * ones))
        own = (1 + sign) // 2
        mass = kernels.edge_mass(edges, backend=backend)
        assert mass.tolist() == [[own, own + 0.5]]
        found = kernels.edge_levels(edges, cuts, backend=backend)
        assert found.levels.tolist() == [[[2 * own, 0], [1, 2 * own]]]
        assert found.degrees.tolist() == [[[own, own]], [[own, own + 1]]]
        lanes = Pattern(none, none, 1.0)  # which attend to all sources alike
        sent = kernels.lane_attention(edges, cuts, none + 1, lanes, backend=backend)
        assert sent.flatten().tolist() == [own, own / 2, own, (own + 1) / 2]


@serving("edge_weights")
def test_random_weights_do_not_depend_on_tiling(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = RandomWeight(7, 3, problem.positions)
    tiled = dense(problem, weight)
    monkeypatch.setattr(reference, "TILE_ELEMENTS", 1 << 21)
    np.testing.assert_array_equal(dense(problem, weight), tiled)


@serving("edge_levels")
def test_edge_levels(problem: Problem) -> None:
    weights = problem.norm_weights()
    cuts = cuts_for(weights, (0.9, 0.7, 0.2))
    kept = weights[None] > cuts.double().numpy()[:, :, None, :, None]  # [K, B, H, T, T]
    actual = kernels.edge_levels(problem.norm_edges(), cuts, backend=problem.backend)
    np.testing.assert_array_equal(actual.levels, kept.sum(0).max(1))
    np.testing.assert_array_equal(actual.degrees, kept.sum((2, 4)))


@serving("collect_edges")
def test_collect_edges(problem: Problem) -> None:
    weights = problem.norm_weights()
    cuts = cuts_for(weights, (0.9, 0.6))
    actual = joined(kernels.collect_edges(problem.norm_edges(), cuts, backend=problem.backend))
    kept = weights[None] > cuts.double().numpy()[:, :, None, :, None]
    places = [tuple(map(int, place)) for place in np.argwhere(kept[1])]  # in the table's order
    assert rows_of(actual) == [(*place, 1 - int(kept[0][place])) for place in places]
    kinds = {name: str(column.numpy().dtype) for name, column in vars(actual).items()}
    assert kinds == {
        "sequence": "int32", "head": "int16", "source": "int32", "target": "int32",
        "weight": "float32", "stratum": "uint8",
    }  # fmt: skip
    ours = np.array([weights[place] for place in places])
    np.testing.assert_allclose(actual.weight, ours, rtol=1e-4)


@serving("lane_attention")
@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("attention", ["live", "frozen"])
def test_lane_attention(problem: Problem, attention: str, invert: bool) -> None:
    shape, weights = problem.shape, problem.norm_weights()
    cuts = cuts_for(weights, (0.8, 0.3))
    lanes = [Problem(shape, seed) for seed in (1, 2)]
    own = replace(
        problem.pattern,
        q=torch.stack([lane.pattern.q for lane in lanes]),
        k=torch.stack([lane.pattern.k for lane in lanes]),
    )
    values = torch.stack([lane.v for lane in lanes])
    actual = kernels.lane_attention(
        problem.norm_edges(),
        cuts,
        values,
        own if attention == "live" else None,
        invert=invert,
        backend=problem.backend,
    )
    kept = (weights[None] > cuts.double().numpy()[:, :, None, :, None]) != invert
    for k, lane in enumerate(lanes):
        # A lane's sinks are the model's, whatever its queries and keys.
        lane.pattern = replace(lane.pattern, sinks=problem.pattern.sinks)
        alpha = (lane if attention == "live" else problem).alpha()[0]
        v = lane.v.double().repeat_interleave(shape.heads // shape.groups, 1).numpy()
        close(f"lane {k}", actual[k], (alpha * kept[k]) @ v, problem.product_ratio)


def in_edges(weights: Floats, allowed: NDArray[Any], side: Floats, b: int, t: int) -> list[float]:
    """Weights of all in-edges of one node, heaviest first."""
    attention = weights[b, :, t][:, allowed[b, t]].ravel()
    return sorted([*attention, *side[:, b, t]], reverse=True)


@serving("lane_attention")
def test_lane_attention_in_another_dtype(backend: str) -> None:
    """Rounded once, from float32."""
    problem = Problem(Shape(batch=1, length=9), backend=backend)
    cuts, v = torch.zeros(2, 1, 9), problem.v.expand(2, *problem.v.shape)

    def attend(dtype: torch.dtype) -> torch.Tensor:
        edges = problem.norm_edges()
        return kernels.lane_attention(edges, cuts, v, dtype=dtype, backend=backend)

    exact, rounded = attend(torch.float32), attend(torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    # Triton's interpreter truncates where a device rounds.
    torch.testing.assert_close(rounded.float(), exact, atol=0, rtol=2.0**-7)


@serving("nucleus_cuts")
@pytest.mark.parametrize("with_attention", [True, False])
def test_nucleus_cuts(problem: Problem, with_attention: bool) -> None:
    weights, allowed = problem.norm_weights(), problem.allowed()
    side = problem.normal(2, problem.shape.batch, problem.shape.length).abs()
    if not with_attention:
        allowed = np.zeros_like(allowed)
    masses = (0.2, 0.6, 0.97)
    sides = side.double().numpy()
    nodes = [
        [in_edges(weights, allowed, sides, b, t) for t in range(problem.shape.length)]
        for b in range(problem.shape.batch)
    ]
    total = torch.tensor([[sum(node) for node in row] for row in nodes])
    edges = problem.norm_edges() if with_attention else None
    cuts = (
        kernels.nucleus_cuts(edges, side, masses, total, backend=problem.backend).double().numpy()
    )
    for (b, t), (k, p) in ((bt, kp) for bt in np.ndindex(total.shape) for kp in enumerate(masses)):
        node = nodes[b][t]
        wanted = next(
            n for n in range(1, len(node) + 1) if sum(node[:n]) >= p * sum(node) * (1 - 1e-6)
        )
        assert sum(weight > cuts[k, b, t] for weight in node) == wanted


@serving("fraction_cuts")
@pytest.mark.parametrize("with_attention", [True, False])
def test_fraction_cuts(problem: Problem, with_attention: bool) -> None:
    weights, allowed = problem.norm_weights(), problem.allowed()
    side = problem.normal(2, problem.shape.batch, problem.shape.length).abs()
    if not with_attention:
        allowed = np.zeros_like(allowed)
    fractions = (0.1, 0.5, 1.0)
    edges = problem.norm_edges() if with_attention else None
    cuts = kernels.fraction_cuts(edges, side, fractions, backend=problem.backend).double().numpy()
    for (k, b, t), cut in np.ndenumerate(cuts):
        node = in_edges(weights, allowed, side.double().numpy(), b, t)
        assert sum(weight > cut for weight in node) == math.ceil(fractions[k] * len(node))


def given_node(rows: list[list[float]]) -> AttentionEdges:
    """One head, one sequence: node t has the weights of rows[t]."""
    length = len(rows)
    weight = torch.zeros(1, 1, length, length)
    for t, row in enumerate(rows):
        weight[0, 0, t, : t + 1] = torch.tensor(row)
    pattern = Pattern(torch.zeros(1, 1, length, 1), torch.zeros(1, 1, length, 1), 1.0)
    return AttentionEdges(pattern, GivenWeight(weight))


@serving("nucleus_cuts", "fraction_cuts")
def test_ties(backend: str) -> None:
    """A nucleus keeps all ties of its last edge; a fraction keeps no tie of one left out."""
    edges = given_node([[1.0], [2.0, 2.0], [4.0, 4.0, 1.0]])
    side = torch.tensor([[[1.0, 2.0, 0.0]]])
    total = torch.tensor([[2.0, 6.0, 9.0]])
    nucleus = kernels.nucleus_cuts(edges, side, [0.3], total, backend=backend)[0, 0]
    weights = [[1.0, 1.0], [2.0, 2.0, 2.0], [4.0, 4.0, 1.0, 0.0]]
    kept = [sum(w > cut for w in row) for row, cut in zip(weights, nucleus.tolist(), strict=True)]
    assert kept == [2, 3, 2]
    fraction = kernels.fraction_cuts(edges, side, [0.25], backend=backend)[0, 0]
    kept = [sum(w > cut for w in row) for row, cut in zip(weights, fraction.tolist(), strict=True)]
    assert kept == [0, 0, 0]


@serving("fraction_cuts")
def test_fractions_are_not_rounded_up(backend: str) -> None:
    """0.07 of 100 edges are 7, although the product exceeds 7 in float64."""
    side = torch.arange(100.0)[:, None, None]
    cut = kernels.fraction_cuts(None, side, [0.07], backend=backend)
    assert (side > cut[0]).sum() == 7


@serving("fraction_cuts")
def test_a_fraction_keeps_an_edge(backend: str) -> None:
    side = torch.arange(3.0)[:, None, None]
    cuts = kernels.fraction_cuts(None, side, [0.0, 1e-12], backend=backend)
    assert (side[:, None] > cuts).sum(0).flatten().tolist() == [1, 1]


@serving("nucleus_cuts")
def test_a_mass_beyond_all_weights(backend: str) -> None:
    """It keeps every edge that weighs something."""
    side = torch.tensor([2.0, 1.0, 0.0])[:, None, None].expand(3, 1, 2)
    total = torch.tensor([[4.0, 1e30]])
    cuts = kernels.nucleus_cuts(None, side, [1.0], total, backend=backend)
    assert (side > cuts).sum(0).tolist() == [[2, 2]]


@serving("nucleus_cuts")
def test_sums_of_weights_that_round_up(backend: str) -> None:
    """All the mass includes an edge far lighter than the rounding of its node's sum."""
    side = torch.zeros(32, 1, 1)
    side[0], side[1], side[8::8] = 1, 1e-14, 1.01 * 2.0**-24
    total = side.double().sum(0).float()
    cut = kernels.nucleus_cuts(None, side, [1.0], total, backend=backend)
    assert torch.equal(side > cut, side > 0)


@serving("nucleus_cuts")
def test_cuts_scale_with_weights(backend: str) -> None:
    """Down to weights near the smallest that float32 has with all bits."""
    side = torch.tensor([4.0, 2.0, 1.0, 0.5])[:, None, None]
    cuts, small = (
        kernels.nucleus_cuts(
            None, side * size, [0.3, 0.6, 0.9], side.sum(0) * size, backend=backend
        )
        for size in (1, 2.0**-120)
    )
    assert torch.equal(cuts * 2.0**-120, small)


@serving("nucleus_cuts", "fraction_cuts")
def test_neighbouring_weights(backend: str) -> None:
    """Their midpoint rounds up or down to one of them."""
    ulp = 2.0**-23
    side = 1 + ulp * torch.tensor([[[2.0, 1.0]], [[1.0, 0.0]]])
    for cut in (
        kernels.nucleus_cuts(None, side, [0.4], side.sum(0), backend=backend),
        kernels.fraction_cuts(None, side, [0.4], backend=backend),
    ):
        assert torch.equal((side > cut).sum(0), torch.ones(1, 2, dtype=torch.int64))


@serving("nucleus_cuts")
def test_node_without_weight(backend: str) -> None:
    """A node whose edges all weigh nothing keeps none, under any mass."""
    side = torch.zeros(2, 1, 1)
    cuts = kernels.nucleus_cuts(None, side, [0.1, 1.0], torch.zeros(1, 1), backend=backend)
    assert torch.equal(cuts, torch.zeros(2, 1, 1))


@serving("random_cuts")
def test_random_cuts(problem: Problem) -> None:
    weight = RandomWeight(5, 1, problem.positions)
    edges = problem.edges(weight)
    eligible = torch.ones(problem.positions.shape, dtype=torch.bool)
    eligible[0, : problem.shape.length // 2] = False
    present = problem.allowed() & eligible.numpy()[..., None]
    available = present.sum((1, 2)) * problem.shape.heads
    counts = torch.from_numpy(np.stack([available * 0, available // 3, available]))
    cuts = kernels.random_cuts(edges, eligible, counts, backend=problem.backend)
    drawn = np.where(present[:, None], dense(problem, weight), -1)
    for (k, b), cut in np.ndenumerate(cuts.double().numpy()):
        assert (drawn[b] > cut).sum() == counts[k, b]


@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_bottleneck_and_sizes(length: int, batch: int, strata: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def triangle(dtype: torch.dtype) -> torch.Tensor:
        drawn = torch.randint(0, strata + 1, (batch, length, length), generator=generator)
        return drawn.tril().to(dtype)

    reach, levels = triangle(torch.uint8), triangle(torch.uint8)
    degrees = torch.randint(0, 9, (strata, batch, length), generator=generator).int()
    paths = np.minimum(reach.numpy()[..., None], levels.numpy()[:, None])  # [B, t, j, i]
    np.testing.assert_array_equal(reference.bottleneck(reach, levels), paths.max(2))
    for k in range(strata):
        inside = reach.numpy() >= strata - k
        expected = (inside * degrees[k].numpy()[:, None]).sum(-1)
        np.testing.assert_array_equal(reference.trace_sizes(reach, degrees)[k], expected)


@serving("output_errors")
@pytest.mark.parametrize(("vocabulary", "softcap", "bias"), [(7, None, False), (301, 2.0, True)])
def test_output_errors(
    vocabulary: int,
    softcap: float | None,
    bias: bool,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reference, "TILE_ELEMENTS", 4 * vocabulary * 2)
    generator = torch.Generator().manual_seed(0)
    tokens, strata, hidden = 9, 3, 6
    states = torch.randn(tokens, hidden, generator=generator)
    # Lanes from an unrelated prediction to a close one, and one that is the clean one.
    noise = torch.tensor([2.0, 0.05, 0.0])[:, None, None]
    lanes = states + noise * torch.randn(strata, tokens, hidden, generator=generator)
    table = torch.randn(vocabulary, hidden, generator=generator)
    shift = torch.randn(vocabulary, generator=generator) if bias else None
    next_ids = torch.arange(tokens) % vocabulary
    next_ids[-1] = -1
    actual = kernels.output_errors(
        states,
        lanes,
        table,
        shift,
        scale=0.9,
        softcap=softcap,
        next_ids=next_ids,
        backend=backend,
    )

    def logits(vectors: torch.Tensor) -> Floats:
        out = 0.9 * (vectors.double() @ table.double().T).numpy()
        out = out if shift is None else out + shift.double().numpy()
        return out if softcap is None else softcap * np.tanh(out / softcap)

    for k in range(strata):
        for m in range(tokens):
            following = int(next_ids[m]) if next_ids[m] >= 0 else None
            expected = oracle_errors(logits(states[m]), logits(lanes[k, m]), following)
            for name, value in expected.items():
                ours = float(getattr(actual, name)[k, m])
                np.testing.assert_allclose(ours, value, atol=2e-5, rtol=2e-5, err_msg=name)
    np.testing.assert_allclose(actual.clean_loss[:-1], actual.loss[2, :-1], atol=1e-6)
    np.testing.assert_allclose(actual.clean_entropy, actual.entropy[2], atol=1e-6)
    assert (actual.nucleus[2] == 99).all()


@given(st.integers(2, 200), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_shared_nucleus_does_not_depend_on_candidates(
    vocabulary: int, candidates: int, seed: int
) -> None:
    """A few candidates and a full ranking give the same answer."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, vocabulary, generator=generator) * 2
    noise = torch.randn(6, vocabulary, generator=generator)
    p = logits.softmax(-1)
    q = (logits + torch.tensor([0, 1e-3, 1e-2, 0.1, 0.3, 1])[:, None] * noise).softmax(-1)
    few, all_of_them = (
        reference.shared_nucleus(p, q, reference.ranked(p, width), reference.ranked(q, width))
        for width in (candidates, vocabulary)
    )
    np.testing.assert_array_equal(few, all_of_them)


def test_tiles_are_larger_on_a_gpu() -> None:
    """Where a launch costs more than what a tile wastes; they cover the targets all the same."""
    covered = {
        kind: list(reference.target_blocks(2048, 64 * 2048, torch.device(kind)))
        for kind in ("cpu", "cuda")
    }
    for tiles in covered.values():
        assert [tile.start for tile in tiles] == [0, *(tile.stop for tile in tiles[:-1])]
        assert tiles[-1].stop == 2048
    assert len(covered["cpu"]) == 8 * len(covered["cuda"])
