"""Turn SIGTERM and interrupts into a request to stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event


@contextmanager
def stop_signals() -> Iterator[Event]:
    """Yield an event that SIGTERM or the first interrupt sets.

    An interrupt after that raises KeyboardInterrupt. The previous handlers are restored at exit.
    """
    asked = Event()

    def ask(number: int, _: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
