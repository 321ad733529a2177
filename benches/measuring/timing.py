"""Wall time of a run, alternating with baselines so that drift affects all alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

Run = Callable[[], object]

BUDGET_SECONDS = 3.0  # for the rounds of one row, baselines included
FEWEST, MOST = 4, 30  # rounds


class Quartiles(NamedTuple):
    """Lower quartile, median and upper quartile."""

    q1: float
    median: float
    q3: float


def quartiles(figures: NDArray[np.float64] | list[float]) -> Quartiles:
    """Quartiles of one or more figures."""
    return Quartiles(*np.quantile(figures, (0.25, 0.5, 0.75)).tolist())


@dataclass(frozen=True)
class Timed:
    """Seconds of each round of a row, and of the baselines timed just before it."""

    own: NDArray[np.float64]  # [rounds]
    baselines: dict[str, NDArray[np.float64]]  # [rounds] per baseline

    @property
    def seconds(self) -> float:
        """Median of the row's seconds."""
        return float(np.median(self.own))

    def over(self, name: str) -> Quartiles:
        """Ratio of the row's time to a baseline's, round by round."""
        return quartiles(self.own / self.baselines[name])


def seconds(run: Run) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(
    benchmark: BenchmarkFixture, run: Run, baselines: Mapping[str, Run], baseline: str
) -> Timed | None:
    """Benchmark `run` in alternation with `baselines`, after one warm-up run each.

    Stores the ratio of the row's time to the baseline's (one of `baselines`) as `ratio`, which
    benches/compare.py compares: it is stable when the machine as a whole is not.

    Returns:
        None if pytest runs with --benchmark-disable and nothing was timed.
    """
    a_round = sum(seconds(work) for work in (*baselines.values(), run))
    rounds = int(np.clip(BUDGET_SECONDS / a_round, FEWEST, MOST))
    taken: dict[str, list[float]] = {name: [] for name in baselines}

    def time_baselines() -> None:
        for name, other in baselines.items():
            taken[name].append(seconds(other))

    benchmark.pedantic(run, setup=time_baselines, rounds=rounds)
    if benchmark.stats is None:
        return None
    timed = Timed(
        np.array(benchmark.stats.stats.data), {name: np.array(s) for name, s in taken.items()}
    )
    note_ratio(benchmark, baseline, timed.over(baseline))
    return timed


def note_ratio(benchmark: BenchmarkFixture, baseline: str, ratio: Quartiles) -> None:
    """Store a row's ratio to a baseline of the same run: see `measure`."""
    benchmark.extra_info["ratio"] = {"to": baseline, **ratio._asdict()}
