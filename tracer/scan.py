"""A corpus to a store: plan the windows, choose the strata, trace part after part.

The same call from several processes shares the parts among them; see `parts`.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError, ModelError, ScanError, StoreError
from . import layout
from .collect import EdgeRecorder
from .corpus import CorpusReport, Document, Fingerprint, Format, read_corpus, until
from .edge_tables import EdgeSpool
from .engine import Attention, Observer
from .graph import Count, most_edges
from .parts import (
    LEASE_SECONDS,
    POLL_SECONDS,
    Claims,
    Worker,
    forget_failure,
    note_failure,
    parts_for,
)
from .place import Place, place_of, writing
from .progress import Reporter, default_reporter
from .recipe import Recipe
from .select import DEFAULT_STRATA, AutoStrata, Rule, Size
from .sizes import by_quartile
from .spool import Spool
from .store import Store, existing_store, open_place
from .stored_plan import create_store
from .trace import Trace
from .tracer import PILOT_TOKENS, Tracer
from .tracing import Scope, Settings
from .windows import Encode, Encoded, Plan, plan_windows, spread

BATCH_TOKENS = 1024  # times 1 + K lanes (and again K a control) run through the model together
PADDING = 0.05  # of a batch's tokens, at most
RETRY_SECONDS = (1.0, 10.0)  # before a part that failed is tried again

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """When a worker stops before the store is complete."""

    max_parts: int | None = None
    seconds: float | None = None
    asked: Callable[[], bool] = lambda: False  # by a signal, say: the part at hand is left, too


def scan(
    tracer: Tracer,
    corpus: str | Path,
    path: str | Path,
    *,
    select: Rule | AutoStrata = DEFAULT_STRATA,
    context: int = 512,
    importance: str = "norm_l1",
    attention: Attention = "live",
    scope: Scope = "all",
    count: Count = "window",
    controls: Sequence[str] = (),
    edges: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    text_field: str = "text",
    label_fields: Sequence[str] | None = None,
    file_format: Format = "auto",
    overwrite: bool = False,
    seed: int = 0,
    worker: Worker | None = None,
    lease_seconds: float = LEASE_SECONDS,
    limits: Limits = Limits(),
    progress: Reporter | None = None,
) -> Store:
    """Trace every token of a corpus into a store; continues a store that is not complete.

    Processes that are given the same arguments share the work; any of them may die.

    Args:
        tracer: the model, with a tokenizer.
        corpus: see `read_corpus`, as for `text_field`, `label_fields` and `file_format`.
        path: the store's folder, or a URL (s3://bucket/name, gs://, az://).
        select: a rule; AutoStrata chooses its thresholds on a pilot sample when the store is
            planned and they stay with the store.
        context: tokens of a window, at most.
        importance, attention, scope, count, controls, seed: see `Tracer.trace`. With
            scope="output" every position is traced on its own: two passes a token.
        edges: a stratum, 0 the sparsest, or from the densest, -1: what it keeps of every window's
            graph is stored too, edge by edge, for `Store.edges`. Not of `Size`, nor with
            `cuda_graphs`.
        batch_tokens: tokens that run through the model together, times lanes; bounds memory.
        overwrite: replace a store that is there instead of continuing it.
        worker: which of several processes this is; by default as torchrun or a Slurm array says.
            The first one plans the store, the others wait for it.
        lease_seconds: a worker that has not got on for so long has its part taken over.
        limits: when to stop before the store is complete.
        progress: by default a bar on a terminal, silence otherwise.

    Returns:
        The store, complete but for `limits`.

    Raises:
        CorpusError: the corpus is missing or empty.
        StoreError: the store was made from something else, or cannot be written.
        InputError: an argument that cannot be used.
        ScanError: parts that could not be traced, of which the model's output was not finite,
            say; all others are done.

    Example:
        >>> store = scan(tracer, "examples/corpus/scan.jsonl", "traces.zarr")  # doctest: +SKIP
    """
    settings = Settings(importance, attention, scope, tuple(controls), count, seed)
    kept = kept_stratum(edges, select)
    if kept is not None and tracer.cuda_graphs:
        raise InputError(f"edges={edges} and cuda_graphs exclude one another: leave one out")
    if batch_tokens < 1:
        raise InputError(f"batch_tokens={batch_tokens} is too small: at least 1 token is traced")
    if tracer.max_length is not None and context > tracer.max_length:
        raise InputError(
            f"context={context} is more than the {tracer.max_length} positions of model "
            f"{tracer.model_id!r}"
        )
    reporter = default_reporter() if progress is None else progress
    worker = Worker.of_environment() if worker is None else worker
    place = place_of(path)
    report, enough = CorpusReport(), Event()
    documents = read_corpus(
        corpus, text_field, label_fields, file_format=file_format, report=report
    )
    read = Fingerprint(until(enough, documents))

    def recipe(fingerprint: str) -> Recipe:
        return Recipe(
            tracer.weight_hash,
            tracer.tokenizer_hash,
            select.to_json(),
            importance,
            attention,
            scope,
            count,
            seed,
            settings.controls,
            context,
            fingerprint,
            kept,
        )

    store = _found(place, overwrite, worker, limits, reporter)
    if store is None:
        with writing(place.path), place.staging() as folder:
            plan = _plan(tracer, read, context, folder, report, reporter)
            about = recipe(read.hex())
            store = _planned_store(tracer, place, folder, plan, about, select, report, str(corpus))
    _check_same(store, recipe(store.recipe.corpus_fingerprint))
    with ThreadPoolExecutor(2, "densitrace-reader") as reader:
        # A corpus of before is read again beside tracing; nothing is written before it is known.
        same = reader.submit(lambda: _check_same(store, recipe(read.hex())))
        run = _Run(
            tracer,
            store,
            reader,
            same,
            settings,
            batch_tokens,
            worker,
            lease_seconds,
            limits,
            reporter,
        )
        try:
            run.work()
        finally:
            enough.set()
    return store


def kept_stratum(edges: int | None, select: Rule | AutoStrata) -> int | None:
    """`edges=` of a scan as the place of a stratum among all of a rule; None: none.

    Raises:
        InputError: no place of a stratum, or a rule that keeps other edges for every output.

    Example:
        >>> kept_stratum(-1, AutoStrata(12))
        11
    """
    if edges is None:
        return None
    if isinstance(select, Size):
        raise InputError("edges=... goes with rules of one graph for all outputs: not with Size")
    strata = select.n if isinstance(select, AutoStrata) else len(select)
    if not isinstance(edges, int) or not -strata <= edges < strata:
        raise InputError(
            f"edges={edges!r} is no stratum: of {strata}, 0 is the sparsest and {strata - 1} "
            "the densest"
        )
    return edges % strata


def _found(
    place: Place, overwrite: bool, worker: Worker, limits: Limits, reporter: Reporter
) -> Store | None:
    """The store to continue; None where this worker is to plan it."""
    if worker.index == 0:
        return existing_store(place, overwrite)
    if overwrite:
        raise InputError("overwrite=True is for the first worker alone: others would start anew")
    if not place.exists():
        log.info("waiting for the first worker's plan")
        reporter.begin("waiting for the first worker's plan", None)
    try:
        while not place.exists():
            if limits.asked():
                raise StoreError(f"store {str(place.path)!r} was not planned yet")
            time.sleep(POLL_SECONDS)
    finally:
        reporter.end()
    return open_place(place, to_write=True)


# ---- planning ------------------------------------------------------------------------------------


def encoder(tracer: Tracer) -> Encode:
    """The tracer's tokenizer, with character spans where it knows them."""
    tokenizer = tracer.tokenizer

    def encode(texts: Sequence[str]) -> list[Encoded]:
        if tokenizer is None or not tokenizer.is_fast:
            return [Encoded(tracer.encode(text)) for text in texts]
        found = tokenizer(
            list(texts), return_offsets_mapping=True, return_attention_mask=False, verbose=False
        )
        return [
            Encoded(ids, spans)
            for ids, spans in zip(found["input_ids"], found["offset_mapping"], strict=True)
        ]

    return encode


