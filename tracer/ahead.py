"""Work that goes on in another thread while what it made before is used."""

import os
import sys
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

GIVEN_WAY = 10  # of niceness: about a tenth of a core that another thread wants, too

Item = TypeVar("Item")


def give_way() -> None:
    """From here on this thread, and those that it starts, leave the cores to threads that do not.

    For what is read beside tracing. Threads that trace together wait for the last of them, so that
    one that shares its core with a reader holds up all. Only Linux has priorities of threads.
    """
    if sys.platform == "linux":
        os.nice(GIVEN_WAY)


def ahead(items: Iterable[Item]) -> Generator[Item, None, None]:
    """The items in their order, each made in a thread of its own while the one before is used.

    Two are held at most. What making one raises is raised where it would have come.

    Example:
        >>> list(ahead(range(3)))
        [0, 1, 2]
    """
    source, end = iter(items), object()
    with ThreadPoolExecutor(1, "densitrace-ahead") as maker:
        made = maker.submit(next, source, end)
        while (item := made.result()) is not end:
            made = maker.submit(next, source, end)
            yield item  # type: ignore[misc]  # mypy takes `end` for an item
