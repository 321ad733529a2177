"""Scan a corpus into a store: plan the windows, choose the strata, trace part by part (`run`).

Processes that make the same call share the parts; see `parts`.
"""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from operator import index
from pathlib import Path
from threading import Event
from typing import Any, SupportsIndex

from .. import kernels
from ..errors import InputError, NotPlannedError, StoreError
from .corpus import CorpusReport, Fingerprint, Format, check_alone, read_corpus, until
from .engine import Attention
from .graph import Count, most_edges
from .indices import shown, whole
from .nodes import ImportanceName
from .parts import LEASE_SECONDS, POLL_SECONDS, Worker
from .prefetch import lower_priority
from .progress import Reporter, default_reporter
from .reading import Reading, awaited
from .recipe import Recipe
from .run import UNLIMITED, Allowance, Job, Limits, Run, Stopped
from .select import DEFAULT_STRATA, AutoStrata, Rule, Size, check_scope, checked_rule
from .spool import Spool
from .storage import KEPT, Folder, Storage, storage_of, writing
from .store import Store, existing_store, is_planned, open_store_in
from .stored_plan import create_store, left_draft
from .tracer import PILOT_TOKENS, Tracer
from .tracing import Scope, Settings
from .windows import Encode, Encoded, Plan, spread

BATCH_TOKENS = 1024  # run together, in each of 1 + K lanes (and K more per control)

log = logging.getLogger(__name__)


def scan(
    tracer: Tracer,
    corpus: str | Path,
    path: str | Path,
    *,
    select: Rule | AutoStrata = DEFAULT_STRATA,
    context: int = 512,
    importance: ImportanceName = "norm_l1",
    attention: Attention = "live",
    scope: Scope = "all",
    count: Count = "window",
    controls: Sequence[str] = (),
    edges: int | None = None,
    batch_tokens: int | None = None,
    text_field: str = "text",
    label_fields: Sequence[str] | None = None,
    file_format: Format = "auto",
    overwrite: bool = False,
    seed: int = 0,
    worker: Worker | None = None,
    lease_seconds: float = LEASE_SECONDS,
    limits: Limits = UNLIMITED,
    progress: Reporter | None = None,
) -> Store:
    """Trace every token of a corpus into a store, or continue a store that is not complete.

    Processes that pass the same arguments share the work; any of them may die.

    Args:
        tracer: the model, with a tokenizer.
        corpus, text_field, label_fields, file_format: see `read_corpus` (`corpus`: its `source`).
        path: the store's folder, new or empty, or a URL (s3://bucket/name, gs://, az://).
        select: the rule. AutoStrata chooses its thresholds on a pilot sample when the store is
            planned, and they stay with the store. The pilot is spread over the corpus, or over
            the beginning (`layout.head_windows`) of a large one.
        context: tokens of a window, at most.
        importance, attention, scope, count, controls, seed: see `Tracer.trace`. With
            scope="output" every position is traced separately: two passes a token.
        edges: the stratum whose kept edges are stored too, for `Store.edges`: 0 the sparsest, -1
            the densest; None: no edges. Excludes `Size` rules and `cuda_graphs`.
        batch_tokens: tokens that run through the model together, in each lane; bounds memory.
            By default what the store was planned with, 1024 for a new one. The last bits of sums
            depend on it and on the kernels, so a store is continued only with the same ones.
        overwrite: replace an existing store instead of continuing it.
        worker: which of several processes this is; by default as torchrun or Slurm sets it.
            The first worker plans the store, the others wait for it.
        lease_seconds: seconds without progress after which a worker's part is taken over.
        limits: when to stop before the store is complete.
        progress: receives the progress; by default a bar on a terminal, silence elsewhere.

    Returns:
        The store; complete unless `limits` ended the scan.

    Raises:
        CorpusError: the corpus is missing or empty.
        StoreError: the store was made from something else, or cannot be written.
        NotPlannedError: `limits` ended the scan before the corpus was read to its end.
        InputError: an argument that cannot be used.
        ScanError: some parts could not be traced, for example because the model's output was not
            finite; all others are done.

    Example:
        >>> store = scan(tracer, "examples/corpus/scan.jsonl", "traces.zarr")  # doctest: +SKIP
    """
    context, seed = whole("context", context), whole("seed", seed)
    if batch_tokens is not None:
        batch_tokens = whole("batch_tokens", batch_tokens)
    settings = Settings(importance, attention, scope, controls, count, seed)
    kept = kept_stratum(edges, checked_rule(select))
    check_scope(select, scope)
    worker = Worker.of_environment() if worker is None else worker
    _check_kinds(tracer, worker, limits)
    _check_arguments(tracer, context, edges, batch_tokens)
    reporter = default_reporter() if progress is None else progress
    if not (isinstance(lease_seconds, Real) and lease_seconds > 0):
        raise InputError(f"lease_seconds={shown(lease_seconds)}: give a number of seconds above 0")
    check_alone(corpus, alone=worker.count == 1)
    storage = storage_of(path)
    report, enough = CorpusReport(), Event()
    reading = read_corpus(corpus, text_field, label_fields, file_format=file_format, report=report)
    documents = Fingerprint(until(enough, reading))
    allowance = Allowance(limits)
    store = _existing(storage, overwrite, worker, allowance, reporter)
    planned_for = None if store is None else store.recipe.batch_tokens
    with ThreadPoolExecutor(2, "densitrace-reader", lower_priority) as reader:
        job = Job(
            tracer=tracer,
            settings=settings,
            batch_tokens=batch_tokens or planned_for or BATCH_TOKENS,
            worker=worker,
            lease_seconds=lease_seconds,
            allowance=allowance,
            reporter=reporter,
            reader=reader,
        )
        request = _Scan(
            job=job,
            corpus=str(corpus),
            storage=storage,
            select=select,
            context=context,
            edges=kept,
            overwrite=overwrite,
            documents=documents,
            report=report,
        )
        try:
            store = request.planned() if store is None else store
            request.check(store, store.recipe.corpus_fingerprint)
            # Tracing starts while the corpus is read in the background, to check its fingerprint.
            same = reader.submit(lambda: request.check(store, documents.hex()))
            Run(job, store, same).work()
        finally:
            enough.set()
    return store