def _plan(
    tracer: Tracer,
    documents: Iterable[Document],
    context: int,
    folder: Path,
    report: CorpusReport,
    reporter: Reporter,
) -> Plan:
    encode = encoder(tracer)

    def counted(texts: Sequence[str]) -> Sequence[Encoded]:
        encoded = encode(texts)
        reporter.advance(sum(len(each.ids) for each in encoded))
        return encoded

    started = time.monotonic()
    reporter.begin("reading", None)
    try:
        plan = plan_windows(
            documents,
            counted,
            context,
            Spool(folder / "spool"),
            vocab_size=tracer.vocab_size,
            report=report,
        )
    finally:
        reporter.end()
    about = {
        "documents": report.documents,
        "windows": plan.n_windows,
        "tokens": int(plan.length.sum()),
        "seconds": time.monotonic() - started,
    }
    log.info("corpus read", extra=about)
    return plan


def _planned_store(
    tracer: Tracer,
    place: Place,
    folder: Path,
    plan: Plan,
    recipe: Recipe,
    select: Rule | AutoStrata,
    report: CorpusReport,
    corpus: str,
) -> Store:
    rule = (
        select
        if isinstance(select, Rule)
        else tracer.strata_on(
            select,
            [plan.ids(window) for window in spread(plan.length, PILOT_TOKENS)],
            importance=recipe.importance,
            count=recipe.count,
            seed=recipe.seed,
        )
    )
    facts = {
        "model": tracer.model_id,
        "architecture": tracer.architecture,
        "device": str(tracer.device),
        "backend": tracer.backend,
        "blocks": tracer.n_layers,
        "parallel": tracer.parallel,
        "corpus_source": corpus,
    }
    most = most_edges(plan.longest, tracer.n_heads, tracer.n_layers)
    return create_store(place, folder, plan, recipe, rule, report, facts, most)


