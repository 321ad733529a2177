"""Turn a store's curves into densities: tidy frames, means by label, intervals (METHOD §6).

There are three levels. A *token* has two numbers, `density@EPS` and `auc_tv`. A *document's*
density is the mean over its scored tokens. A *label's* density is the mean over its documents,
because tokens of one document are dependent and documents (nearly) are not; its interval
resamples documents.
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
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError, StoreError
from ..tracer.curve import density_and_auc, tolerated_error
from ..tracer.indices import shown
from ..tracer.select import DEFAULT_STRATA, AutoStrata, Rule
from ..tracer.store import READERS, Store, open_store
from .intervals import mean_intervals

if TYPE_CHECKING:
    import shap
    import xarray as xr
    from matplotlib.figure import Figure

    from ..tracer.tracer import Tracer
    from .explain import FactorExplanation
    from .features import Column

AUC = "auc_tv"
ABSOLUTE = ("edges", "edges_per_token")  # measures in addition to relative sizes: METHOD §6
MAX_TOKENS = 10_000  # tokens explained by factors at most; TreeSHAP of that many takes seconds
QUARTILES = (0.25, 0.5, 0.75)
RESAMPLES = 9999
# With many documents the interval is narrow, and fewer resamples locate its ends well enough.
MANY_DOCUMENTS, FEWER_RESAMPLES = 100, 1999


def density_name(eps: float) -> str:
    """Name of the column that holds density_at(eps): `density@0.1`."""
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


def measure_column(measure: str) -> str:
    """Name of the column that holds a measure, however its EPS is written.

    Raises:
        InputError: see `tolerance`.

    Example:
        >>> measure_column("density@1e-1")
        'density@0.1'
    """
    return AUC if measure == AUC else density_name(tolerance(measure))


def label_names(labels: Iterable[str], taken: Container[str]) -> dict[str, str]:
    """Map labels to column names: `label_NAME` where NAME is taken.

    Args:
        labels: names of the labels.
        taken: names of the other columns.

    Example:
        >>> label_names(["lang", "position"], ["token", "position"])
        {'lang': 'lang', 'position': 'label_position'}
    """
    names: dict[str, str] = {}
    for label in labels:
        name = label
        while name in taken or name in names.values():
            name = f"label_{name}"
        names[label] = name
    return names


def token_frame(store: Store, eps: float = 0.1) -> pd.DataFrame:
    """Return one row per scored token of a store, in the order of the store.

    Columns: `document` (row of `store.documents`), `window`, `position` (in the document),
    `context` (tokens the position sees, itself included), `token` (id), `char_start`,
    `char_end` (in the document's text), `full_edges` (edges of the full graph), `density@EPS`
    and `auc_tv` (METHOD §6), `reached` (whether a trace of the scan comes within EPS; elsewhere
    `density@EPS` counts as 1), `edges` (density x full edges: the trace in absolute edges),
    `edges_per_token` (edges / context), `regime` (`sparse` up to the corpus median of
    `density@EPS`, else `dense`), `surprisal` and `model_entropy` (nats).

    Args:
        store: a scanned store.
        eps: the total variation that `density@EPS` tolerates.

    Raises:
        InputError: a negative or non-finite `eps`.
        StoreError: the store holds no scanned token.
    """
    runs = store.by_runs(lambda run: _read(store, run, eps).tokens)
    _check_scanned(store, runs)
    return _joined(runs, eps)


def _check_scanned(store: Store, runs: Sequence[pd.DataFrame]) -> None:
    if all(run.empty for run in runs):
        raise StoreError(f"store {str(store.path)!r} holds no scanned token yet: scan first")


def _joined(runs: Sequence[pd.DataFrame], eps: float) -> pd.DataFrame:
    """Join the runs' rows into one frame and add the regimes."""
    frame = pd.concat(runs, ignore_index=True)
    density = frame[density_name(eps)]
    dense = np.greater(density.to_numpy(), density.median()).astype(np.int8)
    frame["regime"] = pd.Categorical.from_codes(dense, pd.Index(["sparse", "dense"]))
    return frame


@dataclass(frozen=True)
class _Run:
    """A run of windows: its rows of `token_frame`, and its curves [n, K]."""

    tokens: pd.DataFrame
    curves: Mapping[str, NDArray[np.floating]]

    def error_sums(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the documents [m] in row order, and the sum of each one's errors [m, K]."""
        owner = self.tokens["document"].to_numpy()
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        sums = np.add.reduceat(self.curves["tv"], starts, axis=0, dtype=np.float64)
        return owner[starts], sums


def _read(store: Store, windows: slice, eps: float) -> _Run:
    window, column = np.nonzero(store.is_token(windows))

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
            "reached": (tv <= eps).any(axis=1),
            "edges": edges,
            "edges_per_token": edges / (column + 1),
            "surprisal": of("surprisal"),
            "model_entropy": of("model_entropy"),
        }
    )
    return _Run(tokens, {"size": size, "tv": tv})


