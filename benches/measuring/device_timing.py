"""Timing on a device by its own events, and the rates that it reaches at its best."""

import gc
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from costs import Costs, moved_bytes
from timing import FEWEST, MOST, Run, Timed

from densitrace.kernels import dispatch
from densitrace.tracer.clock import Clock as DeviceClock

BUDGET_SECONDS = 4.0  # for the rounds of one row, baselines included
SHORTEST_SECONDS = 2e-3  # of one measurement: shorter work is repeated within a round
MOST_LAUNCHED = 16  # repeats launched before the first begins: a device's queue is bounded
LONGEST_WAIT = 0.1  # seconds, at most, that the device waits for the host's launches
CYCLES_A_SECOND = 2e9  # approximate clock of a GPU; on slower ones the wait is longer


class Clock(DeviceClock):
    """Times work on a device by events on its stream; on a CPU by wall clock."""

    def seconds(self, run: Run, repeats: int = 1, ahead: float = 0.0) -> float:
        """Mean seconds of `repeats` runs in a row, started with the host `ahead` seconds ahead."""
        if ahead:
            self.wait(ahead)
        start = self.mark()
        for _ in range(repeats):
            run()
        return self.between(start, self.mark()) / repeats

    def wait(self, seconds: float) -> None:
        """Keep a GPU idle for a while, so that the host can launch what comes next."""
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda._sleep(int(seconds * CYCLES_A_SECOND))

    def launching(self, run: Run) -> float:
        """Seconds that the host takes to launch a run; 0 on a CPU, where launching is running."""
        if self.device.type != "cuda":
            return 0.0
        torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


def measure_on(
    device: torch.device, run: Run, baselines: dict[str, Run], *, launched: bool = False
) -> Timed:
    """Time `run` in alternation with `baselines`, after two warm-up runs each.

    The first warm-up compiles kernels and chooses algorithms; the second gives the time of one run.

    Args:
        launched: let the device wait in an idle kernel until the host has launched a whole round,
            so that kernels are timed and not Python's launches. If the host synchronises within a
            run, that still counts.
    """
    clock = Clock(device)
    runs = {**baselines, "": run}
    for work in runs.values():
        work()
    host = {name: clock.launching(work) if launched else 0.0 for name, work in runs.items()}
    once = {name: clock.seconds(work, 1, _ahead(host[name])) for name, work in runs.items()}
    most_repeats = MOST_LAUNCHED if any(host.values()) else 1000
    repeats = {
        name: int(np.clip(SHORTEST_SECONDS / taken, 1, most_repeats))
        for name, taken in once.items()
    }
    a_round = sum(once[name] * repeats[name] for name in runs)
    rounds = int(np.clip(BUDGET_SECONDS / a_round, FEWEST, MOST))
    taken = {name: np.empty(rounds) for name in runs}
    for index in range(rounds):
        for name, work in runs.items():
            ahead = _ahead(host[name] * repeats[name])
            taken[name][index] = clock.seconds(work, repeats[name], ahead)
    return Timed(taken.pop(""), taken)


def _ahead(launching: float) -> float:
    """Seconds to wait for work that takes this long to launch."""
    return min(LONGEST_WAIT, 1.5 * launching + 1e-4) if launching else 0.0


# Operations a second of an H100's vector units by its data sheet: half of its 67 TFLOP/s, which
# count a fused multiply-add as two.
VECTOR_RATE = 33.5e12
VECTOR_UNITS = 132  # multiprocessors of that H100


@dataclass(frozen=True)
class Ceilings:
    """Rates that the device reaches on work that suits it, per second."""

    products: float  # operations of a large bfloat16 product
    vector: float  # other operations
    bytes: float  # read and written by a large copy

    def limit(self, products: int, others: int, moved: int) -> float:
        """Minimum seconds for these counts, under the ceiling that binds."""
        return max(products / self.products, others / self.vector, moved / self.bytes)


def vector_rate(device: torch.device) -> float:
    """An H100's vector rate at its clock, scaled to a GPU's number of multiprocessors."""
    if device.type != "cuda":
        return VECTOR_RATE
    units: int = torch.cuda.get_device_properties(device).multi_processor_count
    return VECTOR_RATE * units / VECTOR_UNITS


def ceilings(device: torch.device, side: int = 8192, elements: int = 1 << 30) -> Ceilings:
    """Measure the rates of a large product and a large copy; count the vector units.

    The product is of two `side` x `side` matrices, the copy of `elements` bfloat16. The matrices
    are random because a product of zeros draws less power and runs faster.
    """
    left = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    right, product = torch.randn_like(left), torch.empty_like(left)
    large = torch.empty(elements, device=device, dtype=torch.bfloat16).normal_()
    target = torch.empty_like(large)
    multiplied = measure_on(device, lambda: torch.mm(left, right, out=product), {})
    copied = measure_on(device, lambda: target.copy_(large), {})
    products, moved = 2 * side**3 / multiplied.seconds, 2 * large.nbytes / copied.seconds
    return Ceilings(products, vector_rate(device), moved)


# ---- parts of a pass -------------------------------------------------------------------------


@dataclass
class Part:
    """Totals of one op in a pass."""

    seconds: float = 0.0
    operations: int = 0
    bytes: int = 0
    calls: int = 0
    backend: str = ""
    products: int = 0  # operations of matrix products, included in `operations`


@contextmanager
def parts_of(device: torch.device, costs: Costs, rows: int) -> Iterator[dict[str, Part]]:
    """Measure each op while the context is open; times are filled in when it closes.

    Args:
        costs: of one sequence.
        rows: sequences in the batch.
    """
    clock, pick = Clock(device), dispatch.pick
    parts: dict[str, Part] = defaultdict(Part)
    marks: list[tuple[str, Any, Any]] = []

    def timed_pick(op: Callable[..., Any], *where: Any) -> Callable[..., Any]:
        function, name = pick(op, *where), op.__name__

        def timed(*arguments: Any) -> Any:
            start = clock.mark()
            result = function(*arguments)
            marks.append((name, start, clock.mark()))
            part = parts[name]
            part.calls += 1
            operations = rows * costs.operations(name, arguments)
            part.operations += operations
            part.products += operations * costs.are_products(name)
            part.bytes += moved_bytes(*arguments, result)
            part.backend = dispatch.serving(name, *where)
            return result

        return timed

    dispatch.pick = timed_pick  # type: ignore[assignment]
    try:
        yield parts
    finally:
        dispatch.pick = pick
        for name, start, end in marks:
            parts[name].seconds += clock.between(start, end)


# ---- memory ----------------------------------------------------------------------------------


def peak_added(device: torch.device, run: Run) -> int:
    """Peak bytes of a run beyond what was held before its first call.

    This includes what it caches for later runs, such as folded weights, so it must not have run
    before.
    """
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    run()  # compiles kernels and chooses algorithms, which needs extra memory
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