def _check_same(store: Store, recipe: Recipe) -> None:
    """StoreError if the store was made from other things."""
    difference = store.recipe.difference(recipe)
    if difference is not None:
        raise StoreError(
            f"store {str(store.path)!r} holds another scan: {difference}; give another place, "
            "or overwrite it"
        )


# ---- tracing -------------------------------------------------------------------------------------


class _Stopped(Exception):
    """The part at hand is left: the worker was asked to stop."""


@dataclass
class _Run:
    """One worker's way through the parts.

    While one is traced the one before is written, and what the next one holds is read.
    """

    tracer: Tracer
    store: Store
    reader: Executor
    same: Future[None]  # that the store was made from the same things, or an error
    settings: Settings
    batch_tokens: int
    worker: Worker
    lease_seconds: float
    limits: Limits
    reporter: Reporter
    _failed: dict[int, str] = field(default_factory=dict)
    _ahead: dict[int, Future[Plan]] = field(default_factory=dict)  # of the next part, if any

    def work(self) -> None:
        store, started = self.store, time.monotonic()
        self._claims = Claims(store.place, self.lease_seconds)
        self._tokens_together = self.tracer.tokens_a_reading(
            store.rule, self.settings, self.batch_tokens
        )
        taken: set[int] = set()

        def stop() -> bool:
            late = self.limits.seconds is not None and (
                time.monotonic() - started > self.limits.seconds
            )
            full = self.limits.max_parts is not None and len(taken) >= self.limits.max_parts
            return late or full or self.limits.asked()

        finished = sum(store.part_tokens(part) for part in store.done_parts())
        self.reporter.begin("tracing", int(store.lengths.sum()), finished)
        try:
            with ThreadPoolExecutor(1, "densitrace-writer") as writer:
                written: Future[None] | None = None
                for part in parts_for(store, self.worker, self._claims, taken, stop):
                    traced = self._traced(part)
                    if written is not None:
                        written.result()  # one part waits to be written at most
                    if traced is not None:
                        written = writer.submit(self._write, traced)
                if written is not None:
                    written.result()
            self._wait_until_same()
        except _Stopped:
            log.info("stopped on request")
        finally:
            self.reporter.end()
        if self._failed:
            first, reason = next(iter(self._failed.items()))
            raise ScanError(
                f"{len(self._failed)} of {store.n_parts} parts could not be traced, "
                f"part {first} first: {reason}; all others are done, run the same scan again "
                "to try these again"
            )

    def _traced(self, part: int) -> "_TracedPart | None":
        """A part's arrays; None where it failed, again and again."""
        for pause in (*RETRY_SECONDS, None):
            try:
                return self._trace(part)
            except (ModelError, RuntimeError) as error:
                # Weights or tokens that overflow do so again; a device may recover.
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                about = {"part": part, "reason": reason}
                if pause is None or isinstance(error, ModelError):
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
        arrays = _empty_part(store, store.windows(part))
        # To read the model once more costs more than padding does.
        padding = np.inf if self.tracer.offloaded else PADDING
        groups = batches(plan.length, self._tokens_together, padding)
        tokens, padded = int(plan.length.sum()), 0
        counted = 0
        spool, recorders = self._recorders(plan, groups)
        try:
            traces = _traces(
                self.tracer, plan, groups, store.rule, self.settings, self.batch_tokens, recorders
            )
            for windows, found in zip(groups, traces, strict=True):
                for window, trace in zip(windows, found, strict=True):
                    _fill(arrays, window, plan, trace)
                run = int(plan.length[windows].sum())
                counted += run
                padded += len(windows) * int(plan.length[windows].max())
                self.reporter.advance(run)
                self._claims.beat(part)
                if self.limits.asked():
                    raise _Stopped
                if self.same.done():
                    self.same.result()
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

    def _read(self, part: int) -> Plan:
        """The windows of a part; those of the one that most likely follows are read meanwhile."""
        ahead, following = self._ahead.pop(part, None), part + self.worker.count
        plan = self.store.plan(part) if ahead is None else ahead.result()
        if following < self.store.n_parts:
            self._ahead = {following: self.reader.submit(self.store.plan, following)}
        return plan

    def _recorders(
        self, plan: Plan, groups: Sequence[Sequence[int]]
    ) -> tuple[EdgeSpool | None, list[EdgeRecorder]]:
        """Where a part's kept edges go, and who brings them there from each group of windows."""
        stratum = self.store.recipe.edges
        if stratum is None:
            return None, []
        spool = EdgeSpool(plan.n_windows)
        backend = self.tracer.backend
        return spool, [
            EdgeRecorder(group, plan.length[group], stratum, spool, backend) for group in groups
        ]

    def _wait_until_same(self) -> None:
        """Until the corpus is known to be that of the store; `_Stopped` if asked to stop."""
        while not self.same.done():
            if self.limits.asked():
                raise _Stopped
            wait([self.same], POLL_SECONDS)
        self.same.result()

    def _write(self, traced: "_TracedPart") -> None:
        try:
            self._wait_until_same()
            started = time.monotonic()
            size = self.store.write_part(traced.part, traced.arrays, traced.edges)
        finally:
            if traced.edges is not None:
                traced.edges.close()
            self._claims.release(traced.part)
        forget_failure(self.store.place, traced.part)
        about = {"write_seconds": time.monotonic() - started, "bytes": size}
        log.info("part done", extra=traced.about | about)
        done = len(self.store.done_parts())
        self.reporter.parts(done, self.store.n_parts, len(self._failed))


