"""Tables of kept edges: bounded, in order, one at a time, whatever the budget."""

import weakref
from collections import deque
from collections.abc import Callable
from itertools import chain
from typing import Any

import cuda_host
import pytest
import torch
from attention_problem import Problem, Shape, joined, rows_of
from hypothesis import given
from hypothesis import strategies as st

from densitrace.kernels import (
    AttentionEdges,
    CosineWeight,
    EdgeTable,
    GivenWeight,
    ProximityWeight,
    RandomWeight,
    cpu,
    reference,
)
from densitrace.kernels.runs import Run, edges_in, runs

ops, budgets, extension = cuda_host.ops, cuda_host.budgets, cuda_host.extension
BUDGETS: dict[str, tuple[Any, Any, str]] = {  # a backend, and what bounds its tables
    "reference": (reference, reference, "TILE_ELEMENTS"),
    "cpu": (cpu, cpu, "TABLE_EDGES"),
    cuda_host.NAME: (ops, budgets, "TABLE_ELEMENTS"),
}
SHAPE = Shape(batch=3, heads=6, groups=2, length=14, window=11, sinks=True, segments=True)


def cosine(problem: Problem) -> CosineWeight:
    shape = (problem.shape.batch, problem.shape.heads, problem.shape.length)
    direction = problem.normal(*shape, problem.shape.d_v)
    return CosineWeight(direction, problem.normal(*shape).abs(), problem.v)


WEIGHTS: dict[str, Callable[[Problem], Any]] = {
    "norm": lambda problem: problem.norm_edges().weight,
    "cosine": cosine,
    "proximity": lambda p: ProximityWeight(p.node, p.v, p.w_o, p.target),
    "random": lambda p: RandomWeight(7, 3, p.positions),
    "given": lambda p: GivenWeight(
        p.normal(p.shape.batch, p.shape.heads, p.shape.length, p.shape.length)
    ),
}
CASES = [
    *((name, weight) for name in ("reference", "cpu") for weight in WEIGHTS),
    *((cuda_host.NAME, weight) for weight in ("norm", "given")),
]


@pytest.fixture(params=CASES, ids="-".join)
def case(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, AttentionEdges]:
    """A backend, and edges of a kind that it supports."""
    name, weight = request.param
    monkeypatch.setattr(reference, "TILE_ELEMENTS", 1 << 14)
    problem = Problem(SHAPE, backend="reference")
    return name, problem.edges(WEIGHTS[weight](problem))


def size(table: EdgeTable) -> int:
    return len(table.weight)


def cuts_of(edges: AttentionEdges, *quantiles: float) -> torch.Tensor:
    """float32 [K, B, T]: quantiles of each target's weights, with one target outside the trace."""
    weights = reference.edge_weights(edges).transpose(1, 2).flatten(2)
    cuts = torch.stack([torch.nanquantile(weights, q, -1) * 1.0001 + 1e-6 for q in quantiles])
    cuts[:, 1, 5] = torch.inf
    return cuts


