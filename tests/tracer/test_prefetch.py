"""Prefetched items come in order, each made while the one before is used, errors included."""

import threading
from collections.abc import Iterator

import pytest

from densitrace.tracer.prefetch import prefetch

SECONDS = 60.0  # to wait for another thread, should it never come


def test_items_come_in_order() -> None:
    assert list(prefetch(iter(range(100)))) == list(range(100))
    assert list(prefetch([])) == []
    assert list(prefetch([None, 0, ""])) == [None, 0, ""]


def test_one_is_made_while_the_one_before_is_used() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    for number in prefetch(items()):
        # Without a thread of its own the next one would never be begun here.
        assert all(event.wait(SECONDS) for event in made[: number + 2])
        assert not any(event.is_set() for event in made[number + 2 :])


def test_what_goes_wrong_is_raised_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    coming = prefetch(items())
    assert next(coming) == 1
    with pytest.raises(KeyError, match="broken"):
        next(coming)


def test_who_stops_early_leaves_no_thread() -> None:
    before = threading.active_count()
    items = prefetch(iter(range(100)))
    assert next(items) == 0
    items.close()
    assert threading.active_count() == before
