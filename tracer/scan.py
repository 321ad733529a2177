"""A corpus to a store: plan the windows, choose the strata, trace part after part (`run`).

The same call from several processes shares the parts among them; see `parts`.
"""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import index
from pathlib import Path
from threading import Event
from typing import Any, SupportsIndex

from .. import kernels
from ..errors import InputError, NotPlannedError, StoreError
from .ahead import give_way
from .corpus import CorpusReport, Fingerprint, Format, check_alone, read_corpus, until
from .engine import Attention
from .graph import Count, most_edges
from .nodes import ImportanceName
from .parts import LEASE_SECONDS, POLL_SECONDS, Worker
from .place import KEPT, Folder, Place, place_of, writing
from .progress import Reporter, default_reporter
from .reading import Reading, awaited
from .recipe import Recipe
from .run import UNLIMITED, Allowance, Limits, Run, Stopped
from .select import DEFAULT_STRATA, AutoStrata, Rule, Size, checked_rule
from .spool import Spool
from .store import Store, existing_store, is_planned, open_place
from .stored_plan import create_store, left_draft
from .tracer import PILOT_TOKENS, Tracer
from .tracing import Scope, Settings
from .windows import Encode, Encoded, Plan, spread

BATCH_TOKENS = 1024  # times 1 + K lanes (and again K a control) run through the model together

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
    """Trace every token of a corpus into a store; continues a store that is not complete.

    Processes that are given the same arguments share the work; any of them may die.

    Args:
        tracer: the model, with a tokenizer.
        corpus: see `read_corpus`, as for `text_field`, `label_fields` and `file_format`.
        path: the store's folder, or a URL (s3://bucket/name, gs://, az://).
        select: a rule; AutoStrata chooses its thresholds on a pilot sample when the store is
            planned and they stay with the store. The pilot is spread over the corpus, of a large
            one (`layout.head`) over its beginning.
        context: tokens of a window, at most.
        importance, attention, scope, count, controls, seed: see `Tracer.trace`. With
            scope="output" every position is traced on its own: two passes a token.
        edges: a stratum, 0 the sparsest, or from the densest, -1: what it keeps of every window's
            graph is stored too, edge by edge, for `Store.edges`. Not of `Size`, nor with
            `cuda_graphs`.
        batch_tokens: tokens that run through the model together, times lanes; bounds memory. By
            default as the store was planned, a new one for 1024. The last bits of sums depend on
            it, and on what serves the ops: a store goes on with those that it began with.
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
        NotPlannedError: `limits` ended before the corpus was read to its end.
        InputError: an argument that cannot be used.
        ScanError: parts that could not be traced, of which the model's output was not finite,
            say; all others are done.

    Example:
        >>> store = scan(tracer, "examples/corpus/scan.jsonl", "traces.zarr")  # doctest: +SKIP
    """
    settings = Settings(importance, attention, scope, tuple(controls), count, seed)
    kept = kept_stratum(edges, checked_rule(select))
    if kept is not None and tracer.cuda_graphs:
        raise InputError(f"edges={edges} and cuda_graphs exclude one another: leave one out")
    if batch_tokens is not None and batch_tokens < 1:
        raise InputError(f"batch_tokens={batch_tokens} is too small: at least 1 token is traced")
    if tracer.max_length is not None and context > tracer.max_length:
        raise InputError(
            f"context={context} is more than the {tracer.max_length} tokens that model "
            f"{tracer.model_id!r} takes"
        )
    reporter = default_reporter() if progress is None else progress
    worker = Worker.of_environment() if worker is None else worker
    check_alone(corpus, alone=worker.count == 1)
    place = place_of(path)
    report, enough = CorpusReport(), Event()
    documents = read_corpus(
        corpus, text_field, label_fields, file_format=file_format, report=report
    )
    read = Fingerprint(until(enough, documents))

    allowance = Allowance(limits)
    store = _found(place, overwrite, worker, allowance, reporter)
    planned_for = None if store is None else store.recipe.batch_tokens
    with ThreadPoolExecutor(2, "densitrace-reader", give_way) as reader:
        asked = _Scan(
            tracer,
            str(corpus),
            place,
            select,
            settings,
            context,
            kept,
            batch_tokens or planned_for or BATCH_TOKENS,
            worker,
            lease_seconds,
            allowance,
            reporter,
            overwrite,
            read,
            report,
            reader,
        )
        try:
            store = asked.planned() if store is None else store
            asked.check(store, store.recipe.corpus_fingerprint)
            # A corpus of before is read again beside tracing.
            asked.work(store, reader.submit(lambda: asked.check(store, read.hex())))
        finally:
            enough.set()
    return store


