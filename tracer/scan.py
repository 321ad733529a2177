"""A corpus to a store: plan the windows, choose the strata, trace part after part."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, StoreError
from . import layout
from .corpus import CorpusReport, Document, Format, fingerprint, read_corpus
from .engine import Attention
from .graph import Count
from .progress import Reporter, default_reporter
from .recipe import Recipe
from .select import DEFAULT_STRATA, AutoStrata, Rule
from .store import Store, create_store, existing_store
from .trace import Trace
from .tracer import Tracer
from .tracing import Scope, Settings
from .windows import Encode, Encoded, Plan, plan_windows

BATCH_TOKENS = 1024  # times 1 + K lanes (and again K a control) run through the model together


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
    batch_tokens: int = BATCH_TOKENS,
    text_field: str = "text",
    label_fields: Sequence[str] | None = None,
    file_format: Format = "auto",
    overwrite: bool = False,
    seed: int = 0,
    progress: Reporter | None = None,
) -> Store:
    """Trace every token of a corpus into a store; continues a store that is not complete.

    Args:
        tracer: the model, with a tokenizer.
        corpus: see `read_corpus`, as for `text_field`, `label_fields` and `file_format`.
        path: the store's folder.
        select: a rule; AutoStrata chooses its thresholds on a pilot sample when the store is
            planned and they stay with the store.
        context: tokens of a window, at most.
        importance, attention, scope, count, controls, seed: see `Tracer.trace`. With
            scope="output" every position is traced on its own: two passes a token.
        batch_tokens: tokens that run through the model together, times lanes; bounds memory.
        overwrite: replace a store that is there instead of continuing it.
        progress: by default a bar on a terminal, silence otherwise.

    Returns:
        The store, complete.

    Raises:
        CorpusError: the corpus is missing or empty.
        StoreError: the store was made from something else, or cannot be written.
        InputError: an argument that cannot be used.
        ModelError: the model's output is not finite; parts that are done stay.

    Example:
        >>> store = scan(tracer, "examples/corpus/scan.jsonl", "traces.zarr")  # doctest: +SKIP
    """
    settings = Settings(importance, attention, scope, tuple(controls), count, seed)
    if batch_tokens < 1:
        raise InputError(f"batch_tokens={batch_tokens} is too small: at least 1 token is traced")
    if tracer.max_length is not None and context > tracer.max_length:
        raise InputError(
            f"context={context} is more than the {tracer.max_length} positions of model "
            f"{tracer.model_id!r}"
        )
    reporter = default_reporter() if progress is None else progress
    path = Path(path)
    found = existing_store(path, overwrite)
    report = CorpusReport()
    documents = read_corpus(
        corpus, text_field, label_fields, file_format=file_format, report=report
    )
    plan = _plan(tracer, documents, context, report, reporter)
    recipe = Recipe(
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
        fingerprint(plan.documents),
    )
    if found is None:
        store = _planned_store(tracer, path, plan, recipe, select, report, str(corpus))
    else:
        store = _same(found, recipe)
    _trace_parts(tracer, plan, store, settings, batch_tokens, reporter)
    return store


# ---- planning ------------------------------------------------------------------------------------


def encoder(tracer: Tracer) -> Encode:
    """The tracer's tokenizer, with character spans where it knows them."""
    tokenizer = tracer.tokenizer

    def encode(text: str) -> Encoded:
        if tokenizer is None or not tokenizer.is_fast:
            return Encoded(tracer.encode(text))
        found = tokenizer(text, return_offsets_mapping=True, verbose=False)
        return Encoded(list(found["input_ids"]), list(found["offset_mapping"]))

    return encode


def _plan(
    tracer: Tracer,
    documents: Iterator[Document],
    context: int,
    report: CorpusReport,
    reporter: Reporter,
) -> Plan:
    encode = encoder(tracer)

    def counted(text: str) -> Encoded:
        encoded = encode(text)
        reporter.advance(len(encoded.ids))
        return encoded

    reporter.begin("reading", None)
    try:
        return plan_windows(
            documents, counted, context, vocab_size=tracer.vocab_size, report=report
        )
    finally:
        reporter.end()