def result_labels(store: Store, eps: float = 0.1) -> dict[str, str]:
    """Map a store's labels to the label columns of its `DensityResult`, without reading tokens.

    Args:
        store: a store.
        eps: the tolerance of the result.
    """
    tokens = [*_read(store, slice(0, 0), eps).tokens, "regime"]
    strata = [f"{curve}_q{100 * q:.0f}" for curve in ("size", "tv") for q in QUARTILES]
    means = [f"document_{name}" for name in (density_name(eps), AUC)]
    return label_names(store.labels, {*tokens, "lane", "stratum", *strata, *means, "row", "doc"})


def given_names(argument: str, names: Sequence[str] | None) -> None:
    """Refuse one name where a list of them is needed.

    Args:
        argument: what the names are given as, for the message.
        names: the argument's value.

    Raises:
        InputError: a single string.
    """
    if isinstance(names, str):
        raise InputError(f"{argument}={names!r} is one name: give a list of them")


def document_rows(tokens: pd.DataFrame) -> dict[int, NDArray[np.int64]]:
    """Return the row numbers of each document in a token frame, in order."""
    places: Any = tokens.groupby("document").indices
    return {int(document): np.asarray(rows) for document, rows in places.items()}


def scored(store: Store) -> NDArray[np.bool_]:
    """bool [N, T]: whether there is a token, in a finished part."""
    done = np.zeros(store.n_windows, np.bool_)
    for part in store.done_parts():
        done[store.windows(part)] = True
    return done[:, None] & store.is_token(slice(None))


def stratum_frame(
    store: Store, curves: Mapping[str, Sequence[NDArray[np.floating]]]
) -> pd.DataFrame:
    """Quartiles of size and TV over all scored tokens, by stratum, for the trace and controls.

    Columns: `lane` (`trace`, or a control: `inverse`, `random`), `stratum` (the rule's value),
    `size_q25`, `size_q50`, `size_q75` (relative trace size), `tv_q25`, `tv_q50`, `tv_q75`.
    A control has the size of the trace that it was made from.

    Args:
        store: a scanned store.
        curves: the runs [n, K] of `size`, `tv` and other curves that are already read.
    """

    def curve(name: str) -> NDArray[np.float64]:
        if name in curves:
            return _quartiles(curves[name])
        array = store.array(name)  # hold one of the other curves at a time
        return _quartiles(store.by_runs(lambda run: array[run][store.is_token(run)]))

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
        by: the grouping column; it may split documents (a band of positions).
        measures: numeric columns to average.
        level, seed: see `mean_interval`.

    Returns:
        One row per group, sorted by the first measure, densest first; index `by`; columns
        `documents`, `tokens`, and for each measure M: `M`, `M_low`, `M_high`.

    Raises:
        InputError: there is no column `by`.
    """
    if not isinstance(by, str) or by not in tokens:
        raise InputError(f"by={by!r}: the columns are {', '.join(map(str, tokens.columns))}")
    units = tokens.groupby([by, "document"], observed=True)[list(measures)].mean()
    counts: dict[Any, int] = tokens.groupby(by, observed=True).size().to_dict()
    frame = unit_means(units, counts, level, seed)
    # Not by the column's name, which may be that of the index.
    return frame.iloc[np.argsort(-frame[measures[0]].to_numpy(), kind="stable")]


def unit_means(
    units: pd.DataFrame, tokens: Mapping[Any, int], level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Means of document means by group, with bootstrap intervals.

    Args:
        units: one row per document and group; the first level of the index is the group, the
            columns are measures.
        tokens: the number of tokens of each group.
        level, seed: see `mean_interval`.

    Returns:
        See `group_means`; sorted by group.
    """
    rows: dict[Any, dict[str, float]] = {}
    for group, means in units.groupby(level=0, observed=True):
        row: dict[str, float] = {"documents": len(means), "tokens": tokens[group]}
        many = len(means) > MANY_DOCUMENTS
        resamples = FEWER_RESAMPLES if many else RESAMPLES
        intervals = mean_intervals(means.to_numpy(), level, resamples, seed)
        for measure, interval in zip(units.columns, intervals, strict=True):
            row[measure], row[f"{measure}_low"], row[f"{measure}_high"] = interval
        rows[group] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(str(units.index.names[0]))