@dataclass(frozen=True)
class _TracedPart:
    part: int
    arrays: dict[str, NDArray[Any]]
    edges: EdgeSpool | None
    about: dict[str, Any]  # for the log


def batches(
    lengths: NDArray[np.int32], batch_tokens: int, padding: float = PADDING
) -> list[list[int]]:
    """Windows grouped by similar length, each group at most `batch_tokens` with its padding.

    Args:
        lengths: tokens of each window.
        batch_tokens: bound of a group of more than one window.
        padding: most of it in a group, as a share of its tokens.

    Example:
        >>> batches(np.array([30, 90, 29, 20]), 90)
        [[1], [0, 2], [3]]
    """
    groups: list[list[int]] = []
    longest = held = 0
    for window in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[window])
        padded = (len(groups[-1]) + 1) * longest if groups else 0
        if not groups or padded > batch_tokens or padded > (1 + padding) * (held + length):
            groups.append([])
            longest, held = length, 0
        groups[-1].append(window)
        held += length
    return groups


def _traces(
    tracer: Tracer,
    plan: Plan,
    groups: Sequence[Sequence[int]],
    rule: Rule,
    settings: Settings,
    batch_tokens: int,
    observers: Sequence[Observer] = (),
) -> Iterator[list[Trace]]:
    """The traces of each group of windows; observers, one a group, see its graph."""
    if settings.scope == "all":
        batches = (
            ([plan.ids(window) for window in group], [plan.next_token(window) for window in group])
            for group in groups
        )
        return tracer.trace_batches(batches, rule, settings, batch_tokens, observers, packed=True)
    return _groups_one_by_one(tracer, plan, groups, rule, settings, observers)


