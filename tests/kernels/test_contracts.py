"""What the ops refuse, on every backend alike and in one line; gradients; the lanes' patterns."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from attention_problem import OTHER_KINDS, Problem, Shape, errors_of, weight_of

from densitrace import BackendError, DensitraceError, kernels
from densitrace.kernels import (
    AttentionEdges,
    AttentionStats,
    CosineWeight,
    GivenWeight,
    NormWeight,
    Pattern,
    RandomWeight,
    triton,
)

PROBLEM = Problem(Shape(batch=2, heads=4, groups=2, length=7, window=3, sinks=True))
EDGES = PROBLEM.edges(NormWeight(torch.ones(2, 4, 7)))
PATTERN = EDGES.pattern
CUTS = torch.zeros(3, 2, 7)
SIDE = torch.ones(2, 2, 7)
NO_TOKENS = torch.ones(1, 1, 0, 4)
MAPS = torch.zeros(2, 7, 7, dtype=torch.uint8)
DEGREES = torch.zeros(3, 2, 7, dtype=torch.int32)


def weighed(weight: Any) -> AttentionEdges:
    return AttentionEdges(PATTERN, weight)


def errors(**changed: Any) -> Any:
    given = {
        "hidden": torch.ones(7, 5),
        "lanes": torch.ones(3, 7, 5),
        "unembedding": torch.ones(9, 5),
        "next_ids": torch.zeros(7, dtype=torch.int64),
    }
    return kernels.output_errors(**(given | changed))


WRONG: dict[str, tuple[Callable[[str], Any], str]] = {
    "p": (lambda b: kernels.source_norms(PROBLEM.v, PROBLEM.w_o, 3, backend=b), "p=3; wanted 1 or"),
    "w_o": (
        lambda b: kernels.source_norms(PROBLEM.v, PROBLEM.w_o[..., :-1], 1, backend=b),
        r"w_o has shape \[4, 11, 6\]; wanted \[4, 11, 7\]",
    ),
    "heads": (
        lambda b: kernels.source_norms(PROBLEM.v, PROBLEM.w_o[:3], 1, backend=b),
        "3 query heads are no multiple of 2 key/value heads",
    ),
    "a list": (
        lambda b: kernels.attention_stats(PATTERN, PROBLEM.v, [1.0], backend=b),  # type: ignore[arg-type]
        "source is a list; wanted a tensor",
    ),
    "no tokens": (
        lambda b: kernels.attention_stats(Pattern(NO_TOKENS, NO_TOKENS, 1.0), NO_TOKENS, backend=b),
        r"q has shape \[1, 1, 0, 4\]; wanted at least one number",
    ),
    "source": (
        lambda b: kernels.edge_mass(weighed(NormWeight(torch.ones(2, 3, 7))), backend=b),
        r"source has shape \[2, 3, 7\]; wanted \[2, 4, 7\]",
    ),
    "no source": (
        lambda b: kernels.edge_mass(weighed(NormWeight(None)), backend=b),  # type: ignore[arg-type]
        "source is a NoneType; wanted a tensor",
    ),
    "weight": (
        lambda b: kernels.edge_mass(weighed(GivenWeight(torch.ones(2, 4, 7, 6))), backend=b),
        r"weight has shape \[2, 4, 7, 6\]; wanted \[2, 4, 7, 7\]",
    ),
    "no weight": (lambda b: kernels.edge_mass(weighed("norm"), backend=b), "weight is a str; wan"),
    "edges": (
        lambda b: kernels.edge_mass(PATTERN, backend=b),  # type: ignore[arg-type]
        "edges is a Pattern; wanted AttentionEdges",
    ),
    "cuts": (
        lambda b: kernels.edge_levels(EDGES, CUTS[None], backend=b),
        r"cuts has shape \[1, 3, 2, 7\]; wanted \[K, 2, 7\]",
    ),
    "tables": (
        lambda b: kernels.collect_edges(EDGES, CUTS[..., 1:], backend=b),  # before it is iterated
        r"cuts has shape \[3, 2, 6\]; wanted \[3, 2, 7\]",
    ),
    "a device": (
        lambda b: kernels.edge_levels(EDGES, CUTS.to("meta"), backend=b),
        "cuts is on meta; wanted on cpu, as the others are",
    ),
    "masses": (
        lambda b: kernels.nucleus_cuts(None, SIDE, 0.5, SIDE[0], backend=b),  # type: ignore[arg-type]
        "0.5 is given for all strata; wanted a list",
    ),
    "random": (
        lambda b: kernels.random_cuts(EDGES, SIDE[0] > 0, DEGREES[..., 0].long(), backend=b),
        "weight is a NormWeight; wanted a RandomWeight",
    ),
    "levels": (
        lambda b: kernels.bottleneck(MAPS, MAPS.long(), backend=b),
        "levels is of torch.int64; wanted torch.uint8",
    ),
    "degrees": (
        lambda b: kernels.trace_sizes(MAPS, DEGREES.long(), backend=b),
        "degrees is of torch.int64; wanted torch.int32",
    ),
    "hidden": (
        lambda b: errors(hidden=torch.ones(6, 5), backend=b),
        r"lanes has shape \[3, 7, 5\]; wanted \[3, 6, 5\]",
    ),
    "next_ids": (
        lambda b: errors(next_ids=torch.zeros(7, dtype=torch.int32), backend=b),
        "next_ids is of torch.int32; wanted torch.int64",
    ),
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments(what: str, backend: str) -> None:
    call, message = WRONG[what]
    with pytest.raises(DensitraceError, match=f"^{message}") as caught:
        call(backend)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_what_only_a_backend_refuses() -> None:
    with pytest.raises(DensitraceError, match="lse is missing"):
        kernels.edge_mass(replace(EDGES, pattern=replace(PATTERN, lse=None)), backend="cpu")
    with pytest.raises(DensitraceError, match="of a pattern of attention is not above 0"):
        kernels.edge_mass(replace(EDGES, pattern=replace(PATTERN, scale=0.0)), backend="triton")
    with pytest.raises(DensitraceError, match="beyond the vocabulary"):
        errors(next_ids=torch.full((7,), 9), backend="cpu")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"window": 0}, "window=0; wanted a number above 0, or None"),
        ({"window": 2.5}, "window=2.5; wanted"),
        ({"softcap": 0.0}, "softcap=0.0; wanted"),
        ({"scale": None}, "scale=None; wanted a number"),
    ],
)
def test_patterns_that_no_attention_has(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(DensitraceError, match=message):
        replace(PATTERN, **setting)


def test_a_backend_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = MAPS.to("meta")
    with pytest.raises(BackendError, match="backend='cpu' does not run on meta"):
        kernels.bottleneck(maps, maps, backend="cpu")
    monkeypatch.setattr(triton, "DEVICES", ("cuda",))  # as outside its interpreter
    with pytest.raises(BackendError, match="backend='triton' does not run on cpu"):
        kernels.edge_mass(EDGES, backend="triton")


def with_gradients(problem: Problem) -> Problem:
    for name, value in vars(problem).items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            setattr(problem, name, value.requires_grad_())
    return problem


@pytest.mark.parametrize("backend", ["cpu", "reference", "triton"])
def test_weights_that_require_gradients(backend: str) -> None:
    """A model's own parameters, say: nothing is differentiated, and nothing fails."""
    problem = with_gradients(Problem(Shape(batch=1, heads=2, groups=1, length=5), 0, backend))
    source = kernels.source_norms(problem.v, problem.w_o, 1, backend=backend)
    found = kernels.attention_stats(problem.pattern, problem.v, source, backend=backend)
    assert isinstance(found, AttentionStats)
    results = [source, found.output, found.lse, found.mass]
    errors = errors_of(problem, 9, backend)
    results += vars(errors).values()
    assert not any(result.requires_grad for result in results)


