"""How far a long run is: one small reporter, a bar on a terminal and silence elsewhere."""

import time
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Reporter(Protocol):
    """Told what happens, in tokens."""

    def begin(self, what: str, total: int | None, done: int = 0) -> None:
        """A phase starts: `total` tokens, or None where unknown, of which `done` are done."""
        ...

    def advance(self, tokens: int) -> None:
        """That many more tokens are done."""
        ...

    def parts(self, done: int, total: int, failed: int, tokens: int) -> None:
        """So many parts of the store are done, and tokens of these, whoever did them."""
        ...

    def end(self) -> None:
        """The phase is over, done or not."""
        ...


class Meter:
    """A reporter that only measures: the tokens of the phase that runs, and its seconds."""

    def __init__(self) -> None:
        self.tokens = 0
        self.seconds = 0.0
        self._started = 0.0

    def begin(self, what: str, total: int | None, done: int = 0) -> None:
        """See `Reporter`; what is begun and how much is left does not matter here."""
        self.tokens, self.seconds, self._started = 0, 0.0, time.monotonic()

    def advance(self, tokens: int) -> None:
        """See `Reporter`."""
        self.tokens += tokens

    def parts(self, done: int, total: int, failed: int, tokens: int) -> None:
        """See `Reporter`; only those of this worker are measured."""

    def end(self) -> None:
        """See `Reporter`."""
        self.seconds = time.monotonic() - self._started


class Bar(Meter):
    """A bar with tokens/s and the time left, erased when the phase is over."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            _Speed(),
            TextColumn("{task.fields[parts]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )

    def begin(self, what: str, total: int | None, done: int = 0) -> None:
        """See `Reporter`."""
        super().begin(what, total, done)
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._progress.add_task(what, total=total, completed=done, parts="")
        self._progress.start()

    def advance(self, tokens: int) -> None:
        """See `Reporter`."""
        super().advance(tokens)
        for task in self._progress.task_ids:
            self._progress.advance(task, tokens)

    def parts(self, done: int, total: int, failed: int, tokens: int) -> None:
        """See `Reporter`; the time left is that of all workers together."""
        failures = f", {failed} failed" if failed else ""
        for task in self._progress.tasks:
            self._progress.update(
                task.id,
                parts=f"{done}/{total} parts{failures}",
                completed=max(task.completed, tokens),
            )

    def end(self) -> None:
        """See `Reporter`."""
        super().end()
        self._progress.stop()


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} tokens/s" if task.speed else "")


def default_reporter() -> Meter:
    """A bar on standard error where that is a terminal, silence otherwise."""
    console = Console(stderr=True)
    return Bar(console) if console.is_terminal else Meter()
