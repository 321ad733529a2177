"""Compare the stores of several models on the same words and documents, whatever their tokens.

Models tokenise a text differently, so the units are words, found in the text alone
(`words.word_spans`), and documents. A word's density is that of its last token: the first
position at which a model has read the whole word.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError, StoreError
from ..tracer.indices import whole
from ..tracer.store import Store, open_store
from .arguments import given_names, given_seed
from .frames import (
    AUC,
    document_rows,
    label_names,
    measure_column,
    token_frame,
    tolerance,
)
from .intervals import Interval, cluster_interval, cluster_intervals
from .words import word_spans

Level = Literal["word", "document"]
Within = Literal["last", "mean"]
Floats = NDArray[np.float64]
Key = tuple[str, str]  # a document's id and text
WORD = ["document", "start", "end", "text"]
RANKS = ["x", "y", "x_rank", "y_rank", "apart"]  # columns that compare two models


@dataclass(frozen=True)
class Comparison:
    """Densities of the same words or documents under several models.

    Attributes:
        names: the models' names, which are columns of `table`.
        level: what a row of `table` is: a `word` or a `document`.
        measure: the measure compared, `auc_tv` or `density@EPS`.
        table: one row per word or document that every store has: `document` (its id), for words
            also `start`, `end` (characters) and `text`, the documents' labels (`label_NAME` where
            NAME is a column here or of `disagreements`), and a column per model.
        correlations: one row per pair of models: `first`, `second`, `spearman`, `low`, `high`
            (its interval over documents), `rows`, `documents`.
        left_out: per model, the number of its documents that some other store lacks.
        partial: per model, the number of its documents left out because some of their windows are
            not scanned yet, which only matters to the level `document`.
        differing: what the scans differ in besides the model: `rules`, `strata`, `importances`,
            `attention`, `scopes`, `counts`, `contexts`.
        lost: per model, the number of words in shared documents that its tokens do not reach.
    """

    names: tuple[str, ...]
    level: Level
    measure: str
    table: pd.DataFrame
    correlations: pd.DataFrame
    left_out: Mapping[str, int]
    partial: Mapping[str, int]
    differing: tuple[str, ...]
    lost: Mapping[str, int]

    @property
    def caution(self) -> str:
        """What to mind if the scans differ in more than the model; empty if they do not."""
        if not self.differing:
            return ""
        *others, last = self.differing
        names = f"{', '.join(others)} and {last}" if others else last
        return f"The stores were scanned with different {names}: compare ranks only."

    def scatter(self, first: str, second: str) -> pd.DataFrame:
        """Return the rows with two models' values as `x` and `y`, and their ranks in 0..1.

        Raises:
            InputError: a name that is not one of the models.
        """
        self._check(first, second)
        others = self.table.drop(columns=list(self.names))
        x, y = self.table[first], self.table[second]
        return others.assign(
            x=x, y=y, x_rank=x.rank(pct=True).to_numpy(), y_rank=y.rank(pct=True).to_numpy()
        )

    def disagreements(self, first: str, second: str, most: int = 20) -> pd.DataFrame:
        """Return the rows whose ranks under two models differ most, largest difference first.

        Args:
            first, second: names of two models.
            most: rows at most.

        Returns:
            The columns of `scatter`, and `apart` = x_rank - y_rank: positive where `first` ranks
            the row denser.

        Raises:
            InputError: a name that is not one of the models, or `most` below 0.
        """
        most = whole("most", most, least=0)
        rows = self.scatter(first, second)
        rows["apart"] = rows["x_rank"] - rows["y_rank"]
        order = rows["apart"].abs().sort_values(ascending=False, kind="stable").index
        return rows.loc[order[:most]].reset_index(drop=True)

    def _check(self, *names: str) -> None:
        for name in names:
            if name not in self.names:
                raise InputError(f"{name!r} is none of the models {', '.join(self.names)}")


def compare(
    stores: Sequence[Store | str | Path],
    level: Level = "word",
    measure: str = AUC,
    *,
    names: Sequence[str] | None = None,
    within: Within = "last",
    coverage: float = 0.95,
    seed: int = 0,
    max_documents: int | None = None,
) -> Comparison:
    """Compare what several models find dense in the same documents.

    Args:
        stores: two or more stores or paths; documents match if both id and text are equal.
        level: compare words, or documents (the mean over all scored tokens of a document).
        measure: `auc_tv` or `density@EPS`.
        names: names of the models, columns of the table; by default their ids, numbered where
            equal.
        within: a word's density is that of its last token, or the mean over its tokens. A token
            shared by several words (as in scripts without spaces) counts for each of them.
        coverage: nominal coverage of the intervals, which resample documents.
        seed: seed of the resampling and of the sample of documents.
        max_documents: compare a random sample of at most this many shared documents; None for
            all.

    Returns:
        The densities side by side; see `Comparison`.

    Raises:
        InputError: fewer than two stores, wrong or repeated names, an unknown level or measure,
            `max_documents` below 1, an impossible seed.
        StoreError: no document in common, or a store without character spans.

    Example:
        >>> found = compare(["small.zarr", "large.zarr"])  # doctest: +SKIP
        >>> found.correlations, found.disagreements(*found.names)  # doctest: +SKIP
    """
    if level not in ("word", "document") or within not in ("last", "mean"):
        raise InputError(f"level={level!r}, within={within!r}: use word or document, last or mean")
    given_names("names", names)
    if isinstance(stores, (Store, str, Path)):
        stores = [stores]
    if max_documents is not None:
        max_documents = whole("max_documents", max_documents, least=1)
    seed = given_seed(seed)
    opened = [open_store(store) for store in stores]
    if len(opened) < 2:
        raise InputError(f"{len(opened)} stores: a comparison needs two or more")
    measure = measure_column(measure)
    called = model_names([store.model_id for store in opened], names)
    scans = [_Scan.of(store, measure, whole=level == "document") for store in opened]
    keys = [key for key in scans[0].rows if all(key in scan.rows for scan in scans)]
    if not keys:
        partly = any(scan.partial for scan in scans)
        raise StoreError(
            "the stores share no document: ids and texts must be the same"
            + (", and a document scanned to its end" if partly else "")
        )
    shared = len(keys)
    if max_documents is not None and shared > max_documents:
        chosen = np.random.default_rng(seed).choice(shared, max_documents, replace=False)
        keys = [keys[number] for number in np.sort(chosen)]
    columns = [
        _documents(scan, keys, measure)
        if level == "document"
        else _words(scan, keys, measure, within)
        for scan in scans
    ]
    table = _rows(keys, level).join(_labels(opened[0], scans[0], keys, called))
    table[list(called)] = np.column_stack(columns)
    unknown = table[list(called)].isna()
    table = table[~unknown.any(axis=1)]
    return Comparison(
        names=called,
        level=level,
        measure=measure,
        table=table.reset_index(drop=True),
        correlations=_correlations(table, called, coverage, seed),
        left_out={n: len(scan.rows) - shared for n, scan in zip(called, scans, strict=True)},
        partial={n: scan.partial for n, scan in zip(called, scans, strict=True)},
        differing=_differing(opened),
        lost={name: int(unknown[name].sum()) for name in called},
    )


@dataclass(frozen=True)
class _Scan:
    """A store's token rows, and the row numbers of each document."""

    tokens: pd.DataFrame
    rows: dict[Key, NDArray[np.int64]]
    partial: int  # documents left out because they are not scanned to their end

    @classmethod
    def of(cls, store: Store, measure: str, whole: bool) -> "_Scan":
        tokens = token_frame(store, tolerance(measure))
        documents = store.documents
        planned = np.bincount(store.owners, store.lengths)
        rows: dict[Key, NDArray[np.int64]] = {}
        partial = 0
        for document, numbers in document_rows(tokens).items():
            if whole and len(numbers) < planned[document]:
                partial += 1
                continue
            key = str(documents["id"][document]), str(documents["text"][document])
            rows.setdefault(key, numbers)
        return cls(tokens, rows, partial)