@pytest.mark.parametrize("backend", ["cpu", "reference", "triton"])
def test_lanes_attend_as_the_clean_pattern_does(backend: str) -> None:
    """Only queries and keys are the lanes' own: window, sinks and the rest are the model's."""
    lanes = replace(PATTERN, q=torch.stack([PATTERN.q] * 3), k=torch.stack([PATTERN.k] * 3))
    bare, values = Pattern(lanes.q, lanes.k, 2 * PATTERN.scale), torch.stack([PROBLEM.v] * 3)
    cuts = torch.full((3, 2, 7), 0.1)
    ours, expected = (
        kernels.lane_attention(EDGES, cuts, values, own, backend=backend) for own in (bare, lanes)
    )
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("backend", ["cpu", "reference", "triton"])
def test_next_ids_of_any_layout(backend: str) -> None:
    ids = (torch.arange(14) % 9)[::2]
    found, expected = (errors(next_ids=i, backend=backend) for i in (ids, ids.contiguous()))
    assert torch.equal(found.loss, expected.loss)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_eligible_targets_of_any_layout(backend: str) -> None:
    edges = weighed(RandomWeight(0, 0, torch.arange(7).expand(2, 7)))
    eligible, counts = (torch.arange(14).view(7, 2) % 3 > 0).T, torch.tensor([[5, 9]])
    found, expected = (
        kernels.random_cuts(edges, which, counts, backend=backend)
        for which in (eligible, eligible.contiguous())
    )
    assert torch.equal(found, expected)


