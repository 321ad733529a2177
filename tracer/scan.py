"""A corpus to a store: plan the windows, choose the strata, trace part after part (`run`).

The same call from several processes shares the parts among them; see `parts`.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

from ..errors import InputError, StoreError
from .corpus import CorpusReport, Document, Fingerprint, Format, read_corpus, until
from .engine import Attention
from .graph import Count, most_edges
from .parts import LEASE_SECONDS, POLL_SECONDS, Worker
from .place import Place, place_of, writing
from .progress import Reporter, default_reporter
from .recipe import Recipe
from .run import UNLIMITED, Limits, Run
from .select import DEFAULT_STRATA, AutoStrata, Rule, Size
from .spool import Spool
from .store import Store, existing_store, open_place
from .stored_plan import create_store
from .tracer import PILOT_TOKENS, Tracer
from .tracing import Scope, Settings
from .windows import Encode, Encoded, Plan, plan_windows, spread

BATCH_TOKENS = 1024  # times 1 + K lanes (and again K a control) run through the model together

log = logging.getLogger(__name__)


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
        run = Run(
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