@pytest.mark.parametrize("quantiles", [(0.5,), (0.9, 0.7, 0.2)], ids=["one cut", "three"])
@pytest.mark.parametrize("most", [1, 40, 500, 2400])  # a row, rows, heads, sequences
def test_tables_are_bounded_and_hold_each_edge_once(
    most: int,
    quantiles: tuple[float, ...],
    case: tuple[str, AttentionEdges],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By sequence, head, target and source from the first table to the last."""
    name, edges = case
    module, holder, budget = BUDGETS[name]
    cuts = cuts_of(edges, *quantiles)
    weights = reference.edge_weights(edges).nan_to_num(-torch.inf)
    kept = (weights > cuts[-1, :, None, :, None]).nonzero()
    stratum = (weights[None] <= cuts[:, :, None, :, None]).sum(0)
    monkeypatch.setattr(holder, budget, most)
    tables = list(module.collect_edges(edges, cuts))
    sizes = list(map(size, tables))
    assert 0 < min(sizes) <= max(sizes) <= max(most, SHAPE.length)
    assert len(sizes) >= len(kept) / max(most, SHAPE.length)
    actual = joined(tables)
    assert rows_of(actual) == [(*place, int(stratum[tuple(place)])) for place in kept.tolist()]
    torch.testing.assert_close(actual.weight, weights[tuple(kept.T)], rtol=2e-5, atol=1e-6)


def test_all_and_nothing(case: tuple[str, AttentionEdges], monkeypatch: pytest.MonkeyPatch) -> None:
    name, edges = case
    module, holder, budget = BUDGETS[name]
    monkeypatch.setattr(holder, budget, 60)
    cuts = torch.full((2, SHAPE.batch, SHAPE.length), torch.inf)
    assert list(module.collect_edges(edges, cuts)) == []
    there = ~reference.edge_weights(edges).isnan()
    everything = joined(module.collect_edges(edges, cuts.fill_(-1.0e9)))
    columns = (everything.sequence, everything.head, everything.target, everything.source)
    assert torch.equal(torch.stack(columns, 1), there.nonzero().int())
    assert not everything.stratum.any()


def test_a_table_is_released_before_the_next_is_made(
    case: tuple[str, AttentionEdges], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the consumer has released it."""
    name, edges = case
    module, holder, budget = BUDGETS[name]
    monkeypatch.setattr(holder, budget, 60)
    made = EdgeTable.__init__
    before: list[weakref.ref[torch.Tensor]] = []

    def making(table: EdgeTable, *columns: torch.Tensor) -> None:
        assert [column() for column in before] == [None] * len(before)
        made(table, *columns)

    def remember(table: EdgeTable) -> None:
        before.append(weakref.ref(table.weight))

    monkeypatch.setattr(EdgeTable, "__init__", making)
    deque(map(remember, module.collect_edges(edges, cuts_of(edges, 0.2))), maxlen=0)
    assert len(before) > 3


@pytest.mark.parametrize("order", [False, True], ids=["forwards", "backwards"])
def test_a_device_weighs_once_and_holds_what_it_promises(
    order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """23 bytes per weight of the budget, and 8 per row."""
    problem = Problem(Shape(batch=2, heads=4, groups=2, length=65), backend="reference")
    edges, budget = problem.norm_edges(), 65 * 20
    now, peak, weighed = 0, 0, 0
    empty, weigh = torch.empty, extension.weigh

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal now, peak
        tensor: torch.Tensor = empty(*args, **kwargs)

        def gone(size: int = tensor.nbytes) -> None:
            nonlocal now
            now -= size

        weakref.finalize(tensor, gone)
        now += tensor.nbytes
        peak = max(peak, now)
        return tensor

    def once(pattern: Any, weights: Any, tile: Any, *rest: Any) -> None:
        nonlocal weighed
        weighed += 1
        weigh(pattern, weights, tile, *rest)

    monkeypatch.setattr(budgets, "TABLE_ELEMENTS", budget)
    monkeypatch.setattr(torch, "empty", counted)
    monkeypatch.setattr(extension, "weigh", once, raising=False)
    cuts = torch.full((1, 2, 65), -1.0)
    extension.go_backwards(order)
    try:
        sizes = list(map(size, ops.collect_edges(edges, cuts)))
    finally:
        extension.go_backwards(False)
    assert sum(sizes) == 2 * 4 * 65 * 66 // 2
    assert weighed == 2 * 4 * 4 == len(sizes)
    assert 19 * max(sizes) < peak <= 23 * budget + 8 * 65
    assert now == 0


@given(
    batch=st.integers(1, 4),
    groups=st.integers(1, 4),
    shared=st.integers(1, 6),
    length=st.integers(1, 12),
    most=st.integers(1, 2000),
)
def test_runs_are_all_pairs_in_order(
    batch: int, groups: int, shared: int, length: int, most: int
) -> None:
    heads = groups * shared
    actual = list(runs((batch, heads, length), groups, most))

    def rows(run: Run) -> list[tuple[int, int, int]]:
        b, h, t = (range(part.start, part.stop) for part in run)
        assert len(b) * len(h) * len(t) * length <= most or len(b) == len(h) == len(t) == 1
        first, last = h.start // shared, (h.stop - 1) // shared
        assert first == last or (h.start % shared, h.stop % shared) == (0, 0)
        return [(i, j, k) for i in b for j in h for k in t]

    every = [(i, j, k) for i in range(batch) for j in range(heads) for k in range(length)]
    assert list(chain.from_iterable(map(rows, actual))) == every


@pytest.mark.parametrize("weight", WEIGHTS)
def test_weights_of_a_run_equal_those_of_the_whole(weight: str) -> None:
    problem = Problem(SHAPE, backend="reference")
    edges = problem.edges(WEIGHTS[weight](problem))
    whole = reference.edge_weights(edges)
    for run in (
        Run(slice(1, 3), slice(0, 6), slice(0, 14)),
        Run(slice(2, 3), slice(4, 5), slice(9, 14)),
    ):
        part = edges_in(edges, run)
        tile = reference.weight_tile(part, run.rows, first_head=run.heads.start)
        expected = whole[run.sequences, run.heads, run.rows].nan_to_num(-torch.inf)
        torch.testing.assert_close(tile, expected, rtol=1e-5, atol=1e-6)