def _planned_store(
    tracer: Tracer,
    path: Path,
    plan: Plan,
    recipe: Recipe,
    select: Rule | AutoStrata,
    report: CorpusReport,
    corpus: str,
) -> Store:
    windows = [plan.ids(window) for window in range(plan.n_windows)]
    rule = tracer.choose_strata(
        select, windows, importance=recipe.importance, count=recipe.count, seed=recipe.seed
    )
    length = plan.longest
    per_block = 3 * length + tracer.n_heads * length * (length + 1) // 2
    facts = {
        "model": tracer.model_id,
        "architecture": tracer.architecture,
        "device": str(tracer.device),
        "backend": tracer.backend,
        "corpus_source": corpus,
    }
    most_edges = tracer.n_layers * per_block
    return create_store(path, plan, recipe, rule, report, facts, most_edges)


def _same(store: Store, recipe: Recipe) -> Store:
    """The store, if it was made from the same things."""
    difference = store.recipe.difference(recipe)
    if difference is not None:
        raise StoreError(
            f"store {str(store.path)!r} holds another scan: {difference}; give another place, "
            "or overwrite it"
        )
    return store


# ---- tracing -------------------------------------------------------------------------------------


def _trace_parts(
    tracer: Tracer,
    plan: Plan,
    store: Store,
    settings: Settings,
    batch_tokens: int,
    reporter: Reporter,
) -> None:
    """Trace every part that is not done. A part depends on nothing but itself."""
    done = set(store.done_parts())
    together = tracer.tokens_a_reading(store.rule, settings, batch_tokens)
    finished = sum(int(plan.length[store.windows(part)].sum()) for part in done)
    reporter.begin("tracing", int(plan.length.sum()), finished)
    try:
        for part in range(store.n_parts):
            if part in done:
                continue
            run = store.windows(part)
            arrays = _empty_part(store, run)
            groups = [
                [run.start + window for window in group]
                for group in batches(plan.length[run], together)
            ]
            traces = _traces(tracer, plan, groups, store.rule, settings, batch_tokens)
            for windows, found in zip(groups, traces, strict=True):
                for window, trace in zip(windows, found, strict=True):
                    _fill(arrays, window - run.start, plan, window, trace)
                reporter.advance(int(plan.length[windows].sum()))
            store.write_part(part, arrays)
    finally:
        reporter.end()


def batches(lengths: NDArray[np.int32], batch_tokens: int) -> list[list[int]]:
    """Windows grouped by similar length, each group at most `batch_tokens` with its padding.

    Example:
        >>> batches(np.array([3, 9, 2]), 9)
        [[1], [0, 2]]
    """
    groups: list[list[int]] = []
    for window in np.argsort(-lengths, kind="stable").tolist():
        longest = lengths[groups[-1][0]] if groups else 0
        if not groups or (len(groups[-1]) + 1) * longest > batch_tokens:
            groups.append([])
        groups[-1].append(window)
    return groups


def _traces(
    tracer: Tracer,
    plan: Plan,
    groups: Sequence[Sequence[int]],
    rule: Rule,
    settings: Settings,
    batch_tokens: int,
) -> Iterator[list[Trace]]:
    """The traces of each group of windows."""
    if settings.scope == "all":
        batches = (
            ([plan.ids(window) for window in group], [plan.next_token(window) for window in group])
            for group in groups
        )
        return tracer.trace_batches(batches, rule, settings, batch_tokens)
    options: dict[str, Any] = {**vars(settings), "select": rule}
    return ([_one_by_one(tracer, plan, window, options) for window in group] for group in groups)


def _one_by_one(tracer: Tracer, plan: Plan, window: int, options: dict[str, Any]) -> Trace:
    """Every output position of a window traced for itself, as one trace of all rows."""
    ids, following = plan.ids(window), [plan.next_token(window)]
    rows = []
    for output in range(len(ids)):
        row = tracer.trace([ids], next_token=following, output=output, **options)
        assert isinstance(row, list)  # as above
        rows += row
    return join_rows(rows)


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


def _fill(arrays: dict[str, NDArray[Any]], row: int, plan: Plan, window: int, trace: Trace) -> None:
    """Put what is known of a window into its row."""
    start, length = int(plan.window_start[window]), int(plan.length[window])
    place = plan.place(window)
    arrays["document"][row] = plan.document[window]
    arrays["window_start"][row] = start
    arrays["position"][row, :length] = np.arange(start, start + length)
    arrays["token"][row, :length] = plan.tokens[place]
    arrays["char_start"][row, :length] = plan.spans[place, 0]
    arrays["char_end"][row, :length] = plan.spans[place, 1]
    for name in ("surprisal", "model_entropy", "full_edge_count", "size"):
        arrays[name][row, :length] = getattr(trace, name)
    for name, values in trace.errors.items():
        arrays[name][row, :length] = values
    arrays["topology"][row, :length] = layout.by_quartile(trace.topology)