def _differing(stores: Sequence[Store]) -> tuple[str, ...]:
    """What the scans differ in that moves values, but need not move ranks."""
    recipes = [store.recipe for store in stores]
    options: dict[str, list[object]] = {
        "rules": [store.rule.name for store in stores],
        "strata": [store.rule.values for store in stores],  # as chosen by AutoStrata
        "importances": [recipe.importance for recipe in recipes],
        "attention": [recipe.attention for recipe in recipes],
        "scopes": [recipe.scope for recipe in recipes],
        "counts": [recipe.count for recipe in recipes],
        "contexts": [recipe.context for recipe in recipes],
    }
    return tuple(name for name, values in options.items() if len(set(values)) > 1)


def model_names(models: Sequence[str], given: Sequence[str] | None = None) -> tuple[str, ...]:
    """Names of the models: those given, or the models' ids, numbered where equal."""
    if given is None:
        seen = [list(models[: i + 1]).count(name) for i, name in enumerate(models)]
        given = [name if n == 1 else f"{name} ({n})" for name, n in zip(models, seen, strict=True)]
    if wrong := [name for name in given if name in WORD]:
        raise InputError(f"names: {', '.join(wrong)}: {', '.join(WORD)} are columns of the table")
    if len(set(given)) != len(models):
        raise InputError(f"names={list(given)}: {len(models)} different names are needed")
    return tuple(given)


