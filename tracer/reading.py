"""Read a corpus in a background thread, making its first windows available before the last."""

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

GRACE_SECONDS = 10.0  # given to the reader to finish, once the scan was asked to stop

Result = TypeVar("Result")

log = logging.getLogger(__name__)


def awaited(future: Future[Result], should_stop: Callable[[], bool]) -> Result:
    """Wait for another thread's result.

    Raises:
        Stopped: `should_stop` was true for `GRACE_SECONDS` without a result.
    """
    left = GRACE_SECONDS
    while left > 0:
        started = time.monotonic()
        if wait([future], POLL_SECONDS).done:
            return future.result()
        if should_stop():
            left -= time.monotonic() - started
    raise Stopped


@dataclass
class Reading:
    """One pass over a corpus; call `read` in a background thread.

    Attributes:
        spool: receives the documents.
        context: tokens of a window, at most.
        strata: number of strata of the rule.
        head: resolves to the first windows, once there are enough to fix the division into parts
            whatever follows (`layout.head_windows`); to None if the corpus ends before, or if none
            of them has `context` tokens, so that a longer one may follow.
    """

    spool: Spool
    context: int
    strata: int
    head: Future[Plan | None] = field(default_factory=Future)
    _windows: int = 0
    _tokens: int = 0
    _reporter: Reporter | None = None
    _lock: Lock = field(default_factory=Lock)

    def read(
        self,
        documents: Iterable[Document],
        encode: Encode,
        vocab_size: int,
        report: CorpusReport,
    ) -> Plan:
        """Read the corpus to its end and return all windows; see `plan_windows`."""
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
        facts = {
            "documents": report.documents,
            "windows": plan.n_windows,
            "tokens": int(plan.length.sum()),
            "seconds": time.monotonic() - started,
        }
        log.info("corpus read", extra=facts)
        return plan

    @contextmanager
    def reported_to(self, reporter: Reporter) -> Iterator[None]:
        """Report the tokens read to a reporter, as the phase "reading", inside the context."""
        with self._lock:
            reporter.begin("reading", None, self._tokens)
            self._reporter = reporter
        try:
            yield
        finally:
            with self._lock:
                self._reporter = None
                reporter.end()

    @cached_property
    def _enough(self) -> int:
        return layout.head_windows(self.context, self.strata)

    def _added(self, tokens: int) -> None:
        self._windows += -(-tokens // self.context)
        if not self.head.done() and self._windows >= self._enough:
            self.spool.flush()
            head = plan_of(self.spool, self.context).head(self._enough)
            self.head.set_result(head if head.longest == self.context else None)
        with self._lock:
            self._tokens += tokens
            if self._reporter is not None:
                self._reporter.advance(tokens)