def strided(given: Any) -> Any:
    """The same tensors, each with other numbers between its own."""
    if isinstance(given, torch.Tensor):
        return torch.stack([given, torch.full_like(given, 2)], -1)[..., 0]
    if isinstance(given, (Pattern, AttentionEdges, *triton.WEIGHTS)):
        own = {field.name: getattr(given, field.name) for field in fields(given)}
        return replace(given, **{name: strided(value) for name, value in own.items()})
    return given


@pytest.mark.parametrize("kind", ["norm", *OTHER_KINDS])
@pytest.mark.parametrize("backend", ["cpu", "reference", "triton"])
def test_attention_of_any_layout(backend: str, kind: str) -> None:
    shape = Shape(length=7, window=3, sinks=True, segments=True)
    problem = Problem(shape, backend="reference")
    edges, pattern = problem.edges(weight_of(kind, problem)), problem.pattern
    source, total = problem.source_norms(1), SIDE.sum(0) + 3
    cuts, values = torch.tensor([0.5, 0.2, 0.1])[:, None, None] * problem.target, problem.v[None]
    lanes = replace(pattern, q=pattern.q[None], k=pattern.k[None])

    def results(like: Callable[[Any], Any]) -> dict[str, Any]:
        calls: dict[Any, tuple[Any, ...]] = {
            kernels.source_norms: (problem.v, problem.w_o, 1),
            kernels.attention_stats: (pattern, problem.v, source),
            kernels.edge_mass: (edges,),
            kernels.edge_levels: (edges, cuts),
            kernels.nucleus_cuts: (edges, SIDE, [0.3, 0.9], total),
            kernels.fraction_cuts: (edges, SIDE, [0.3, 0.9]),
            kernels.lane_attention: (edges, cuts[:1], values, lanes),
        }
        found = {op.__name__: op(*map(like, of), backend=backend) for op, of in calls.items()}
        return {name: vars(x) if is_dataclass(x) else x for name, x in found.items()}

    torch.testing.assert_close(results(strided), results(lambda given: given))


@pytest.mark.parametrize("backend", ["cpu", "reference", "triton"])
def test_predictions_of_any_layout(backend: str) -> None:
    given = {
        "hidden": PROBLEM.normal(7, 5),
        "lanes": PROBLEM.normal(3, 7, 5),
        "unembedding": PROBLEM.normal(9, 5),
        "bias": PROBLEM.normal(9),
    }
    apart = {name: strided(tensor) for name, tensor in given.items()}
    ours, theirs = (vars(errors(**tensors, backend=backend)) for tensors in (apart, given))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", ["cpu", "reference", "triton"])
def test_a_divergence_is_never_negative(backend: str) -> None:
    hidden = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    table = torch.randn(9, 5, generator=torch.Generator().manual_seed(1))
    lanes = hidden * torch.tensor([1 + 2e-7, 1 - 2e-7, 1 + 1e-6])[:, None, None]
    assert (errors(hidden=hidden, lanes=lanes, unembedding=table, backend=backend).kl >= 0).all()


def test_streams_are_numbers_of_32_bits() -> None:
    positions = torch.arange(7).expand(2, 7)
    for stream in (-2, 2**40):
        edges = weighed(RandomWeight(0, stream, positions))
        ours, expected = (kernels.edge_weights(edges, backend=b) for b in ("cpu", "reference"))
        torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)


def test_directions_of_other_heads() -> None:
    direction, source = torch.ones(2, 4, 7, 3), torch.ones(2, 4, 7)
    with pytest.raises(DensitraceError, match=r"weight\.v has shape .*; wanted \[2, 2, 7, 3\]"):
        kernels.edge_mass(weighed(CosineWeight(direction, source, torch.ones(2, 2, 7, 4))))