def _rows(keys: Sequence[Key], level: Level) -> pd.DataFrame:
    """Key columns of the table, document by document; the index is the document's in `keys`."""
    if level == "document":
        return pd.DataFrame({"document": [name for name, _ in keys]})
    words = [
        (number, name, start, end, text[start:end])
        for number, (name, text) in enumerate(keys)
        for start, end in word_spans(text).tolist()
    ]
    return pd.DataFrame(words, columns=["number", *WORD]).set_index("number")


def _labels(store: Store, scan: "_Scan", keys: Sequence[Key], taken: Sequence[str]) -> pd.DataFrame:
    """The documents' labels, one row per key; renamed `label_NAME` where NAME is taken."""
    documents = scan.tokens["document"].iloc[[scan.rows[key][0] for key in keys]]
    labels = store.documents.loc[documents, list(store.labels)].reset_index(drop=True)
    return labels.rename(columns=label_names(store.labels, {*taken, *WORD, *RANKS}))


def _documents(scan: _Scan, keys: Sequence[Key], measure: str) -> Floats:
    values = scan.tokens[measure].to_numpy(np.float64)
    return np.array([values[scan.rows[key]].mean() for key in keys])


def _words(scan: _Scan, keys: Sequence[Key], measure: str, within: Within) -> Floats:
    columns = [scan.tokens[name].to_numpy() for name in ("char_start", "char_end", measure)]
    values = []
    for key in keys:
        start, end, value = (column[scan.rows[key]] for column in columns)
        values.append(word_values(word_spans(key[1]), start, end, value, within))
    joined = np.concatenate(values)
    if np.isnan(joined).all():
        raise StoreError("a store has no character spans of its tokens: compare documents instead")
    return joined


def word_values(
    words: NDArray[np.int64],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
    values: ArrayLike,
    within: Within = "last",
) -> Floats:
    """Compute the values of words from those of tokens.

    Args:
        words: int [W, 2] characters, see `words.word_spans`.
        start, end: int [T] character spans of a document's tokens in order; tokens with an empty
            span are ignored.
        values: float [T].
        within: take the value of a word's last token, or the mean over all tokens that touch it.

    Returns:
        float64 [W]; NaN where no token reaches a word's end.

    Example:
        >>> spans = np.array([[0, 2], [3, 7]])  # tokens "ab", " cd", "ef"
        >>> word_values(spans, np.array([0, 2, 5]), np.array([2, 5, 7]), [0.1, 0.2, 0.4])
        array([0.1, 0.4])
    """
    has_text = end > start
    begin, stop, value = (np.asarray(a)[has_text] for a in (start, end, values))
    if not len(value):
        return np.full(len(words), np.nan)
    last = np.searchsorted(begin, words[:, 1]) - 1
    reached = (last >= 0) & (stop[last] >= words[:, 1])
    if within == "last":
        return np.where(reached, value[last], np.nan)
    first = np.searchsorted(np.maximum.accumulate(stop), words[:, 0], side="right")
    total = np.concatenate([[0.0], np.cumsum(value, dtype=np.float64)])
    number = np.maximum(last + 1 - first, 1)
    return np.where(reached, (total[last + 1] - total[np.minimum(first, last)]) / number, np.nan)


# ---- correlation ---------------------------------------------------------------------------------


def _correlations(
    table: pd.DataFrame, names: Sequence[str], coverage: float, seed: int
) -> pd.DataFrame:
    rows = []
    for first, second in combinations(names, 2):
        interval = spearman(table[first], table[second], table.index, coverage, seed=seed)
        rows.append((first, second, *interval, len(table), table.index.nunique()))
    columns = ["first", "second", "spearman", "low", "high", "rows", "documents"]
    return pd.DataFrame(rows, columns=columns)


