"""A worker's loop: trace and write parts of a store until all are done or it is stopped."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray

from ..errors import ModelError, NotFiniteError, ScanError, first_line
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
        should_stop: polled while tracing; True abandons the current part and stops.

    Example:
        >>> Limits(max_parts=2).seconds is None
        True
    """

    max_parts: int | None = None
    seconds: float | None = None
    should_stop: Callable[[], bool] = lambda: False


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
        return late or full or limits.should_stop()


class Stopped(Exception):
    """Raised when the worker was asked to stop, to abandon what it is doing."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to trace parts; a draft and its store share it."""

    tracer: Tracer
    settings: Settings
    batch_tokens: int
    worker: Worker
    lease_seconds: float
    allowance: Allowance
    reporter: Reporter
    reader: Executor  # for the corpus, and for the windows of the next part


class Run:
    """One worker's loop over the parts of a store.

    While a part is traced, the previous one is written and the windows of the next one are read.

    Args:
        job: what the worker traces with.
        store: whose parts are traced.
        background: a check that the store was made from the same corpus. If it fails, its error
            ends the work. Nothing is written before it is done, except in a draft.
        draft: whether the store is a draft of the corpus that `background` still reads. Parts are
            traced and written until that is done; failed parts are left to the scan of the whole
            corpus.
    """

    def __init__(
        self, job: Job, store: Store, background: Future[Any], draft: bool = False
    ) -> None:
        self.job = job
        self.store = store
        self.background = background
        self.draft = draft
        self._claims = Claims(store.storage, job.lease_seconds)
        self._tokens_together = job.tracer.tokens_per_weight_read(
            store.rule, job.settings, job.batch_tokens
        )
        self._failed: dict[int, str] = {}  # reasons, by part
        self._next: dict[int, Future[Plan]] = {}  # the windows of the next part

    def work(self) -> None:
        """Trace parts until all are done, or the worker must stop.

        Raises:
            ScanError: parts could not be traced; not of a draft.
            StoreError: the store was made from another corpus, or cannot be written.
        """
        store, reporter, allowance = self.store, self.job.reporter, self.job.allowance
        taken: set[int] = set()

        def stop() -> bool:
            return allowance.spent() or (self.draft and self.background.done())

        finished = store.part_tokens(store.done_parts())
        known = None if self.draft else int(store.lengths.sum())
        reporter.begin("tracing", known, finished)
        try:
            with ThreadPoolExecutor(1, "densitrace-writer") as writer:
                written: Future[None] | None = None
                for part in parts_for(store, self.job.worker, self._claims, taken, stop):
                    allowance.taken += 1
                    traced = self._traced(part)
                    if written is not None:
                        written.result()  # at most one part waits to be written
                    if traced is not None:
                        written = writer.submit(self._write, traced)
                if written is not None:
                    written.result()
            if allowance.taken or not allowance.spent():
                self._wait_until_same()
        except Stopped:
            log.info("stopped on request")
        finally:
            reporter.end()
        if self._failed and not self.draft:
            raise parts_failed(self._failed, store.n_parts)

    def _traced(self, part: int) -> "_TracedPart | None":
        """Trace a part, with retries; None if it failed every time."""
        for pause in (*RETRY_SECONDS, None):
            try:
                return self._trace(part)
            except (ModelError, RuntimeError, MemoryError) as error:
                reason = first_line(error)
                if _device_is_lost(error):
                    self._claims.release(part)
                    raise ScanError(
                        f"the device failed: {reason}; the same command continues the scan"
                    ) from error
                # Overflow in the model is deterministic; a device or disk may recover.
                for_good = isinstance(error, NotFiniteError)
            except BaseException:
                self._claims.release(part)
                raise
            # Outside the handler: the error's traceback held the tensors of the failed pass.
            failure = {"part": part, "reason": reason}
            if pause is None or for_good:
                log.error("part failed", extra=failure)
                self._failed[part] = reason
                note_failure(self.store.storage, part, reason)
                self._claims.release(part)
                return None
            log.warning("part is tried again", extra=failure)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            time.sleep(pause)
        raise AssertionError("the last try returns")

    def _trace(self, part: int) -> "_TracedPart":
        job, store = self.job, self.store
        tracer, reporter, started = job.tracer, job.reporter, time.monotonic()
        plan, device_seconds = self._read(part), tracer.device_seconds()
        arrays = empty_part(store, store.windows(part))
        groups = batches(plan.length, job.batch_tokens)
        # Offloaded blocks are read from disk once for several groups, which pass them in turn.
        passes = joined(groups, plan.length, self._tokens_together) if tracer.offloaded else groups
        spool, recorders = self._recorders(plan, passes)
        tracing = traces(
            tracer, plan, passes, store.rule, job.settings, job.batch_tokens, recorders
        )
        counted = 0
        try:
            # Heartbeats within a batch, too: a batch of a large model may take hours.
            with tracer.with_heartbeat(lambda: self._beat(part)):
                for windows, batch in zip(passes, tracing, strict=True):
                    for window, trace in zip(windows, batch, strict=True):
                        fill(arrays, window, plan, trace)
                    tokens = int(plan.length[windows].sum())
                    counted += tokens
                    reporter.advance(tokens)
                    self._beat(part)
        except BaseException:
            reporter.advance(-counted)
            raise
        padded = sum(len(group) * int(plan.length[group].max()) for group in groups)
        record = {
            "part": part,
            "tokens": counted,
            "padding": padded / counted - 1,
            "device_seconds": tracer.device_seconds() - device_seconds,
            "seconds": time.monotonic() - started,
        }
        return _TracedPart(part, arrays, spool, record)

    def _beat(self, part: int) -> None:
        """Send a heartbeat for a part; raise if tracing must end before the part is done."""
        self._claims.beat(part)
        if self.job.allowance.limits.should_stop():
            raise Stopped
        if self.background.done():
            self.background.result()

    def _read(self, part: int) -> Plan:
        """Return the windows of a part; start reading those of the part that likely follows."""
        reading, following = self._next.pop(part, None), part + self.job.worker.count
        plan = self.store.plan(part) if reading is None else reading.result()
        if following < self.store.n_parts:
            self._next = {following: self.job.reader.submit(self.store.plan, following)}
        return plan

    def _recorders(
        self, plan: Plan, groups: Sequence[Sequence[int]]
    ) -> tuple[EdgeSpool | None, list[EdgeRecorder]]:
        """Return a spool for a part's kept edges and a recorder per group; if edges are stored."""
        stratum = self.store.recipe.edges
        if stratum is None:
            return None, []
        spool = EdgeSpool(plan.n_windows)
        backend = self.job.tracer.backend
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
        while not self.background.done():
            if self.job.allowance.limits.should_stop():
                raise Stopped
            wait([self.background], POLL_SECONDS)
        self.background.result()

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
        forget_failure(self.store.storage, traced.part)
        written = {"write_seconds": time.monotonic() - started, "bytes": size}
        log.info("part done", extra=traced.record | written)
        if not self.draft:
            done = self.store.done_parts()
            tokens = self.store.part_tokens(done)
            self.job.reporter.parts(len(done), self.store.n_parts, len(self._failed), tokens)


def _device_is_lost(error: Exception) -> bool:
    """Whether a GPU refuses all further work of this process, as after an illegal access."""
    return isinstance(error, torch.AcceleratorError) and "out of memory" not in str(error)


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
    record: dict[str, Any]  # for the log