def _check_kinds(tracer: Tracer, worker: Worker, limits: Limits) -> None:
    """Raise InputError for what is no tracer, worker or limits."""
    for value, kind in ((tracer, Tracer), (worker, Worker), (limits, Limits)):
        if not isinstance(value, kind):
            name = kind.__name__
            raise InputError(f"{name.lower()}={shown(value)} is no {name}")


def _check_arguments(
    tracer: Tracer, context: int, edges: int | None, batch_tokens: int | None
) -> None:
    """Raise InputError for arguments that are impossible, alone or with this tracer."""
    if edges is not None and tracer.cuda_graphs:
        raise InputError(f"edges={edges} and cuda_graphs cannot be combined: leave one out")
    if batch_tokens is not None and batch_tokens < 1:
        raise InputError(f"batch_tokens={batch_tokens} is too small: at least 1 token is traced")
    if tracer.max_length is not None and context > tracer.max_length:
        raise InputError(
            f"context={context} is more than the {tracer.max_length} tokens that model "
            f"{tracer.model_id!r} takes"
        )


@dataclass(frozen=True)
class _Scan:
    """The arguments of a scan, and the state that its steps share."""

    job: Job
    corpus: str
    storage: Storage
    select: Rule | AutoStrata
    context: int
    edges: int | None  # the stratum whose edges are stored
    overwrite: bool
    documents: Fingerprint
    report: CorpusReport  # counts of the documents

    def recipe(self, fingerprint: str) -> Recipe:
        """Return the recipe of a store of this scan, with the corpus's fingerprint."""
        tracer, settings = self.job.tracer, self.job.settings
        return Recipe(
            weight_hash=tracer.weight_hash,
            tokenizer_hash=tracer.tokenizer_hash,
            select=self.select.to_json(),
            importance=settings.importance,
            attention=settings.attention,
            scope=settings.scope,
            count=settings.count,
            seed=settings.seed,
            controls=tuple(settings.controls),
            context=self.context,
            corpus_fingerprint=fingerprint,
            edges=self.edges,
            batch_tokens=self.job.batch_tokens,
            arithmetic=_arithmetic(tracer),
            config_hash=tracer.config_hash,
        )

    def check(self, store: Store, fingerprint: str) -> None:
        """Raise StoreError if the store has another recipe."""
        difference = store.recipe.difference(self.recipe(fingerprint))
        if difference is not None:
            raise StoreError(
                f"store {str(store.path)!r} holds another scan: {difference}; choose another "
                "path, or overwrite it"
            )

    def planned(self) -> Store:
        """Read the corpus and plan the store.

        Raises:
            NotPlannedError: asked to stop before the corpus was read.
            StoreError: the store cannot be written.
        """
        with writing(self.storage.path), self.storage.staging() as folder:
            try:
                return self._planned_in(folder)
            except Stopped:
                raise _not_planned(self.storage) from None

    def _planned_in(self, folder: Path) -> Store:
        """Read the corpus, tracing its first windows as a draft meanwhile, and create the store."""
        job, strata = self.job, _n_strata(self.select)
        tracer, should_stop = job.tracer, job.allowance.limits.should_stop
        reading = Reading(Spool(folder / "spool"), self.context, strata)
        entire = job.reader.submit(
            reading.read, self.documents, encoder(tracer), tracer.vocab_size, self.report
        )
        with reading.reported_to(job.reporter):
            head = awaited(reading.head, should_stop)
            plan = awaited(entire, should_stop) if head is None else head
        rule, draft = self._rule(plan), None
        # Not with several workers: when the corpus is read, the others would wait for the part
        # that the first one is tracing.
        if head is not None and len(rule) == strata and job.worker.count == 1:
            draft = self._draft(folder, head, rule)
            Run(job, draft, entire, draft=True).work()
        if head is not None:
            with reading.reported_to(job.reporter):
                plan = awaited(entire, should_stop)
        return create_store(
            self.storage,
            folder,
            plan,
            recipe=self.recipe(self.documents.hex()),
            rule=rule,
            report=self.report,
            facts=self._facts(),
            most_edges=self._most_edges(plan),
            draft=draft,
            replace=self.overwrite,
        )

    def _draft(self, folder: Path, head: Plan, rule: Rule) -> Store:
        """Return a store of the first windows only: one kept by an earlier scan, or a new one."""
        storage, recipe = Folder(folder / KEPT), self.recipe("")
        kept = left_draft(storage, recipe, rule, head)
        if kept is not None:
            return kept
        return create_store(
            storage,
            folder,
            head,
            recipe=recipe,
            rule=rule,
            report=CorpusReport(),
            facts=self._facts(),
            most_edges=self._most_edges(head),
            replace=True,
        )

    def _rule(self, plan: Plan) -> Rule:
        """Return the rule; AutoStrata chooses its thresholds on a pilot spread over the plan."""
        if isinstance(self.select, Rule):
            return self.select
        settings = self.job.settings
        return self.job.tracer.choose_strata_from_windows(
            self.select,
            [plan.ids(window) for window in spread(plan.length, PILOT_TOKENS)],
            importance=settings.importance,
            count=settings.count,
            seed=settings.seed,
        )

    def _facts(self) -> dict[str, Any]:
        tracer = self.job.tracer
        return {
            "model": tracer.model_id,
            "architecture": tracer.architecture,
            "device": str(tracer.device),
            "backend": tracer.backend,
            "corpus_source": self.corpus,
            **tracer.geometry.to_json(),
        }

    def _most_edges(self, plan: Plan) -> int:
        tracer = self.job.tracer
        return most_edges(plan.longest, tracer.n_heads, tracer.n_layers)


