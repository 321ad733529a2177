"""Read a store's curves as tidy frames: a row per scored token, its densities, means by group.

There are three levels (METHOD §6). A *token* has two numbers, `density@EPS` and `auc_tv`. A
*document's* density is the mean over its scored tokens. A *group's* density is the mean over its
documents, because tokens of one document are dependent and documents (nearly) are not; its
interval resamples documents.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import InputError, StoreError
from ..tracer.curve import density_and_auc, tolerated_error
from ..tracer.store import READERS, Store
from .intervals import mean_intervals

if TYPE_CHECKING:  # reading a store must not import torch
    from ..tracer.trace import Trace

AUC = "auc_tv"
ABSOLUTE = ("edges", "edges_per_token")  # measures in addition to relative sizes: METHOD §6
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
    runs = store.by_runs(lambda run: read_run(store, run, eps).tokens)
    check_scanned(store, runs)
    return joined(runs, eps)


def trace_frame(trace: "Trace", texts: Sequence[str], eps: float = 0.1) -> pd.DataFrame:
    """One row per output of a trace: its token, and what the prediction after it takes.

    Args:
        trace: of one sequence.
        texts: of its tokens, as `Tracer.texts` returns them.
        eps: the total variation that the density tolerates.

    Returns:
        position, token, text, full_edges, density@EPS, auc_tv, surprisal of the next token and
        model_entropy (nats).

    Raises:
        InputError: a negative or non-finite `eps`.

    Example:
        >>> trace_frame(trace, tracer.texts(trace.tokens)).columns.tolist()[-4:]
        ['density@0.1', 'auc_tv', 'surprisal', 'model_entropy']
    """
    return pd.DataFrame(
        {
            "position": trace.positions,
            "token": trace.tokens[trace.positions],
            "text": [texts[position] for position in trace.positions],
            "full_edges": trace.full_edge_count,
            density_name(eps): trace.density_at(eps),
            AUC: trace.auc_tv,
            "surprisal": trace.surprisal,
            "model_entropy": trace.model_entropy,
        }
    )


def check_scanned(store: Store, runs: Sequence[pd.DataFrame]) -> None:
    """Raise StoreError if the runs of a store have no row."""
    if all(run.empty for run in runs):
        raise StoreError(f"store {str(store.path)!r} holds no scanned token yet: scan first")


def joined(runs: Sequence[pd.DataFrame], eps: float) -> pd.DataFrame:
    """Join the runs' rows into one frame and add the regimes."""
    frame = pd.concat(runs, ignore_index=True)
    density = frame[density_name(eps)]
    dense = np.greater(density.to_numpy(), density.median()).astype(np.int8)
    frame["regime"] = pd.Categorical.from_codes(dense, pd.Index(["sparse", "dense"]))
    return frame


@dataclass(frozen=True)
class Run:
    """A run of windows: its rows of `token_frame`, and its curves [n, K]."""

    tokens: pd.DataFrame
    curves: Mapping[str, NDArray[np.floating]]

    def error_sums(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the documents [m] in row order, and the sum of each one's errors [m, K]."""
        owner = self.tokens["document"].to_numpy()
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        sums = np.add.reduceat(self.curves["tv"], starts, axis=0, dtype=np.float64)
        return owner[starts], sums


def read_run(store: Store, windows: slice, eps: float) -> Run:
    """Read the curves of a run of windows, and compute the densities of its tokens."""
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
    return Run(tokens, {"size": size, "tv": tv})


def result_labels(store: Store, eps: float = 0.1) -> dict[str, str]:
    """Map a store's labels to the label columns of its `DensityResult`, without reading tokens.

    Args:
        store: a store.
        eps: the tolerance of the result.
    """
    tokens = [*read_run(store, slice(0, 0), eps).tokens, "regime"]
    strata = [f"{curve}_q{100 * q:.0f}" for curve in ("size", "tv") for q in QUARTILES]
    means = [f"document_{name}" for name in (density_name(eps), AUC)]
    return label_names(store.labels, {*tokens, "lane", "stratum", *strata, *means, "row", "doc"})


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
