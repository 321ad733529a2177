"""Seconds on a device, by its own events; and the rates that it reaches at its best."""

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

BUDGET_SECONDS = 4.0  # of the rounds of one row, what is timed beside it included
SHORTEST_SECONDS = 2e-3  # of what is timed at once: shorter work is repeated within a round
MOST_LAUNCHED = 16  # repeats that are launched before the first begins: a device's queue is bounded
LONGEST_WAIT = 0.1  # seconds that a device waits for the host to have launched them
CYCLES_A_SECOND = 2e9  # of a GPU's clock, about; of a slower one the wait is longer


class Clock(DeviceClock):
    """Times work on a device by events on its stream; on a CPU by the wall."""

    def seconds(self, run: Run, repeats: int = 1, ahead: float = 0.0) -> float:
        """Of one run, the mean of some in a row, begun when the host is so many seconds ahead."""
        if ahead:
            self.wait(ahead)
        start = self.mark()
        for _ in range(repeats):
            run()
        return self.between(start, self.mark()) / repeats

    def wait(self, seconds: float) -> None:
        """Lets a GPU do nothing, while the host launches what comes next."""
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda._sleep(int(seconds * CYCLES_A_SECOND))

    def launching(self, run: Run) -> float:
        """Seconds that the host takes to launch a run; no more on a CPU, where it does the work."""
        if self.device.type != "cuda":
            return 0.0
        torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


def measure_on(
    device: torch.device, run: Run, beside: dict[str, Run], *, launched: bool = False
) -> Timed:
    """Time `run` in alternation with what is `beside` it, after two runs each to warm up.

    The first run compiles kernels and chooses algorithms; the second is free of that.

    Args:
        launched: begin a round when the host has launched all of it, a kernel that does nothing
            being before it: what is timed are then kernels, however long Python takes to launch
            them. Where the host waits inside a run, that counts nevertheless.
    """
    clock = Clock(device)
    every = {**beside, "": run}
    for work in every.values():
        work()
    host = {name: clock.launching(work) if launched else 0.0 for name, work in every.items()}
    once = {name: clock.seconds(work, 1, _ahead(host[name])) for name, work in every.items()}
    most = MOST_LAUNCHED if any(host.values()) else 1000
    repeats = {
        name: int(np.clip(SHORTEST_SECONDS / taken, 1, most)) for name, taken in once.items()
    }
    a_round = sum(once[name] * repeats[name] for name in every)
    rounds = int(np.clip(BUDGET_SECONDS / a_round, FEWEST, MOST))
    taken = {name: np.empty(rounds) for name in every}
    for index in range(rounds):
        for name, work in every.items():
            ahead = _ahead(host[name] * repeats[name])
            taken[name][index] = clock.seconds(work, repeats[name], ahead)
    return Timed(taken.pop(""), taken)


def _ahead(launching: float) -> float:
    """Seconds to wait for what takes so long to launch."""
    return min(LONGEST_WAIT, 1.5 * launching + 1e-4) if launching else 0.0


# Operations a second of an H100's vector units, by its data sheet: half of its 67 TFLOP/s, which
# count a fused addition.
VECTOR_RATE = 33.5e12
VECTOR_UNITS = 132  # its multiprocessors


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches on work that suits it, a second."""

    products: float  # operations of a large product in bfloat16
    vector: float  # other operations
    bytes: float  # read and written by a large copy

    def limit(self, products: int, others: int, moved: int) -> float:
        """Seconds that what is counted takes at least, under the ceiling that binds."""
        return max(products / self.products, others / self.vector, moved / self.bytes)


def vector_rate(device: torch.device) -> float:
    """Of a GPU with an H100's multiprocessors, as many as it has, at that clock."""
    if device.type != "cuda":
        return VECTOR_RATE
    units: int = torch.cuda.get_device_properties(device).multi_processor_count
    return VECTOR_RATE * units / VECTOR_UNITS


def ceilings(device: torch.device, side: int = 8192, elements: int = 1 << 30) -> Ceilings:
    """The product of two random `side` x `side` matrices and a copy of `elements` bfloat16, both
    measured; and what vector units do, by their number.

    Random, as a product of zeros draws less power and runs faster.
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
    """What one op took in a pass."""

    seconds: float = 0.0
    operations: int = 0
    bytes: int = 0
    calls: int = 0
    backend: str = ""
    products: int = 0  # operations of matrix products, among the others


@contextmanager
def parts_of(device: torch.device, costs: Costs, rows: int) -> Iterator[dict[str, Part]]:
    """What each op takes while the context is open, filled in when it closes.

    Args:
        costs: of one sequence.
        rows: sequences of the batch.
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
    """Bytes that a run holds at its peak, beyond what was held before it ever ran.

    So what it keeps for the next run counts, folded weights say, and it must not have run before.
    """
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    run()  # compiles kernels and chooses algorithms, which takes memory of its own
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
