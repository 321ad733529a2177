"""Seconds of a piece of work, with others timed beside it so that drift hits all alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

Run = Callable[[], object]

BUDGET_SECONDS = 3.0  # of the rounds of one row, what is timed beside it included
FEWEST, MOST = 4, 30  # rounds


class Quartiles(NamedTuple):
    """The middle half of some figures."""

    q1: float
    median: float
    q3: float


def quartiles(figures: NDArray[np.float64] | list[float]) -> Quartiles:
    """Of one figure or more."""
    return Quartiles(*np.quantile(figures, (0.25, 0.5, 0.75)).tolist())


@dataclass(frozen=True)
class Timed:
    """Seconds of the rounds of a row, and of what was timed just before each of them."""

    own: NDArray[np.float64]  # [rounds]
    beside: dict[str, NDArray[np.float64]]  # [rounds] each

    @property
    def seconds(self) -> float:
        """The row's median."""
        return float(np.median(self.own))

    def over(self, name: str) -> Quartiles:
        """The row's time in those of what was timed beside it, round by round."""
        return quartiles(self.own / self.beside[name])


def seconds(run: Run) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(
    benchmark: BenchmarkFixture, run: Run, beside: Mapping[str, Run], baseline: str
) -> Timed | None:
    """Benchmark `run` in alternation with what is `beside` it, after one run each to warm up.

    Notes as `ratio` the row's time in those of the baseline, one of `beside`: what
    benches/compare.py compares, since it holds still when the machine as a whole does not.

    Returns:
        None where pytest runs with --benchmark-disable, and nothing was timed.
    """
    a_round = sum(seconds(work) for work in (*beside.values(), run))
    rounds = int(np.clip(BUDGET_SECONDS / a_round, FEWEST, MOST))
    taken: dict[str, list[float]] = {name: [] for name in beside}

    def time_the_others() -> None:
        for name, other in beside.items():
            taken[name].append(seconds(other))

    benchmark.pedantic(run, setup=time_the_others, rounds=rounds)
    if benchmark.stats is None:
        return None
    timed = Timed(
        np.array(benchmark.stats.stats.data), {name: np.array(s) for name, s in taken.items()}
    )
    note_ratio(benchmark, baseline, timed.over(baseline))
    return timed


def note_ratio(benchmark: BenchmarkFixture, baseline: str, ratio: Quartiles) -> None:
    """The row against a baseline of the same run: see `measure`."""
    benchmark.extra_info["ratio"] = {"to": baseline, **ratio._asdict()}
