"""Show tokens within their text: coloured passages, and single tokens in context."""

import base64
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ..tracer.store import Store
from .density import DensityResult
from .frames import AUC
from .plots import percent

FULL_CONTEXT = 32  # with less context a relative size reflects the small graph more than the token
MOST_TOKENS = 600  # tokens of one passage on the page
MOST_STRATA = 16  # strata whose sizes and errors a passage holds
DECADES = 8000  # steps per decade of size in a passage's data; 16 bits reach down to 1e-8
FIELDS = (
    "share of the full graph",
    "edges",
    "edges per context token",
    "auc_tv",
    "surprisal of the next token, nats",
    "entropy of the model, nats",
    "tokens of context",
    "tokens here",
)


@dataclass(frozen=True)
class Scale:
    """Map the values of one measure to the colour ramp: 0 is sparse, 100 dense.

    The ramp spans the 2nd to the 98th percentile of the corpus; values beyond are clipped.
    """

    title: str
    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, values: pd.Series, log: bool) -> "Scale":
        """Fit the scale to a measure's values in the corpus; NaN are ignored."""
        low, high = np.nanquantile(values.to_numpy(np.float64), [0.02, 0.98])
        return cls(str(values.name), float(low), float(high), log)

    def position(self, values: ArrayLike) -> NDArray[np.int64]:
        """Map float [...] to int64 [...] in 0..100; 50 if the corpus has a single value."""
        ends = np.array([self.low, self.high])
        numbers = np.asarray(values, np.float64)
        if self.log:
            ends, numbers = np.log10(ends), np.log10(numbers)
        span = ends[1] - ends[0]
        part = (numbers - ends[0]) / span if span > 0 else np.full(numbers.shape, 0.5)
        return np.asarray(np.rint(100 * np.clip(part, 0, 1)), np.int64)

    @property
    def ticks(self) -> tuple[str, str, str]:
        """Labels of the ramp's low end, middle and high end."""
        middle = np.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        texts = [percent(v) if self.log else f"{v:.2f}" for v in (self.low, middle, self.high)]
        whole = self.log and self.high >= 1  # of a share, nothing lies above
        return (f"≤ {texts[0]}", texts[1], texts[2] if whole else f"≥ {texts[2]}")


@dataclass(frozen=True)
class Cell:
    """A piece of a passage: tokens that share text, or (`numbers` None) text without a token.

    `d` and `a` are its places on the scales of density and auc_tv, 0..100.
    """

    text: str
    d: int = 0
    a: int = 0
    numbers: str | None = None


@dataclass(frozen=True)
class Passage:
    """A document, or the beginning of a long one, cut into cells.

    `curves`: see `cell_curves`; empty without a store.
    """

    name: str
    lang: str
    cells: tuple[Cell, ...]
    density: str
    auc: str
    cut: bool
    curves: str = ""


@dataclass(frozen=True)
class TokenInContext:
    """One token with the text around it."""

    value: str
    before: str
    token: str
    after: str
    document: str
    title: str
    rtl: bool  # whether the token's script runs from right to left
    d: int
    a: int


def scales(result: DensityResult) -> tuple[Scale, Scale]:
    """The colour scales of the two measures: density in log10, auc_tv linear."""
    density, area = (result.tokens[measure] for measure in result.measures)
    return Scale.of(density, log=True), Scale.of(area, log=False)


def cell_starts(rows: pd.DataFrame) -> NDArray[np.int64]:
    """Find the first row of each cell: tokens with overlapping character spans share one.

    Args:
        rows: the tokens of one document in order, `char_start` and `char_end`.

    Returns:
        int64 [cells], rising.
    """
    start, end = (rows[c].to_numpy() for c in ("char_start", "char_end"))
    reach = np.maximum.accumulate(np.concatenate([[0], end[:-1]])) if len(rows) else end
    return np.flatnonzero(start >= reach)


