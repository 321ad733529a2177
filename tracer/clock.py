"""Seconds of work on a device, by its own events; on a CPU by the wall."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Clock:
    """Marks moments among what a device is told to do."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Any:
        """A moment, once the work before it is done."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def between(self, start: Any, end: Any) -> float:
        """Seconds between two moments; waits for the second."""
        if self.device.type != "cuda":
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def is_past(self, moment: Any) -> bool:
        """Whether the work before a moment is done, without waiting for it."""
        return self.device.type != "cuda" or bool(moment.query())


class Stopwatch:
    """Adds up what a device spends on some of the work that it is told to do.

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
        self._told: deque[tuple[Any, Any]] = deque()  # the device may still be at these

    @contextmanager
    def running(self) -> Iterator[None]:
        """What is told inside counts, unless it fails; nothing waits."""
        start = self._clock.mark()
        yield
        self._told.append((start, self._clock.mark()))
        while self._told and self._clock.is_past(self._told[0][1]):
            self._past += self._clock.between(*self._told.popleft())

    def seconds(self) -> float:
        """All so far; waits until the device has done it."""
        while self._told:
            self._past += self._clock.between(*self._told.popleft())
        return self._past