@dataclass(frozen=True)
class _Scan:
    """A scan as it was asked for, and what its steps share."""

    tracer: Tracer
    corpus: str
    place: Place
    select: Rule | AutoStrata
    settings: Settings
    context: int
    edges: int | None  # the stratum whose edges are kept
    batch_tokens: int
    worker: Worker
    lease_seconds: float
    allowance: Allowance
    reporter: Reporter
    overwrite: bool
    read: Fingerprint  # the documents as they go by
    report: CorpusReport  # of them
    reader: Executor

    def recipe(self, fingerprint: str) -> Recipe:
        """What a store is made from; the fingerprint is the corpus's."""
        return Recipe(
            self.tracer.weight_hash,
            self.tracer.tokenizer_hash,
            self.select.to_json(),
            self.settings.importance,
            self.settings.attention,
            self.settings.scope,
            self.settings.count,
            self.settings.seed,
            self.settings.controls,
            self.context,
            fingerprint,
            self.edges,
            self.batch_tokens,
            _arithmetic(self.tracer),
            self.tracer.config_hash,
        )

    def check(self, store: Store, fingerprint: str) -> None:
        """StoreError if the store was made from other things."""
        difference = store.recipe.difference(self.recipe(fingerprint))
        if difference is not None:
            raise StoreError(
                f"store {str(store.path)!r} holds another scan: {difference}; give another place, "
                "or overwrite it"
            )

    def work(self, store: Store, beside: Future[Any], draft: bool = False) -> None:
        """See `Run`."""
        Run(
            self.tracer,
            store,
            self.reader,
            beside,
            self.settings,
            self.batch_tokens,
            self.worker,
            self.lease_seconds,
            self.allowance,
            self.reporter,
            draft,
        ).work()

    def planned(self) -> Store:
        """The store, once the corpus was read.

        Raises:
            NotPlannedError: asked to stop before.
            StoreError: it cannot be written.
        """
        with writing(self.place.path), self.place.staging() as folder:
            try:
                return self._planned_in(folder)
            except Stopped:
                raise _not_planned(self.place) from None

    def _planned_in(self, folder: Path) -> Store:
        """What can be traced before the corpus is read to its end is traced meanwhile."""
        stop, strata = self.allowance.limits.asked, _n_strata(self.select)
        reading = Reading(Spool(folder / "spool"), self.context, strata)
        whole = self.reader.submit(
            reading.read, self.read, encoder(self.tracer), self.tracer.vocab_size, self.report
        )
        with reading.told(self.reporter):
            head = awaited(reading.head, stop)
            plan = awaited(whole, stop) if head is None else head
        rule, draft = self._rule(plan), None
        # Several workers would wait for the part that the first is at when all is read.
        if head is not None and len(rule) == strata and self.worker.count == 1:
            draft = self._draft(folder, head, rule)
            self.work(draft, whole, draft=True)
        if head is not None:
            with reading.told(self.reporter):
                plan = awaited(whole, stop)
        recipe = self.recipe(self.read.hex())
        facts, most = self._facts(), self._most_edges(plan)
        return create_store(
            self.place, folder, plan, recipe, rule, self.report, facts, most, draft, self.overwrite
        )

    def _draft(self, folder: Path, head: Plan, rule: Rule) -> Store:
        """A store of the first windows alone: one that was kept, or a new one."""
        place, recipe = Folder(folder / KEPT), self.recipe("")
        kept = left_draft(place, recipe, rule, head)
        if kept is not None:
            return kept
        facts, most = self._facts(), self._most_edges(head)
        return create_store(
            place, folder, head, recipe, rule, CorpusReport(), facts, most, replace=True
        )

    def _rule(self, plan: Plan) -> Rule:
        """Thresholds that are chosen are chosen on a pilot spread over these windows."""
        if isinstance(self.select, Rule):
            return self.select
        return self.tracer.choose_strata_from_windows(
            self.select,
            [plan.ids(window) for window in spread(plan.length, PILOT_TOKENS)],
            importance=self.settings.importance,
            count=self.settings.count,
            seed=self.settings.seed,
        )

    def _facts(self) -> dict[str, Any]:
        tracer = self.tracer
        return {
            "model": tracer.model_id,
            "architecture": tracer.architecture,
            "device": str(tracer.device),
            "backend": tracer.backend,
            "blocks": tracer.n_layers,
            "parallel": tracer.parallel,
            "corpus_source": self.corpus,
        }

    def _most_edges(self, plan: Plan) -> int:
        return most_edges(plan.longest, self.tracer.n_heads, self.tracer.n_layers)


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
    strata = _n_strata(select)
    whole = isinstance(edges, SupportsIndex) and not isinstance(edges, bool)
    if not whole or not -strata <= index(edges) < strata:
        raise InputError(
            f"edges={edges!r} is no stratum: of {strata}, 0 is the sparsest and {strata - 1} "
            "the densest"
        )
    return index(edges) % strata


def _n_strata(select: Rule | AutoStrata) -> int:
    return select.n if isinstance(select, AutoStrata) else len(select)


def _not_planned(place: Place) -> NotPlannedError:
    return NotPlannedError(
        f"store {str(place.path)!r} is not planned yet, as its corpus was not read to the end; "
        "the same scan starts again, with any parts that it traced meanwhile"
    )


def _found(
    place: Place, overwrite: bool, worker: Worker, allowance: Allowance, reporter: Reporter
) -> Store | None:
    """The store to continue; None where this worker is to plan it."""
    if worker.index == 0:
        return existing_store(place, overwrite)
    if overwrite:
        raise InputError("overwrite=True is for the first worker alone: others would start anew")
    if not is_planned(place):
        log.info("waiting for the first worker's plan")
        reporter.begin("waiting for the first worker's plan", None)
    try:
        while not is_planned(place):
            if allowance.spent():
                raise _not_planned(place)
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


def _arithmetic(tracer: Tracer) -> str:
    """What sums are made with, as far as their last bits may show it."""
    device, by = tracer.device.type, [tracer.backend]
    if tracer.backend == "auto":
        by = sorted(set(kernels.backends(tracer.device).values()))
    return f"{device} by {' and '.join(by)}"
