"""Progress reports of a long run: a bar on a terminal, silence elsewhere."""

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
    """Receives progress, counted in tokens."""

    def begin(self, what: str, total: int | None, done: int = 0) -> None:
        """Start a phase of `total` tokens (None: unknown), of which `done` are already done."""
        ...

    def advance(self, tokens: int) -> None:
        """Count more tokens as done; negative numbers take tokens back."""
        ...

    def parts(self, done: int, total: int, failed: int, tokens: int) -> None:
        """Report the parts of the store that are done and failed, and the tokens of those done.

        Counts the work of all workers.
        """
        ...

    def end(self) -> None:
        """End the phase, whether its work is done or not."""
        ...


class Meter:
    """A silent reporter that measures the tokens and seconds of the latest phase."""

    def __init__(self) -> None:
        self.tokens = 0
        self.seconds = 0.0
        self._started = 0.0

    def begin(self, what: str, total: int | None, done: int = 0) -> None:
        """See `Reporter`; ignores the arguments."""
        self.tokens, self.seconds, self._started = 0, 0.0, time.monotonic()

    def advance(self, tokens: int) -> None:
        """See `Reporter`."""
        self.tokens += tokens

    def parts(self, done: int, total: int, failed: int, tokens: int) -> None:
        """See `Reporter`; does nothing, as only this worker is measured."""

    def end(self) -> None:
        """See `Reporter`."""
        self.seconds = time.monotonic() - self._started


class Bar(Meter):
    """A progress bar with tokens/s and the time left, erased at the end of the phase."""

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
        """See `Reporter`; makes the bar and the time left those of all workers together."""
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
    """Return a bar on standard error if that is a terminal, otherwise a silent `Meter`."""
    console = Console(stderr=True)
    return Bar(console) if console.is_terminal else Meter()
