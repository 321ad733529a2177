"""Densities: a store's curves as tidy data frames, means by label, intervals, regimes (METHOD §6).

Three levels. A *token* has two numbers, `density@EPS` and `auc_tv`. A *document's* density is the
mean over its scored tokens. A *label's* density is the mean over its documents, because tokens of
one document depend on one another and documents (nearly) do not; its interval resamples documents.
"""

import json
import tempfile
from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import InputError, StoreError
from ..tracer.curve import density_and_auc, tolerated_error
from ..tracer.select import AutoStrata, Rule
from ..tracer.store import READERS, Store, open_store
from .intervals import mean_intervals

if TYPE_CHECKING:
    import shap
    import xarray as xr

    from ..tracer.tracer import Tracer
    from .explain import FactorExplanation

AUC = "auc_tv"
QUARTILES = (0.25, 0.5, 0.75)
RESAMPLES = 9999
# Of many documents the interval is narrow, and a rougher estimate of its ends tells them as well.
MANY_DOCUMENTS, FEWER_RESAMPLES = 100, 1999


def density_name(eps: float) -> str:
    """The column that holds density_at(eps): `density@0.1`."""
    return f"density@{eps:g}"


def tolerance(measure: str) -> float:
    """The total variation that a measure tolerates; of `auc_tv`, which reads none, the usual 0.1.

    Raises:
        InputError: neither `auc_tv` nor `density@EPS` with a finite EPS >= 0.

    Example:
        >>> tolerance("density@0.05")
        0.05
    """
    eps = tolerated_error(measure)
    return 0.1 if eps is None else eps


def label_names(labels: Iterable[str], taken: Container[str]) -> dict[str, str]:
    """What labels are called as columns beside others: `label_NAME` where NAME is taken.

    Args:
        labels: their names.
        taken: those of the other columns.

    Example:
        >>> label_names(["lang", "position"], ["token", "position"])
        {'lang': 'lang', 'position': 'label_position'}
    """
    found: dict[str, str] = {}
    for label in labels:
        name = label
        while name in taken or name in found.values():
            name = f"label_{name}"
        found[label] = name
    return found


def token_frame(store: Store, eps: float = 0.1) -> pd.DataFrame:
    """One row per scored token of a store, in the order of the store.

    Columns: `document` (row of `store.documents`), `window`, `position` (in the document),
    `context` (tokens the position sees, itself included), `token` (id), `char_start`,
    `char_end` (in the document's text), `full_edges` (edges of the full graph), `density@EPS`
    and `auc_tv` (METHOD §6), `edges` (density x full edges: the trace in absolute edges),
    `edges_per_token` (edges / context), `regime` (`sparse` up to the corpus median of
    `density@EPS`, else `dense`), `surprisal` and `model_entropy` (nats).

    Args:
        store: a scanned store.
        eps: the total variation that is tolerated.

    Raises:
        InputError: a negative or non-finite `eps`.
    """
    return _joined(store.by_runs(lambda run: _read(store, run, eps).tokens), eps)


def _joined(runs: Sequence[pd.DataFrame], eps: float) -> pd.DataFrame:
    """The runs' rows as one frame, with their regimes."""
    frame = pd.concat(runs, ignore_index=True)
    density = frame[density_name(eps)]
    dense = np.greater(density.to_numpy(), density.median()).astype(np.int8)
    frame["regime"] = pd.Categorical.from_codes(dense, pd.Index(["sparse", "dense"]))
    return frame