def _groups_one_by_one(
    tracer: Tracer,
    plan: Plan,
    groups: Sequence[Sequence[int]],
    rule: Rule,
    settings: Settings,
    observers: Sequence[Observer],
) -> Iterator[list[Trace]]:
    options: dict[str, Any] = {**vars(settings), "select": rule}
    for number, group in enumerate(groups):
        for observer in observers[number : number + 1]:  # of all outputs: in a pass of its own
            tracer.observe([plan.ids(window) for window in group], rule, settings, observer)
        yield [_one_by_one(tracer, plan, window, options) for window in group]


def _one_by_one(tracer: Tracer, plan: Plan, window: int, options: dict[str, Any]) -> Trace:
    """Every output position of a window traced for itself, as one trace; depths by quartile."""
    ids, following = plan.ids(window), [plan.next_token(window)]
    rows = []
    for output in range(len(ids)):
        row = tracer.trace([ids], next_token=following, output=output, **options)
        assert isinstance(row, list)  # as above
        rows += row
    joined = join_rows(rows)
    topology = by_quartile(torch.from_numpy(joined.topology)).numpy()
    return replace(joined, topology=topology)


def join_rows(rows: Sequence[Trace]) -> Trace:
    """Traces of different output positions of one sequence as one trace."""
    first = rows[0]
    arrays = {
        name: np.concatenate([getattr(row, name) for row in rows])
        for name in (
            "positions",
            "size",
            "edge_count",
            "full_edge_count",
            "surprisal",
            "model_entropy",
            "topology",
        )
    }
    errors = {name: np.concatenate([row.errors[name] for row in rows]) for name in first.errors}
    return Trace(
        tokens=first.tokens,
        rule=first.rule,
        errors=errors,
        parallel=first.parallel,
        graph=first.graph,
        **arrays,
    )


# ---- a part's arrays -----------------------------------------------------------------------------


def _empty_part(store: Store, run: slice) -> dict[str, NDArray[Any]]:
    """Every array of a part, full of its fill value: what padding holds."""
    arrays = {}
    for spec in layout.window_arrays(store.controls, most_edges=0):
        array = store.array(spec.name)
        shape = (run.stop - run.start, *array.shape[1:])
        arrays[spec.name] = np.full(shape, spec.fill, dtype=array.dtype)
    return arrays


def _fill(arrays: dict[str, NDArray[Any]], row: int, plan: Plan, trace: Trace) -> None:
    """Put what is known of a part's window into its row."""
    start, length = int(plan.window_start[row]), int(plan.length[row])
    place = plan.place(row)
    arrays["document"][row] = plan.document[row]
    arrays["window_start"][row] = start
    arrays["position"][row, :length] = np.arange(start, start + length)
    arrays["token"][row, :length] = plan.tokens[place]
    arrays["char_start"][row, :length] = plan.spans[place, 0]
    arrays["char_end"][row, :length] = plan.spans[place, 1]
    for name in ("surprisal", "model_entropy", "full_edge_count", "size"):
        arrays[name][row, :length] = getattr(trace, name)
    for name, values in trace.errors.items():
        arrays[name][row, :length] = values
    arrays["topology"][row, :length] = trace.topology
