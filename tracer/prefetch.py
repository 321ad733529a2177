"""Prefetching: make the next item in a background thread while the caller uses the current one."""

import os
import sys
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

NICENESS = 10  # added to the nice value: about a tenth of a core that another thread wants too

Item = TypeVar("Item")


def lower_priority() -> None:
    """Lower the priority of this thread, and of threads it starts from now on.

    For threads that read while others trace. Tracing threads wait for the slowest of them, so one
    that shares its core with a reader delays them all. Does nothing except on Linux, the only
    system with per-thread priorities.
    """
    if sys.platform == "linux":
        os.nice(NICENESS)


def prefetch(items: Iterable[Item]) -> Generator[Item, None, None]:
    """Yield items in order, making each in a background thread while the previous one is used.

    At most two items are held. An error in making an item is raised where the item was due.

    Example:
        >>> list(prefetch(range(3)))
        [0, 1, 2]
    """
    source, end = iter(items), object()
    with ThreadPoolExecutor(1, "densitrace-prefetch") as maker:
        made = maker.submit(next, source, end)
        while (item := made.result()) is not end:
            made = maker.submit(next, source, end)
            yield item  # type: ignore[misc]  # mypy takes `end` for an item