@dataclass(frozen=True)
class _Run:
    """What a store holds of some windows: `token_frame` of them, and their curves [n, K]."""

    tokens: pd.DataFrame
    curves: Mapping[str, NDArray[np.floating]]

    def error_sums(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Documents in the order of their rows, and the sum of each one's errors, [m, K]."""
        owner = self.tokens["document"].to_numpy()
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        sums = np.add.reduceat(self.curves["tv"], starts, axis=0, dtype=np.float64)
        return owner[starts], sums


def _read(store: Store, windows: slice, eps: float) -> _Run:
    window, column = np.nonzero(store.real(windows))

    def of(name: str) -> NDArray[Any]:
        return store.array(name)[windows][window, column]

    full, size, tv = of("full_edge_count"), of("size"), of("tv")
    density, area = density_and_auc(size, tv, eps, full)
    edges = density * full
    tokens = pd.DataFrame(
        {
            "document": store.owners[windows][window],
            "window": window + windows.start,
            "position": (store.starts[windows][window] + column).astype(np.int32),
            "context": column + 1,
            "token": of("token"),
            "char_start": of("char_start"),
            "char_end": of("char_end"),
            "full_edges": full,
            density_name(eps): density,
            AUC: area,
            "edges": edges,
            "edges_per_token": edges / (column + 1),
            "surprisal": of("surprisal"),
            "model_entropy": of("model_entropy"),
        }
    )
    return _Run(tokens, {"size": size, "tv": tv})


def document_rows(tokens: pd.DataFrame) -> dict[int, NDArray[np.int64]]:
    """The places of each document's rows in a token frame, in order."""
    places: Any = tokens.groupby("document").indices
    return {int(document): np.asarray(rows) for document, rows in places.items()}


def scored(store: Store) -> NDArray[np.bool_]:
    """bool [N, T]: the tokens of the parts that are done; padding has the id -1."""
    done = np.zeros(store.n_windows, np.bool_)
    for part in store.done_parts():
        done[store.windows(part)] = True
    return done[:, None] & store.real(slice(None))


def stratum_frame(store: Store) -> pd.DataFrame:
    """Quartiles over all scored tokens of size and of TV, by stratum, trace and controls.

    Columns: `lane` (`trace`, or a control: `inverse`, `random`), `stratum` (the rule's value),
    `size_q25`, `size_q50`, `size_q75` (relative trace size), `tv_q25`, `tv_q50`, `tv_q75`.
    A control stands at the size of the trace that it was made from.
    """
    return _stratum_frame(store, {})


def _stratum_frame(
    store: Store, known: Mapping[str, Sequence[NDArray[np.floating]]]
) -> pd.DataFrame:
    """`stratum_frame`, where the runs of some curves were read before."""

    def curve(name: str) -> NDArray[np.float64]:
        if name in known:
            return _quartiles(known[name])
        array = store.array(name)  # of the others, one is held at a time
        return _quartiles(store.by_runs(lambda run: array[run][store.real(run)]))

    sizes = curve("size")
    parts = []
    for lane in ("trace", *store.controls):
        tv = curve("tv" if lane == "trace" else f"tv_{lane}")
        columns = {"stratum": store.rule.values}
        for name, quartiles in (("size", sizes), ("tv", tv)):
            for q, row in zip(QUARTILES, quartiles, strict=True):
                columns[f"{name}_q{100 * q:.0f}"] = row
        parts.append(pd.DataFrame(columns).assign(lane=lane))
    return pd.concat(parts, ignore_index=True)


def _quartiles(runs: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
    """Quartiles of a curve over the tokens of all runs, float64 [3, K]."""

    def of(stratum: int) -> NDArray[np.float64]:
        column = np.concatenate([run[:, stratum] for run in runs])
        return np.asarray(np.quantile(column, QUARTILES, overwrite_input=True), dtype=np.float64)

    with ThreadPoolExecutor(READERS) as workers:
        return np.stack(list(workers.map(of, range(runs[0].shape[1]))), axis=1)


def group_means(
    tokens: pd.DataFrame, by: str, measures: Sequence[str], level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Means of token columns by group, each a mean of document means, with bootstrap intervals.

    Args:
        tokens: a tidy token frame with a `document` column.
        by: the column that names the group; it may split documents (a band of positions).
        measures: numeric columns to average.
        level, seed: of the intervals; see `mean_interval`.

    Returns:
        One row per group in order of the first measure, densest first; index `by`; columns
        `documents`, `tokens`, and for each measure M: `M`, `M_low`, `M_high`.

    Raises:
        InputError: no column `by`.
    """
    if by not in tokens:
        raise InputError(f"by={by!r}: the columns are {', '.join(map(str, tokens.columns))}")
    units = tokens.groupby([by, "document"], observed=True)[list(measures)].mean()
    counts: dict[Any, int] = tokens.groupby(by, observed=True).size().to_dict()
    frame = unit_means(units, counts, level, seed)
    return frame.sort_values(measures[0], ascending=False, kind="stable")


def unit_means(
    units: pd.DataFrame, tokens: Mapping[Any, int], level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Means of document means by group, with bootstrap intervals.

    Args:
        units: one row a document, the first level of its index the group; columns are measures.
        tokens: of each group.
        level, seed: of the intervals.

    Returns:
        See `group_means`; in the order of `units`.
    """
    rows: dict[Any, dict[str, float]] = {}
    for group, means in units.groupby(level=0, observed=True):
        row: dict[str, float] = {"documents": len(means), "tokens": tokens[group]}
        many = len(means) > MANY_DOCUMENTS
        resamples = FEWER_RESAMPLES if many else RESAMPLES
        found = mean_intervals(means.to_numpy(), level, resamples, seed)
        for measure, interval in zip(units.columns, found, strict=True):
            row[measure], row[f"{measure}_low"], row[f"{measure}_high"] = interval
        rows[group] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(str(units.index.names[0]))


@dataclass(frozen=True)
class DensityResult:
    """The densities of one scan: token rows, curve quartiles, documents and how it was made.

    Attributes:
        tokens: see `token_frame`.
        strata: see `stratum_frame`.
        documents: the scanned documents with their labels, `text`, and the means of
            `density@EPS` and `auc_tv` over their tokens; the index is `tokens.document`.
        errors: mean total variation of each document at each stratum [document, stratum].
        labels: names of the label columns of `documents`: those of the store, but `label_NAME`
            where another column of the result, or of its dataset, is called NAME.
        settings: model, rule, options and versions, as the store records them.
        eps: the total variation that `density@EPS` tolerates.
    """

    tokens: pd.DataFrame
    strata: pd.DataFrame
    documents: pd.DataFrame
    errors: pd.DataFrame
    labels: tuple[str, ...]
    settings: Mapping[str, Any]
    eps: float

    @classmethod
    def from_store(cls, store: Store, eps: float = 0.1) -> Self:
        """Read a store's curves into densities.

        Raises:
            InputError: a negative or non-finite `eps`.
            StoreError: no part of the store is done.
        """
        runs = store.by_runs(lambda run: _read(store, run, eps))
        if all(run.tokens.empty for run in runs):
            raise StoreError(f"store {str(store.path)!r} holds no scanned token yet: scan first")
        names = ("size", "tv")
        strata = _stratum_frame(store, {name: [run.curves[name] for run in runs] for name in names})
        sums = np.zeros((len(store.documents), len(store.strata)))
        for run in runs:
            np.add.at(sums, *run.error_sums())
        frames = [run.tokens for run in runs]
        del runs  # the curves are as large as the rows
        tokens = _joined(frames, eps)
        by_document = tokens.groupby("document")
        means = by_document[[density_name(eps), AUC]].mean()
        taken = {*tokens, *strata, *(f"document_{name}" for name in means), "row", "doc"}
        labels = label_names(store.labels, taken)
        documents = store.documents.rename(columns=labels).join(means, how="inner")
        errors = sums[means.index] / by_document.size().to_numpy()[:, None]
        settings = dict(store.attributes)
        if not store.complete:
            settings["incomplete"] = f"{len(store.done_parts())} of {store.n_parts} parts scanned"
        return cls(
            tokens=tokens,
            strata=strata,
            documents=documents,
            errors=pd.DataFrame(errors, means.index, store.rule.values),
            labels=tuple(labels.values()),
            settings=settings,
            eps=eps,
        )

    @property
    def density(self) -> str:
        """The name of the first measure, `density@EPS`."""
        return density_name(self.eps)

    @property
    def measures(self) -> tuple[str, str]:
        """The names of the two measures of a token."""
        return (self.density, AUC)

    def to_pandas(self) -> pd.DataFrame:
        """The token rows with their document's labels: one tidy frame."""
        return self.tokens.join(self.documents[list(self.labels)], on="document")

    def to_xarray(self) -> "xr.Dataset":
        """Tokens, documents and curve quartiles as one labelled dataset, for numbers in arrays.

        Returns:
            Token columns over `row`, among them `document`, a place in `doc`; labels and means of
            documents over `doc` (means as `document_NAME`); quartiles of size and TV over `lane`
            and `stratum`. Settings are attributes, as JSON.
        """
        import xarray as xr

        tokens = self.tokens.assign(regime=self.tokens["regime"].astype(str))
        documents = self.documents.rename(
            columns=lambda name: f"document_{name}" if name in tokens else name
        )
        strata = self.strata.set_index(["lane", "stratum"])
        return xr.merge(
            [
                xr.Dataset.from_dataframe(tokens.rename_axis("row")),
                xr.Dataset.from_dataframe(documents.rename_axis("doc")),
                xr.Dataset.from_dataframe(strata),
            ]
        ).assign_attrs({"eps": self.eps, "settings": json.dumps(self.settings, default=str)})

    def summary(self, by: str | None = None, level: float = 0.95) -> pd.DataFrame:
        """Mean densities over documents with bootstrap intervals, all together or by a column.

        Args:
            by: one of `labels` (`domain`, `lang`, ...) or any column of `to_pandas()`; None for
                one row.
            level: the nominal coverage of the intervals.

        Returns:
            See `group_means`; the measures are `density@EPS`, `auc_tv`, `dense` (the share of
            tokens in the dense regime), `edges` and `edges_per_token`.

        Raises:
            InputError: no such column.
        """
        measures = [*self.measures, "dense", "edges", "edges_per_token"]
        dense = self.tokens["regime"] == "dense"
        if by is not None and by not in self.labels:
            return group_means(self.to_pandas().assign(dense=dense), by, measures, level)
        # A document's tokens are of one group: their means come first, and the group after.
        by_document = self.tokens.assign(dense=dense).groupby("document")
        means, sizes = by_document[measures].mean(), by_document.size()
        of = self.documents[by] if by is not None else pd.Series("all", self.documents.index)
        group = of.loc[means.index].rename("corpus" if by is None else by)
        units = means.set_index([group, means.index])
        found = unit_means(units, sizes.groupby(group).sum().to_dict(), level)
        return found.sort_values(measures[0], ascending=False, kind="stable")

    def by_position(self) -> pd.DataFrame:
        """Means by length of context in octaves: relative size, edges, edges per context token.

        The full graph grows with the square of the context, so a relative size falls with it for
        that reason alone; the absolute columns stand beside it (METHOD §6). Only some documents
        reach a long context, so rows differ in what they hold: see `documents`.

        Returns:
            See `group_means`; the index `first` and the column `last` are the octave's ends.
        """
        octave = np.floor(np.log2(self.tokens["context"])).astype(int)
        frame = self.tokens.assign(first=2**octave)
        measures = (*self.measures, "edges", "edges_per_token", "full_edges")
        table = group_means(frame, "first", measures).sort_index()
        table["last"] = frame.groupby("first")["context"].max()
        return table


class DensityEstimator:
    """Density of texts under one model: a `Tracer` and the options of a scan.

    Args:
        tracer: the model, with a tokenizer.
        select: the rule; the default chooses 12 thresholds evenly in log size.
        context: tokens per window.
        eps: the total variation that `density@EPS` tolerates.
        options: further keyword arguments of `densitrace.scan`.

    Example:
        >>> estimator = DensityEstimator.from_pretrained("examples/model")  # doctest: +SKIP
        >>> estimator.estimate(["The cat sat.", "E = mc2"]).summary()  # doctest: +SKIP
    """

    def __init__(
        self,
        tracer: "Tracer",
        *,
        select: Rule | AutoStrata | None = None,
        context: int = 512,
        eps: float = 0.1,
        **options: Any,
    ) -> None:
        self.tracer = tracer
        self.select = AutoStrata(12) if select is None else select
        self.context = context
        self.eps = eps
        self.options = options

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: str = "auto", dtype: str = "auto", **options: Any
    ) -> Self:
        """An estimator for a local model folder or a hub id; `options` as for the class."""
        from ..tracer.tracer import Tracer

        return cls(Tracer.from_pretrained(path, device=device, dtype=dtype), **options)

    def estimate(self, texts: Iterable[str]) -> DensityResult:
        """Scan texts, one document each, and read their densities.

        Returns:
            The densities; `documents["id"]` is a text's place among `texts`, from 0. Those without
            a token, as empty ones, are left out, and those that no UTF-8 holds.

        Raises:
            InputError: a single string instead of several, or no text.
            CorpusError: nothing but empty texts.
        """
        from ..tracer.scan import scan  # who reads a store needs no model, and no transformers

        if isinstance(texts, str):
            raise InputError("texts is one string: give a list of texts, for example [text]")
        rows = [json.dumps({"id": place, "text": text}) for place, text in enumerate(texts)]
        if not rows:
            raise InputError("texts is empty: give at least one text")
        with tempfile.TemporaryDirectory(prefix="densitrace-") as folder:
            corpus = Path(folder) / "texts.jsonl"
            corpus.write_text("\n".join(rows), encoding="ascii")
            store = scan(
                self.tracer,
                corpus,
                Path(folder) / "traces.zarr",
                select=self.select,
                context=self.context,
                **self.options,
            )
            return DensityResult.from_store(store, self.eps)

    @staticmethod
    def from_store(store: Store | str | Path, eps: float = 0.1) -> DensityResult:
        """The densities of a store that was scanned before."""
        return DensityResult.from_store(_opened(store), eps)

    @staticmethod
    def explain_factors(
        store: Store | str | Path, target: str = AUC, **options: Any
    ) -> "FactorExplanation":
        """Which factors go with density in a store; see `explain.explain_factors`."""
        from .explain import explain_factors  # shap takes seconds to import

        return explain_factors(_opened(store), target, **options)

    def explain_tokens(
        self, text: str | Sequence[int], position: int = -1, **options: Any
    ) -> "shap.Explanation":
        """Which tokens make the prediction at a position dense; see `explain_tokens`.

        The estimator's rule and the options that a trace shares with a scan are taken over.
        """
        from .explain_tokens import explain_tokens

        shared = ("importance", "attention", "count", "seed")
        own = {name: self.options[name] for name in shared if name in self.options}
        given = {"select": self.select, **own, **options}
        return explain_tokens(self.tracer, text, position, **given)

    @staticmethod
    def by_frequency(store: Store | str | Path, **options: Any) -> pd.DataFrame:
        """Densities by the token's frequency; see `summaries.by_frequency`."""
        from .summaries import by_frequency

        return by_frequency(_opened(store), **options)

    @staticmethod
    def trace_parts(store: Store | str | Path, **options: Any) -> pd.DataFrame:
        """Traces by kind of edge and depth; see `summaries.trace_parts`."""
        from .summaries import trace_parts

        return trace_parts(_opened(store), **options)


def _opened(store: Store | str | Path) -> Store:
    return open_store(store) if isinstance(store, (str, Path)) else store
