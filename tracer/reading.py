"""A corpus that is read beside other work: its first windows are there long before its last."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import TypeVar

from . import layout
from .corpus import CorpusReport, Document
from .parts import POLL_SECONDS
from .progress import Reporter
from .run import Stopped
from .spool import Spool
from .windows import Encode, Plan, plan_of, plan_windows

GRACE_SECONDS = 10.0  # for a corpus to end, once the scan was asked to stop

Result = TypeVar("Result")

log = logging.getLogger(__name__)


def awaited(made: Future[Result], asked: Callable[[], bool]) -> Result:
    """What another thread makes.

    Raises:
        Stopped: asked to stop, and it is not there soon.
    """
    left = GRACE_SECONDS
    while left > 0:
        started = time.monotonic()
        if wait([made], POLL_SECONDS).done:
            return made.result()
        if asked():
            left -= time.monotonic() - started
    raise Stopped


@dataclass
class Reading:
    """One reading of a corpus, in a thread of its own.

    Attributes:
        spool: takes the documents.
        context: tokens of a window, at most.
        strata: of the rule that they will be traced with.
        head: the first windows as soon as so many are read that the parts of these stay the same
            whatever comes (`layout.head`); None where the corpus ends before, or where none of
            them is as long as `context`, so that a longer one may come.
    """

    spool: Spool
    context: int
    strata: int
    head: Future[Plan | None] = field(default_factory=Future)
    _windows: int = 0
    _tokens: int = 0
    _told: Reporter | None = None
    _telling: Lock = field(default_factory=Lock)

    def read(
        self,
        documents: Iterable[Document],
        encode: Encode,
        vocab_size: int,
        report: CorpusReport,
    ) -> Plan:
        """All windows; see `plan_windows`."""
        started = time.monotonic()
        try:
            plan = plan_windows(
                documents,
                encode,
                self.context,
                self.spool,
                vocab_size=vocab_size,
                report=report,
                added=self._added,
            )
        finally:
            if not self.head.done():
                self.head.set_result(None)
        about = {
            "documents": report.documents,
            "windows": plan.n_windows,
            "tokens": int(plan.length.sum()),
            "seconds": time.monotonic() - started,
        }
        log.info("corpus read", extra=about)
        return plan

    @contextmanager
    def told(self, reporter: Reporter) -> Iterator[None]:
        """A reporter is told of the tokens, in a phase of their own."""
        with self._telling:
            reporter.begin("reading", None, self._tokens)
            self._told = reporter
        try:
            yield
        finally:
            with self._telling:
                self._told = None
                reporter.end()

    @cached_property
    def _enough(self) -> int:
        return layout.head(self.context, self.strata)

    def _added(self, tokens: int) -> None:
        self._windows += -(-tokens // self.context)
        if not self.head.done() and self._windows >= self._enough:
            self.spool.flush()
            head = plan_of(self.spool, self.context).head(self._enough)
            self.head.set_result(head if head.longest == self.context else None)
        with self._telling:
            self._tokens += tokens
            if self._told is not None:
                self._told.advance(tokens)