def cut_into_cells(
    text: str, rows: pd.DataFrame, density: str, both: tuple[Scale, Scale]
) -> tuple[Cell, ...]:
    """Cut a text into cells, in order; their texts join to the whole text.

    Args:
        text: the document.
        rows: token rows of that document in order; tokens without text (specials) are skipped.
        density: the name of the column `density@EPS`.
        both: the colour scales of the two measures.
    """
    rows = rows[rows["char_end"] > rows["char_start"]]
    columns = [density, "edges", "edges_per_token", AUC, "surprisal", "model_entropy", "context"]
    firsts = cell_starts(rows)
    means = _means(rows[columns].to_numpy(np.float64), firsts)
    d, a = (
        scale.position(means[:, columns.index(measure)]).tolist()
        for scale, measure in zip(both, (density, AUC), strict=True)
    )
    starts = np.minimum.reduceat(rows["char_start"].to_numpy(), firsts).tolist()
    ends = np.maximum.reduceat(rows["char_end"].to_numpy(), firsts).tolist()
    members = np.diff(firsts, append=len(rows)).tolist()
    cells, done = [], 0
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if start > done:
            cells.append(Cell(text[done:start]))
        values = _numbers(means[i].tolist(), members[i])
        cells.append(Cell(text[start:end], d[i], a[i], values))
        done = end
    if done < len(text):
        cells.append(Cell(text[done:]))
    return tuple(cells)


