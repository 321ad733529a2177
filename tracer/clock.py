"""Time the work of a device: with CUDA events on a GPU, with the wall clock on a CPU."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Clock:
    """Records moments in a device's stream of work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Any:
        """Record a moment: when the work submitted so far is done."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def between(self, start: Any, end: Any) -> float:
        """Return the seconds between two moments; waits for the second."""
        if self.device.type != "cuda":
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def is_past(self, moment: Any) -> bool:
        """Return whether the work before a moment is done, without waiting for it."""
        return self.device.type != "cuda" or bool(moment.query())


class Stopwatch:
    """Adds up the time a device spends on selected work.

    Example:
        >>> watch = Stopwatch(Clock(torch.device("cpu")))
        >>> with watch.running():
        ...     total = sum(range(1000))
        >>> watch.seconds() > 0
        True
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._past = 0.0
        self._pending: deque[tuple[Any, Any]] = deque()  # intervals that may still be running

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the work submitted inside, unless the body raises; does not wait for the device."""
        start = self._clock.mark()
        yield
        self._pending.append((start, self._clock.mark()))
        while self._pending and self._clock.is_past(self._pending[0][1]):
            self._past += self._clock.between(*self._pending.popleft())

    def seconds(self) -> float:
        """Return the total so far; waits until the device has done the counted work."""
        while self._pending:
            self._past += self._clock.between(*self._pending.popleft())
        return self._past
