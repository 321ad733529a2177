"""How near is each op, under each backend, to the best that torch has on the same shapes?

The shapes are the bundled model's: one row of T tokens, 6 heads, 2 of keys and values, d = 32, D =
192, V = 4096, 12 strata. Each op is paired with torch's closest equivalent: causal SDPA if
attention is recomputed, else a matrix product. Both are also timed before every round of every row,
and `of best` is the row's operations a second over the better of the two. measuring/costs.py
defines what counts as an operation and as a byte.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from costs import Costs, moved_bytes
from problems import STRATA, attention_problem, prediction_problem, thresholds, vocabulary
from pytest_benchmark.fixture import BenchmarkFixture
from timing import Run, measure
from torch import Tensor

from densitrace import BackendError, kernels
from densitrace.kernels import NormWeight, Pattern, dispatch

LENGTHS = (512, 2048)
SHORT = (512,)  # for ops whose plain-torch definition takes several seconds at 2048
MASSES = tuple((k + 1) / (STRATA + 1) for k in range(STRATA))  # of nucleus and fraction cuts


@dataclass(frozen=True)
class Yardstick:
    """A torch baseline: how to run it, and its operations."""

    run: Run
    operations: int


@dataclass(frozen=True)
class Case:
    """An op on one problem, with its baselines."""

    op: str
    arguments: tuple[Any, ...]
    operations: int
    yardsticks: dict[str, Yardstick]  # SDPA and matmul
    closest: str  # the yardstick with the same arithmetic
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, backend: str) -> object:
        """Run the op once; an iterator is read to its end."""
        result = getattr(kernels, self.op)(*self.arguments, **self.options, backend=backend)
        return list(result) if isinstance(result, Iterator) else result


def sdpa(pattern: Pattern, v: Tensor) -> Yardstick:
    """Causal SDPA on the same queries, keys and values, with lanes as rows of one batch."""
    heads, length, width = pattern.q.shape[-3:]
    q, k, v = (tensor.flatten(0, -4) for tensor in (pattern.q, pattern.k, v))

    def run() -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=pattern.scale, enable_gqa=True
        )

    return Yardstick(run, 2 * len(q) * heads * length * (length + 1) * width)


def matmul(left: Tensor, right: Tensor) -> Yardstick:
    """The product of [..., m, n] and [..., n, p]."""
    operations = 2 * left.numel() * right.shape[-1]
    return Yardstick(lambda: left @ right, operations)


# ---- the ops ---------------------------------------------------------------------------------


def costs(length: int) -> Costs:
    problem = attention_problem(length)
    heads, hidden, width = problem.w_o.shape
    return Costs(
        heads=heads, length=length, width=width, hidden=hidden, strata=STRATA,
        vocabulary=vocabulary(),
    )  # fmt: skip


def attention_case(
    length: int, op: str, *arguments: object, operations: int, lanes: Pattern | None = None
) -> Case:
    """An op that recomputes attention; baselines: SDPA, and the product of queries and keys."""
    problem = attention_problem(length)
    clean = problem.edges.pattern
    folded = clean.q.unflatten(1, (clean.k.shape[1], -1)).flatten(2, 3)
    yardsticks = {
        "SDPA": sdpa(clean, problem.v) if lanes is None else sdpa(lanes, problem.lanes_v),
        "matmul": matmul(folded, clean.k.transpose(-1, -2)),
    }
    return Case(op, arguments, operations, yardsticks, "SDPA")


def source_norms(length: int, p: int) -> Case:
    problem = attention_problem(length)
    flat = problem.v.repeat_interleave(len(problem.w_o) // problem.v.shape[1], 1)[0]
    yardsticks = {
        "SDPA": sdpa(problem.edges.pattern, problem.v),
        "matmul": matmul(flat, problem.w_o.transpose(-1, -2)),
    }
    arguments = (problem.v, problem.w_o if p == 1 else problem.root, p)
    return Case("source_norms", arguments, costs(length).source_norms(p), yardsticks, "matmul")


def attention_stats(length: int) -> Case:
    problem = attention_problem(length)
    weight = problem.edges.weight
    assert isinstance(weight, NormWeight)
    arguments = (problem.edges.pattern, problem.v, weight.source)
    return attention_case(
        length, "attention_stats", *arguments, operations=2 * costs(length).product
    )


def edge_mass(length: int) -> Case:
    edges = attention_problem(length).edges
    return attention_case(length, "edge_mass", edges, operations=costs(length).product)


def edge_levels(length: int) -> Case:
    problem = attention_problem(length)
    arguments = (problem.edges, problem.cuts)
    return attention_case(length, "edge_levels", *arguments, operations=costs(length).product)


def nucleus_cuts(length: int) -> Case:
    problem = attention_problem(length)
    arguments = (problem.edges, problem.node.side, MASSES, problem.node.total)
    return attention_case(length, "nucleus_cuts", *arguments, operations=costs(length).product)


def fraction_cuts(length: int) -> Case:
    problem = attention_problem(length)
    arguments = (problem.edges, problem.node.side, MASSES)
    return attention_case(length, "fraction_cuts", *arguments, operations=costs(length).product)


def lane_attention(length: int, live: bool) -> Case:
    """Lane attention, with SDPA of all lanes as the baseline.

    For frozen attention too: torch has nothing that computes alpha once, so lanes with equal
    queries and keys come closest.
    """
    problem = attention_problem(length)
    lanes = problem.lanes if live else None
    arguments = (problem.edges, problem.cuts, problem.lanes_v, lanes)
    operations = costs(length).lane_attention(live)
    return attention_case(
        length, "lane_attention", *arguments, operations=operations, lanes=problem.lanes
    )


def collect_edges(length: int) -> Case:
    problem = attention_problem(length)
    arguments = (problem.edges, problem.cuts)
    return attention_case(length, "collect_edges", *arguments, operations=costs(length).product)


def proximity_mass(length: int) -> Case:
    edges = attention_problem(length).proximity
    return attention_case(length, "edge_mass", edges, operations=costs(length).proximity())


def proximity_levels(length: int) -> Case:
    problem = attention_problem(length)
    total = kernels.edge_mass(problem.proximity)  # of attention alone: close enough for a cut
    cuts = torch.tensor(thresholds().values, dtype=torch.float32)[:, None, None] * total
    arguments = (problem.proximity, cuts)
    return attention_case(length, "edge_levels", *arguments, operations=costs(length).proximity())


def level_case(length: int, op: str, operations: int, of_degrees: bool) -> Case:
    """An op on level maps; the matrix baseline multiplies maps of the same size."""
    problem = attention_problem(length)
    maps = kernels.edge_levels(problem.edges, problem.cuts)
    clean = problem.edges.pattern
    yardsticks = {
        "SDPA": sdpa(clean, problem.v),
        "matmul": matmul(maps.levels.float(), maps.levels.float()),
    }
    second = maps.degrees if of_degrees else maps.levels
    return Case(op, (maps.levels, second), operations, yardsticks, "matmul")


def bottleneck(length: int) -> Case:
    return level_case(length, "bottleneck", costs(length).bottleneck(), of_degrees=False)


def trace_sizes(length: int) -> Case:
    return level_case(length, "trace_sizes", costs(length).trace_sizes(), of_degrees=True)


def output_errors(length: int) -> Case:
    problem = prediction_problem(length)
    attention = attention_problem(length)
    rows = torch.cat([problem.hidden[None], problem.lanes]).flatten(0, 1)
    yardsticks = {
        "SDPA": sdpa(attention.edges.pattern, attention.v),
        "matmul": matmul(rows, problem.unembedding.T),
    }
    return Case(
        "output_errors",
        (problem.hidden, problem.lanes, problem.unembedding),
        costs(length).output_errors(),
        yardsticks,
        "matmul",
        {"next_ids": problem.next_ids},
    )


@dataclass(frozen=True)
class Entry:
    """A row of the table below."""

    op: str
    build: Callable[[int], Case]
    lengths: tuple[int, ...] = LENGTHS


ENTRIES = {
    "source_norms-l1": Entry("source_norms", lambda length: source_norms(length, 1)),
    "source_norms-l2": Entry("source_norms", lambda length: source_norms(length, 2)),
    "attention_stats": Entry("attention_stats", attention_stats),
    "edge_mass": Entry("edge_mass", edge_mass),
    "edge_levels": Entry("edge_levels", edge_levels),
    "nucleus_cuts": Entry("nucleus_cuts", nucleus_cuts),
    "fraction_cuts": Entry("fraction_cuts", fraction_cuts),
    "lane_attention-live": Entry("lane_attention", lambda length: lane_attention(length, True)),
    "lane_attention-frozen": Entry("lane_attention", lambda length: lane_attention(length, False)),
    "collect_edges": Entry("collect_edges", collect_edges),
    "edge_mass-proximity": Entry("edge_mass", proximity_mass, SHORT),
    "edge_levels-proximity": Entry("edge_levels", proximity_levels, SHORT),
    "bottleneck": Entry("bottleneck", bottleneck),
    "trace_sizes": Entry("trace_sizes", trace_sizes),
    "output_errors": Entry("output_errors", output_errors, SHORT),
}


CPU_BACKENDS = [name for name in dispatch.BACKENDS if name in dispatch.PREFERENCE["cpu"]]


def has(backend: str, op: str) -> bool:
    """Whether a backend has its own implementation of an op on the CPU."""
    try:
        dispatch.serving(op, "cpu", backend)
    except BackendError:
        return False
    return True


def rows() -> Iterator[Any]:
    """Every op at every length under every backend that has it, and torch's baseline."""
    for name, entry in ENTRIES.items():
        providers = [backend for backend in CPU_BACKENDS if has(backend, entry.op)]
        for length in entry.lengths:
            for provider in (*providers, "torch"):
                yield pytest.param(name, provider, length, id=f"{name}-{provider}-{length}")


@pytest.mark.parametrize(("name", "provider", "length"), list(rows()))
def test_op(benchmark: BenchmarkFixture, name: str, provider: str, length: int) -> None:
    benchmark.group = f"{name} T={length}"
    with torch.inference_mode():
        case = ENTRIES[name].build(length)
        closest = case.yardsticks[case.closest]
        operations = closest.operations if provider == "torch" else case.operations
        run = closest.run if provider == "torch" else lambda: case.run(provider)
        baselines = {name: yardstick.run for name, yardstick in case.yardsticks.items()}
        timed = measure(benchmark, run, baselines, case.closest)
        if timed is None:
            return
        best = max(
            yardstick.operations / np.median(timed.baselines[name])
            for name, yardstick in case.yardsticks.items()
        )
        noted = benchmark.extra_info
        noted["operations"] = operations
        if provider != "torch":
            result = case.run(provider)
            noted["bytes"] = moved_bytes(*case.arguments, *case.options.values(), result)
    noted["GFLOP/s"] = operations / timed.seconds / 1e9
    noted["of best"] = operations / timed.seconds / best
