"""A worker's loop: trace and write parts of a store until all are done or it is stopped."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray

from ..errors import ModelError, NotFiniteError, ScanError
from .collect import EdgeRecorder
from .edge_tables import EdgeSpool
from .part import empty_part, fill, traces
from .parts import POLL_SECONDS, Claims, Worker, forget_failure, note_failure, parts_for
from .progress import Reporter
from .store import Store
from .tracer import Tracer
from .tracing import Settings
from .windows import Plan, batches, joined

RETRY_SECONDS = (1.0, 10.0)  # pauses before a failed part is tried again

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """When a worker stops before the store is complete.

    Attributes:
        max_parts: parts to trace, at most; None: no limit.
        seconds: no part is begun after this time; None: no limit.
        asked: polled while tracing; True abandons the current part and stops, as after a signal.

    Example:
        >>> Limits(max_parts=2).seconds is None
        True
    """

    max_parts: int | None = None
    seconds: float | None = None
    asked: Callable[[], bool] = lambda: False


UNLIMITED = Limits()


@dataclass
class Allowance:
    """What is used up of `limits`, for a draft and its store together; the time runs from here."""

    limits: Limits
    taken: int = 0  # parts begun
    _started: float = field(default_factory=time.monotonic)

    def spent(self) -> bool:
        """Return whether no further part may be begun."""
        limits, seconds = self.limits, time.monotonic() - self._started
        late = limits.seconds is not None and seconds > limits.seconds
        full = limits.max_parts is not None and self.taken >= limits.max_parts
        return late or full or limits.asked()


class Stopped(Exception):
    """Raised when the worker was asked to stop, to abandon what it is doing."""


@dataclass
class Run:
    """One worker's loop over the parts of a store.

    While a part is traced, the previous one is written and the windows of the next one are read.

    Attributes:
        beside: a check in the background that the store was made from the same corpus. If it
            fails, its error ends the work. Nothing is written before it is done, except in a
            draft.
        draft: the store is a draft of the corpus that `beside` still reads. Parts are traced and
            written until that is done; failed parts are left to the scan of the whole corpus.
    """

    tracer: Tracer
    store: Store
    reader: Executor
    beside: Future[Any]
    settings: Settings
    batch_tokens: int
    worker: Worker
    lease_seconds: float
    allowance: Allowance
    reporter: Reporter
    draft: bool = False
    _failed: dict[int, str] = field(default_factory=dict)
    _ahead: dict[int, Future[Plan]] = field(default_factory=dict)  # windows of the next part

    def work(self) -> None:
        store = self.store
        self._claims = Claims(store.place, self.lease_seconds)
        self._tokens_together = self.tracer.tokens_a_reading(
            store.rule, self.settings, self.batch_tokens
        )
        taken: set[int] = set()

        def stop() -> bool:
            return self.allowance.spent() or (self.draft and self.beside.done())

        finished = store.part_tokens(store.done_parts())
        known = None if self.draft else int(store.lengths.sum())
        self.reporter.begin("tracing", known, finished)
        try:
            with ThreadPoolExecutor(1, "densitrace-writer") as writer:
                written: Future[None] | None = None
                for part in parts_for(store, self.worker, self._claims, taken, stop):
                    self.allowance.taken += 1
                    traced = self._traced(part)
                    if written is not None:
                        written.result()  # at most one part waits to be written
                    if traced is not None:
                        written = writer.submit(self._write, traced)
                if written is not None:
                    written.result()
            if self.allowance.taken or not self.allowance.spent():
                self._wait_until_same()
        except Stopped:
            log.info("stopped on request")
        finally:
            self.reporter.end()
        if self._failed and not self.draft:
            raise parts_failed(self._failed, store.n_parts)

    def _traced(self, part: int) -> "_TracedPart | None":
        """Trace a part, with retries; None if it failed every time."""
        for pause in (*RETRY_SECONDS, None):
            try:
                return self._trace(part)
            except (ModelError, RuntimeError, MemoryError) as error:
                # Overflow in the model is deterministic; a device or disk may recover.
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                about = {"part": part, "reason": reason}
                if pause is None or isinstance(error, NotFiniteError):
                    log.error("part failed", extra=about)
                    self._failed[part] = reason
                    note_failure(self.store.place, part, reason)
                    self._claims.release(part)
                    return None
                log.warning("part is tried again", extra=about)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                time.sleep(pause)
            except BaseException:
                self._claims.release(part)
                raise
        raise AssertionError("the last try returns")

    def _trace(self, part: int) -> "_TracedPart":
        started, store, plan = time.monotonic(), self.store, self._read(part)
        spent = self.tracer.device_seconds()
        arrays = empty_part(store, store.windows(part))
        groups = batches(plan.length, self.batch_tokens)
        tokens, counted = int(plan.length.sum()), 0
        padded = sum(len(group) * int(plan.length[group].max()) for group in groups)
        # Offloaded blocks are read from disk once for several groups, which pass them in turn.
        passes = (
            joined(groups, plan.length, self._tokens_together) if self.tracer.offloaded else groups
        )
        spool, recorders = self._recorders(plan, passes)
        tracing = traces(
            self.tracer, plan, passes, store.rule, self.settings, self.batch_tokens, recorders
        )
        try:
            # Heartbeats within a batch, too: a batch of a large model may take hours.
            with self.tracer.telling(lambda: self._go_on(part)):
                for windows, found in zip(passes, tracing, strict=True):
                    for window, trace in zip(windows, found, strict=True):
                        fill(arrays, window, plan, trace)
                    run = int(plan.length[windows].sum())
                    counted += run
                    self.reporter.advance(run)
                    self._go_on(part)
        except BaseException:
            self.reporter.advance(-counted)
            raise
        about = {
            "part": part,
            "tokens": tokens,
            "padding": padded / tokens - 1,
            "device_seconds": self.tracer.device_seconds() - spent,
            "seconds": time.monotonic() - started,
        }
        return _TracedPart(part, arrays, spool, about)

    def _go_on(self, part: int) -> None:
        """Send a heartbeat for a part; raise if tracing must end before the part is done."""
        self._claims.beat(part)
        if self.allowance.limits.asked():
            raise Stopped
        if self.beside.done():
            self.beside.result()

    def _read(self, part: int) -> Plan:
        """Return the windows of a part; start reading those of the part that likely follows."""
        ahead, following = self._ahead.pop(part, None), part + self.worker.count
        plan = self.store.plan(part) if ahead is None else ahead.result()
        if following < self.store.n_parts:
            self._ahead = {following: self.reader.submit(self.store.plan, following)}
        return plan

    def _recorders(
        self, plan: Plan, groups: Sequence[Sequence[int]]
    ) -> tuple[EdgeSpool | None, list[EdgeRecorder]]:
        """Return a spool for a part's kept edges and a recorder per group; if edges are stored."""
        stratum = self.store.recipe.edges
        if stratum is None:
            return None, []
        spool = EdgeSpool(plan.n_windows)
        backend = self.tracer.backend
        return spool, [
            EdgeRecorder(group, plan.length[group], stratum, spool, backend) for group in groups
        ]

    def _wait_until_same(self) -> None:
        """Wait until the corpus is known to be that of the store.

        Raises:
            Stopped: asked to stop.
        """
        if self.draft:
            return  # the corpus is still being read; what it holds decides the draft's fate
        while not self.beside.done():
            if self.allowance.limits.asked():
                raise Stopped
            wait([self.beside], POLL_SECONDS)
        self.beside.result()

    def _write(self, traced: "_TracedPart") -> None:
        try:
            self._wait_until_same()
            if self.store.is_done(traced.part):  # by a worker that took it over
                return
            started = time.monotonic()
            size = self.store.write_part(traced.part, traced.arrays, traced.edges)
        finally:
            if traced.edges is not None:
                traced.edges.close()
            self._claims.release(traced.part)
        forget_failure(self.store.place, traced.part)
        about = {"write_seconds": time.monotonic() - started, "bytes": size}
        log.info("part done", extra=traced.about | about)
        if not self.draft:
            done = self.store.done_parts()
            tokens = self.store.part_tokens(done)
            self.reporter.parts(len(done), self.store.n_parts, len(self._failed), tokens)


def parts_failed(failed: Mapping[int, str], n_parts: int) -> ScanError:
    """Return the error for parts that could not be traced.

    Args:
        failed: the reasons, by part.
        n_parts: parts of the store.
    """
    first, reason = next(iter(failed.items()))
    return ScanError(
        f"{len(failed)} of {n_parts} parts could not be traced, part {first} first: {reason}; "
        "all others are done, run the same scan again to try these again"
    )


@dataclass(frozen=True)
class _TracedPart:
    part: int
    arrays: dict[str, NDArray[Any]]
    edges: EdgeSpool | None
    about: dict[str, Any]  # for the log