def _means(values: NDArray[np.float64], firsts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Means over runs of rows that begin at `firsts`, ignoring NaN; [runs, columns]."""
    known = ~np.isnan(values)
    sums = np.add.reduceat(np.where(known, values, 0), firsts, axis=0)
    members = np.add.reduceat(known, firsts, axis=0, dtype=np.int64)
    return np.divide(sums, members, out=np.full_like(sums, np.nan), where=members > 0)


def _numbers(row: Sequence[float], tokens: int) -> str:
    """Format the values of FIELDS, joined for the page's script."""
    density, edges, per_token, area, surprisal, entropy, context = row
    nats = ["–" if np.isnan(v) else f"{v:.2f}" for v in (surprisal, entropy)]
    return "|".join(
        (
            percent(density),
            f"{edges:,.0f}",
            f"{per_token:,.1f}",
            f"{area:.3f}",
            *nats,
            f"{context:,.0f}",
            f"{tokens}",
        )
    )


def shown_strata(store: Store) -> list[tuple[int, str]]:
    """Strata whose sizes and errors the page holds (all, or evenly spaced), with their values."""
    values = store.strata
    chosen = np.unique(np.linspace(0, len(values) - 1, min(MOST_STRATA, len(values))).astype(int))
    return [(int(k), f"{values[k]:.3g}") for k in chosen]


def cell_curves(store: Store, rows: pd.DataFrame) -> str:
    """Encode size and total variation of each cell at each of `shown_strata`, for the script.

    Args:
        store: the store of the rows.
        rows: token rows of one document in order, as `cut_into_cells` takes them.

    Returns:
        Base64 of little-endian uint16 [cells, strata, 2]: -log10 of the size in steps of
        1 / DECADES, and the total variation in steps of 1 / 65535. Means over a cell's tokens.
    """
    rows = rows[rows["char_end"] > rows["char_start"]]
    if rows.empty:
        return ""
    first, last = int(rows["window"].min()), int(rows["window"].max()) + 1
    place = (rows["window"].to_numpy() - first, rows["context"].to_numpy() - 1)
    strata = [k for k, _ in shown_strata(store)]
    firsts = cell_starts(rows)
    size, tv = (
        _means(array[first:last][place][:, strata].astype(np.float64), firsts)
        for array in (store.size, store.tv)
    )
    steps = np.clip(-np.log10(np.maximum(size, 1e-8)) * DECADES, 0, 65535)
    coded = np.rint(np.stack([steps, np.clip(tv, 0, 1) * 65535], axis=-1))
    return base64.b64encode(np.nan_to_num(coded).astype("<u2").tobytes()).decode()


def passage(
    result: DensityResult, document: int, both: tuple[Scale, Scale], store: Store | None = None
) -> Passage:
    """Make a passage of one document, or of its first `MOST_TOKENS` tokens if it is longer."""
    about: dict[Any, Any] = result.documents.loc[document].to_dict()
    rows = result.tokens[result.tokens["document"] == document].sort_values("position")
    shown = rows.head(MOST_TOKENS)
    cut = len(shown) < len(rows)
    text = about["text"][: shown["char_end"].max()] if cut else about["text"]
    cells = cut_into_cells(text, shown, result.density, both)
    lang = str(about.get("lang", ""))
    return Passage(
        name=document_name(result, document),
        lang=lang if re.fullmatch(r"[a-zA-Z]{2,3}(-[a-zA-Z0-9]{2,8})*", lang) else "",
        cells=cells,
        density=percent(about[result.density]),
        auc=f"{about[AUC]:.3f}",
        cut=cut,
        curves="" if store is None else cell_curves(store, shown),
    )


def document_name(result: DensityResult, document: int) -> str:
    """A document's id, with those of its labels that the id does not contain."""
    about: dict[Any, Any] = result.documents.loc[document].to_dict()
    name, labels = str(about["id"]), [str(about[label]) for label in result.labels]
    return " · ".join([name, *(v for v in labels if v and not _holds(name, v))])


def _holds(name: str, value: str) -> bool:
    """Whether an id holds a value between its other letters and digits: `en` in `law-en-1`."""
    return bool(re.search(rf"(?<![^\W_]){re.escape(value)}(?![^\W_])", name))


def choose_documents(result: DensityResult, labels: Sequence[str], most: int = 40) -> list[int]:
    """Choose documents to show: the middle one per set of labels, the densest, the sparsest.

    Args:
        result: the densities of a scan.
        labels: columns of the documents; each combination that occurs gives its document of
            middle density, the most frequent combinations first. Without labels every document
            is a combination.
        most: documents at most, including the densest and the sparsest.
    """
    documents = result.documents.sort_values(result.density, ascending=False, kind="stable")
    groups = documents.groupby(list(labels) or documents.index, sort=False)
    largest = sorted((group for _, group in groups), key=len, reverse=True)
    middle = [int(group.index[len(group) // 2]) for group in largest]
    ends = [int(documents.index[0]), int(documents.index[-1])]
    return list(dict.fromkeys([*middle[: max(0, most - 2)], *ends]))[:most]


def enough_context(result: DensityResult) -> int:
    """The least context of a token that is ranked: 32 tokens, or the median if that is less."""
    return min(FULL_CONTEXT, int(result.tokens["context"].median()))


def extremes(
    result: DensityResult, measure: str, densest: bool, both: tuple[Scale, Scale], most: int = 12
) -> list[TokenInContext]:
    """Find the densest or sparsest tokens with enough context, one per document.

    Args:
        result: the densities of a scan.
        measure: one of `result.measures`; the other one breaks ties.
        densest: True for the densest, False for the sparsest.
        both: the colour scales of the two measures.
        most: tokens at most.
    """
    tokens = result.tokens
    fit = tokens["context"] >= enough_context(result)
    fit &= tokens["char_end"] > tokens["char_start"]
    order = [measure, *(m for m in result.measures if m != measure)]
    candidates = tokens[fit & _among_best(tokens, fit, measure, densest, most)]
    ranked = candidates.sort_values(order, ascending=not densest, kind="stable")
    chosen = ranked.drop_duplicates("document").head(most)
    d, a = both[0].position(chosen[result.density]), both[1].position(chosen[AUC])
    shown = []
    for i, row in enumerate(chosen.to_dict("records")):
        document: dict[Any, Any] = result.documents.loc[row["document"]].to_dict()
        text, start, end = document["text"], row["char_start"], row["char_end"]
        value = row[measure]
        shown.append(
            TokenInContext(
                value=f"{value:.3f}" if measure == AUC else percent(value),
                before=_one_line(text[max(0, start - 60) : start]),
                token=_one_line(text[start:end]),
                after=_one_line(text[end : end + 60]),
                document=str(document["id"]),
                title=document_name(result, row["document"]),
                rtl=_right_to_left(text[:end]),
                d=int(d[i]),
                a=int(a[i]),
            )
        )
    return shown


def _among_best(
    tokens: pd.DataFrame, fit: pd.Series, measure: str, densest: bool, most: int
) -> pd.Series:
    """Select tokens as extreme as the best of the `most`-th best document."""
    sign = 1 if densest else -1
    value: pd.Series = sign * tokens[measure]
    best = value[fit].groupby(tokens["document"][fit]).max().nlargest(most)
    extreme: pd.Series = value >= best.min()
    return extreme


def _one_line(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ⏎ ", text)


def _right_to_left(text: str) -> bool:
    """Whether the last character with a direction runs from right to left."""
    kinds = (unicodedata.bidirectional(character) for character in reversed(text))
    return next((kind for kind in kinds if kind in ("L", "R", "AL")), "L") != "L"
