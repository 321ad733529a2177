"""What does tracing cost, against the plain forward of the same model?

The bundled model on the sample corpus: the plain forward itself, importance and sizes, and full
scans with live and with frozen attention. A scan of K strata runs K + 1 lanes, so it costs at least
K + 1 forwards unless lanes skip what they mask; with frozen attention they share the attention
weights.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from problems import bundled_work
from pytest_benchmark.fixture import BenchmarkFixture
from timing import measure

# Strata measured at each length; 4 where 12 would take over a minute.
STRATA_AT = {64: (12,), 256: (12,), 512: (1, 4, 12, 16), 1024: (12,), 2048: (12,), 4096: (12,)}
TRACING = {  # the method of `problems.Work`, and its attention
    "sizes": ("sizes", "live"),
    "scan-live": ("scan", "live"),
    "scan-frozen": ("scan", "frozen"),
}


def rows() -> Iterator[Any]:
    for length, counts in STRATA_AT.items():
        for strata in counts:
            for part in TRACING:
                yield pytest.param(part, length, strata, id=f"{part}-{length}-{strata}")


@pytest.mark.parametrize("length", STRATA_AT)
def test_forward(benchmark: BenchmarkFixture, length: int) -> None:
    """The forward timed against itself: the noise of the other ratios."""
    benchmark.group = f"engine T={length}"
    work = bundled_work(length)
    timed = measure(benchmark, work.forward, {"plain forward": work.forward}, "plain forward")
    if timed is not None:
        benchmark.extra_info["tokens/s"] = round(work.ids.numel() / timed.seconds)


@pytest.mark.parametrize(("part", "length", "strata"), list(rows()))
def test_tracing(benchmark: BenchmarkFixture, part: str, length: int, strata: int) -> None:
    benchmark.group = f"engine T={length}"
    name, attention = TRACING[part]
    work = bundled_work(length, strata, attention=attention)
    baselines = {"plain forward": work.forward}
    if name == "sizes":
        baselines["forward without unembedding"] = work.without_unembedding
    timed = measure(benchmark, getattr(work, name), baselines, "plain forward")
    if timed is None:
        return
    noted = benchmark.extra_info
    noted["tokens/s"] = round(work.ids.numel() / timed.seconds)
    if name == "sizes":
        noted["x forward without unembedding"] = timed.over("forward without unembedding").median
    else:
        noted["x (K+1) forwards"] = timed.over("plain forward").median / (strata + 1)


@pytest.mark.parametrize("importance", ["norm_l2", "cosine", "proximity"])
def test_importances(benchmark: BenchmarkFixture, importance: str) -> None:
    """Weights and sizes under the importances other than norm_l1, 12 strata."""
    benchmark.group = "importances T=64"
    work = bundled_work(64, importance=importance)
    timed = measure(benchmark, work.sizes, {"plain forward": work.forward}, "plain forward")
    if timed is not None:
        benchmark.extra_info["tokens/s"] = round(work.ids.numel() / timed.seconds)