def spearman(
    x: ArrayLike,
    y: ArrayLike,
    document: ArrayLike,
    level: float = 0.95,
    n_resamples: int = 999,
    seed: int = 0,
    *,
    given: ArrayLike | None = None,
) -> Interval:
    """Spearman's rank correlation with an interval that resamples whole documents.

    Args:
        x, y: float [N], without NaN.
        document: [N], the document of each row.
        level, n_resamples, seed: see `intervals.cluster_interval`.
        given: float [N], whose ranks are controlled for (partial rank correlation).

    Returns:
        The correlation of all rows, and the interval; NaN where one side is constant.

    Example:
        >>> spearman([1, 2, 3], [1, 4, 9], [0, 1, 2]).value
        1.0
    """
    columns = {"x": np.asarray(x, np.float64), "y": np.asarray(y, np.float64)}
    if given is None:
        frame = pd.DataFrame(columns)
        return rank_correlations(frame, document, [("x", "y")], level, n_resamples, seed)["x", "y"]
    frame = pd.DataFrame({**columns, "z": np.asarray(given, np.float64)})
    n, correlations = _of_samples(frame, document, [("x", "y"), ("x", "z"), ("y", "z")])
    if not n:
        return Interval(np.nan, np.nan, np.nan)

    def partial(drawn: NDArray[np.int64]) -> float:
        xy, xz, yz = correlations(drawn)
        left = (1 - xz**2) * (1 - yz**2)
        return float((xy - xz * yz) / np.sqrt(left)) if left > 1e-12 else np.nan

    return cluster_interval(partial, n, level, n_resamples, seed)


def rank_correlations(
    columns: pd.DataFrame,
    document: ArrayLike,
    pairs: Sequence[tuple[str, str]],
    level: float = 0.95,
    n_resamples: int = 999,
    seed: int = 0,
) -> dict[tuple[str, str], Interval]:
    """`spearman` for several pairs of columns, all with the same resamples of documents.

    Args:
        columns: float [N, C], without NaN.
        document: [N], the document of each row.
        pairs: pairs of column names.
        level, n_resamples, seed: see `intervals.cluster_interval`.

    Example:
        >>> frame = pd.DataFrame({"a": [1, 2, 3], "b": [3, 2, 1]})
        >>> rank_correlations(frame, [0, 1, 2], [("a", "b")])["a", "b"].value
        -1.0
    """
    n, correlations = _of_samples(columns, document, pairs)
    if not n:
        return {pair: Interval(np.nan, np.nan, np.nan) for pair in pairs}
    return dict(
        zip(pairs, cluster_intervals(correlations, n, level, n_resamples, seed), strict=True)
    )


def _of_samples(
    columns: pd.DataFrame, document: ArrayLike, pairs: Sequence[tuple[str, str]]
) -> tuple[int, Callable[[NDArray[np.int64]], list[float]]]:
    """Return the number of documents, and a function from drawn documents to correlations.

    A resample weights each row by how often its document was drawn. Rows are sorted once: the
    mid-ranks of a resample follow from cumulative sums of the weights in that order.
    """
    owner, names = pd.factorize(np.asarray(document))
    chosen = list(dict.fromkeys(chain(*pairs)))
    levels = [np.unique(columns[name], return_inverse=True)[1] for name in chosen]
    first, second = ([chosen.index(name) for name in side] for side in zip(*pairs, strict=True))

    def correlations(drawn: NDArray[np.int64]) -> list[float]:
        weight = np.bincount(drawn, minlength=len(names))[owner].astype(np.float64)
        centred = np.empty((len(chosen), len(weight)))
        for ranks, level in zip(centred, levels, strict=True):
            tied = np.bincount(level, weights=weight)
            # Mid-ranks minus their mean, which is half of the total weight.
            np.take(np.cumsum(tied) - (tied + weight.sum()) / 2, level, out=ranks)
        products = (centred * weight) @ centred.T
        spread = np.sqrt(np.outer(np.diag(products), np.diag(products)))
        with np.errstate(invalid="ignore"):
            matrix = np.where(spread > 0, products / spread, np.nan)
        return [float(value) for value in matrix[first, second]]

    return len(names), correlations