@dataclass(frozen=True)
class DensityResult:
    """The densities of one scan: token rows, curve quartiles, documents and settings.

    Attributes:
        tokens: see `token_frame`.
        strata: see `stratum_frame`.
        documents: the scanned documents with their labels, `text`, and the means of
            `density@EPS` and `auc_tv` over their tokens; the index is `tokens.document`.
        errors: mean total variation of each document at each stratum [document, stratum].
        labels: names of the label columns of `documents`: the store's labels, renamed `label_NAME`
            where NAME is another column of the result or a variable of its dataset.
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
        """Compute the densities of a store.

        Args:
            store: a scanned store; it may be incomplete.
            eps: the total variation that `density@EPS` tolerates.

        Raises:
            InputError: a negative or non-finite `eps`.
            StoreError: the store holds no scanned token.
        """
        runs = store.by_runs(lambda run: _read(store, run, eps))
        _check_scanned(store, [run.tokens for run in runs])
        curves = {name: [run.curves[name] for run in runs] for name in ("size", "tv")}
        strata = stratum_frame(store, curves)
        sums = np.zeros((len(store.documents), len(store.strata)))
        for run in runs:
            np.add.at(sums, *run.error_sums())
        frames = [run.tokens for run in runs]
        del runs, curves  # free the curves, which are as large as the rows
        tokens = _joined(frames, eps)
        by_document = tokens.groupby("document")
        means = by_document[[density_name(eps), AUC]].mean()
        labels = result_labels(store, eps)
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
        """Return the token rows with their document's labels as one tidy frame."""
        return self.tokens.join(self.documents[list(self.labels)], on="document")

    def to_xarray(self) -> "xr.Dataset":
        """Return tokens, documents and curve quartiles as one labelled dataset.

        Returns:
            Token columns over `row`, of which `document` refers to `doc`; labels and means of
            documents over `doc` (means as `document_NAME`); quartiles of size and TV over `lane`
            and `stratum`. Attributes: `eps`, and `settings` as JSON.
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
        """Mean densities over documents with bootstrap intervals, overall or by a column.

        Args:
            by: one of `labels` (`domain`, `lang`, ...) or any column of `to_pandas()`; None for
                one row.
            level: the nominal coverage of the intervals.

        Returns:
            See `group_means`; the measures are `density@EPS`, `auc_tv`, `dense` (the share of
            tokens in the dense regime), `edges` and `edges_per_token`.

        Raises:
            InputError: there is no such column.
        """
        measures = [*self.measures, "dense", *ABSOLUTE]
        dense = self.tokens["regime"] == "dense"
        if by is not None and by not in self.labels:
            return group_means(self.to_pandas().assign(dense=dense), by, measures, level)
        # A label does not split documents: average each document once, then group the means.
        by_document = self.tokens.assign(dense=dense).groupby("document")
        means, sizes = by_document[measures].mean(), by_document.size()
        of = self.documents[by] if by is not None else pd.Series("all", self.documents.index)
        group = of.loc[means.index].rename("corpus" if by is None else by)
        units = means.set_index([group, means.index])
        table = unit_means(units, sizes.groupby(group).sum().to_dict(), level)
        return table.sort_values(measures[0], ascending=False, kind="stable")

    def plot(self, by: str | None = None, measure: str | None = None) -> "Figure":
        """Draw the densities of documents by a label, or those of all tokens.

        Args:
            by: one of `labels`: a row for each of its values, with a dot for each document, their
                mean and its interval. None for tokens, counted in cells, over the entropy of the
                prediction, the token's frequency and its context, with rank correlations.
            measure: one of `measures`; by default `density@EPS`.

        Returns:
            A figure of its own, unknown to pyplot: use its `savefig`.

        Raises:
            InputError: there is no such label or measure.

        Example:
            >>> result.plot("domain").savefig("density-by-domain.png")  # doctest: +SKIP
        """
        # Imported late: reading a store needs no matplotlib.
        from .plots import LIGHT, label_figure
        from .relation_plots import relation_figure, relation_panels
        from .relations import relations

        shown = self.density if measure is None else measure_column(measure)
        if shown not in self.measures:
            raise InputError(f"measure={measure!r}: the measures are {', '.join(self.measures)}")
        if by is None:
            related = relations(self)
            panels = relation_panels(related, self.tokens[[shown]])
            figure = relation_figure(panels[shown], related, shown, LIGHT)
        elif by in self.labels:
            summary = self.summary(by).sort_values(shown, ascending=False, kind="stable")
            figure = label_figure(self.documents, summary, shown, shown != AUC, LIGHT)
        else:
            raise InputError(f"by={by!r}: the labels are {', '.join(self.labels) or 'none'}")
        figure.set_facecolor(LIGHT.paper)
        return figure

    def by_position(self) -> pd.DataFrame:
        """Means by octave of context length: relative size, edges, edges per context token.

        The full graph grows with the square of the context, so relative size falls with context
        for that reason alone; compare the absolute columns (METHOD §6). Only some documents reach
        a long context, so rows cover different documents: see the column `documents`.

        Returns:
            See `group_means`; the index `first` and the column `last` are the octave's ends.
        """
        octave = np.floor(np.log2(self.tokens["context"])).astype(int)
        frame = self.tokens.assign(first=2**octave)
        measures = (*self.measures, *ABSOLUTE, "full_edges")
        table = group_means(frame, "first", measures).sort_index()
        table["last"] = frame.groupby("first")["context"].max()
        return table


class DensityEstimator:
    """Estimate the density of texts under one model, given a `Tracer` and the options of a scan.

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
        select: Rule | AutoStrata = DEFAULT_STRATA,
        context: int = 512,
        eps: float = 0.1,
        **options: Any,
    ) -> None:
        self.tracer = tracer
        self.select = select
        self.context = context
        self.eps = eps
        self.options = options

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: str = "auto", dtype: str = "auto", **options: Any
    ) -> Self:
        """Load a local model folder or a hub id; `options` are those of the class."""
        from ..tracer.tracer import Tracer

        return cls(Tracer.from_pretrained(path, device=device, dtype=dtype), **options)

    def estimate(self, texts: Iterable[str]) -> DensityResult:
        """Scan texts, one document each, and return their densities.

        Args:
            texts: the texts.

        Returns:
            The densities; `documents["id"]` is a text's index in `texts`. Texts without a token,
            such as empty ones, texts that UTF-8 cannot encode, and items that are no string are
            left out.

        Raises:
            InputError: a single string instead of several, or no text.
            CorpusError: no text is left.
        """
        from ..tracer.parts import Worker
        from ..tracer.scan import scan  # imported late: reading a store needs no transformers

        if isinstance(texts, str):
            raise InputError("texts is one string: give a list of texts, for example [text]")
        if not isinstance(texts, Iterable):
            raise InputError(f"texts={shown(texts)}: give a list of texts")
        rows = [
            json.dumps({"id": number, "text": text if isinstance(text, str) else None})
            for number, text in enumerate(texts)
        ]
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
                # Nobody shares the folder, whatever torchrun or Slurm say.
                **{"worker": Worker(), **self.options},
            )
            return DensityResult.from_store(store, self.eps)

    @staticmethod
    def from_store(store: Store | str | Path, eps: float = 0.1) -> DensityResult:
        """Return the densities of a scanned store; see `DensityResult.from_store`."""
        return DensityResult.from_store(open_store(store), eps)

    @staticmethod
    def explain_factors(
        store: Store | str | Path,
        target: str = AUC,
        *,
        reference_counts: Mapping[int, float] | ArrayLike | None = None,
        factors: "Mapping[str, Column] | None" = None,
        leave_out: Sequence[str] = (),
        by: Sequence[str] | None = None,
        max_tokens: int = MAX_TOKENS,
        top: int = 5,
        shuffles: int = 5,
        seed: int = 0,
    ) -> "FactorExplanation":
        """Explain the densities of a store by factors; see `explain.explain_factors`."""
        from .explain import explain_factors  # imported late: shap takes seconds

        return explain_factors(
            open_store(store),
            target,
            reference_counts=reference_counts,
            factors=factors,
            leave_out=leave_out,
            by=by,
            max_tokens=max_tokens,
            top=top,
            shuffles=shuffles,
            seed=seed,
        )

    def explain_tokens(
        self, text: str | Sequence[int], position: int = -1, **options: Any
    ) -> "shap.Explanation":
        """Explain which tokens make the prediction at a position dense; see `explain_tokens`.

        Uses the estimator's rule, and those of its options that `Tracer.trace` takes too.
        """
        from .explain_tokens import explain_tokens

        shared = ("importance", "attention", "count", "seed")
        own = {name: self.options[name] for name in shared if name in self.options}
        given = {"select": self.select, **own, **options}
        return explain_tokens(self.tracer, text, position, **given)

    @staticmethod
    def by_frequency(
        store: Store | str | Path, eps: float = 0.1, level: float = 0.95
    ) -> pd.DataFrame:
        """Mean densities by the token's frequency; see `summaries.by_frequency`."""
        from .summaries import by_frequency

        return by_frequency(open_store(store), eps, level)

    @staticmethod
    def trace_parts(
        store: Store | str | Path,
        stratum: int | None = None,
        eps: float = 0.1,
        by: str | None = None,
        level: float = 0.95,
        max_tokens: int | None = None,
    ) -> pd.DataFrame:
        """Break traces down by kind of edge and depth; see `summaries.trace_parts`."""
        from .summaries import trace_parts

        return trace_parts(open_store(store), stratum, eps, by, level, max_tokens)
