"""Work that goes on in another thread while what it made before is used."""

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


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
