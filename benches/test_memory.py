"""How much memory does a pass add at its peak, and is a scan's more than its rows need?

A scan of K strata runs K + 1 rows for each row of its input, so it is compared with the plain
forward of as many rows (see `Work.forward_of_all_lanes`); importance and sizes are compared with
the plain forward of the batch. Each figure is the resident memory of a fresh process; the seconds
are those of starting it and mean nothing.
"""

import subprocess
import sys
from functools import cache
from pathlib import Path

import peak
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from timing import Quartiles, note_ratio

BASELINES = {  # for each pass of `problems.Work`
    "forward": None,
    "forward_of_all_lanes": "forward",
    "sizes": "forward",
    "scan": "forward_of_all_lanes",
}


@cache
def added_bytes(part: str, length: int) -> int:
    """Bytes that a pass of 12 strata adds to the peak of its own process."""
    script = Path(peak.__file__)
    command = [sys.executable, str(script), part, str(length), str(torch.get_num_threads())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("length", [512, 1024, 2048, 4096])
@pytest.mark.parametrize("part", BASELINES)
def test_memory(benchmark: BenchmarkFixture, part: str, length: int) -> None:
    benchmark.group = f"memory T={length}"
    own = benchmark.pedantic(added_bytes, (part, length), rounds=1)
    benchmark.extra_info["peak MiB added"] = round(own / 2**20, 1)
    baseline = BASELINES[part]
    if baseline is not None:
        ratio = own / added_bytes(baseline, length)
        note_ratio(benchmark, baseline.replace("_", " "), Quartiles(ratio, ratio, ratio))