def kept_stratum(edges: int | None, select: Rule | AutoStrata) -> int | None:
    """Resolve `edges=` of a scan to the index of a stratum, counted from the sparsest.

    Args:
        edges: an index, negative from the densest; None: no edges are stored.
        select: the rule.

    Returns:
        The index in 0..K-1, or None.

    Raises:
        InputError: no such stratum, or a `Size` rule, which keeps different edges per output.

    Example:
        >>> kept_stratum(-1, AutoStrata(12))
        11
    """
    if edges is None:
        return None
    if isinstance(select, Size):
        raise InputError("edges=... goes with rules of one graph for all outputs: not with Size")
    strata = _n_strata(select)
    is_index = isinstance(edges, SupportsIndex) and not isinstance(edges, bool)
    if not is_index or not -strata <= index(edges) < strata:
        raise InputError(
            f"edges={edges!r} is no stratum: of {strata}, 0 is the sparsest and {strata - 1} "
            "the densest"
        )
    return index(edges) % strata


def _n_strata(select: Rule | AutoStrata) -> int:
    return select.n if isinstance(select, AutoStrata) else len(select)


def _not_planned(storage: Storage) -> NotPlannedError:
    return NotPlannedError(
        f"store {str(storage.path)!r} is not planned yet, as its corpus was not read to the end; "
        "run the same scan again; parts that it traced meanwhile are kept"
    )


def _existing(
    storage: Storage, overwrite: bool, worker: Worker, allowance: Allowance, reporter: Reporter
) -> Store | None:
    """Return the store to continue, or None if this worker must plan it.

    Workers other than the first wait for the first one's plan.
    """
    if worker.index == 0:
        return existing_store(storage, overwrite)
    if overwrite:
        raise InputError("overwrite=True is for the first worker alone: others would start anew")
    if not is_planned(storage):
        log.info("waiting for the first worker's plan")
        reporter.begin("waiting for the first worker's plan", None)
    try:
        while not is_planned(storage):
            if allowance.spent():
                raise _not_planned(storage)
            time.sleep(POLL_SECONDS)
    finally:
        reporter.end()
    return open_store_in(storage, to_write=True)


# ---- planning ------------------------------------------------------------------------------------


def encoder(tracer: Tracer) -> Encode:
    """Return a function that tokenises texts, with character spans if the tokenizer is fast."""
    tokenizer = tracer.tokenizer

    def encode(texts: Sequence[str]) -> list[Encoded]:
        if tokenizer is None or not tokenizer.is_fast:
            return [Encoded(tracer.encode(text)) for text in texts]
        encoding = tokenizer(
            list(texts), return_offsets_mapping=True, return_attention_mask=False, verbose=False
        )
        return [
            Encoded(ids, spans)
            for ids, spans in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
        ]

    return encode


def _arithmetic(tracer: Tracer) -> str:
    """Describe the device and backends, on which the last bits of sums may depend."""
    device, names = tracer.device.type, [tracer.backend]
    if tracer.backend == "auto":
        names = sorted(set(kernels.backends(tracer.device).values()))
    return f"{device} by {' and '.join(names)}"
