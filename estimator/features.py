"""Factors that may explain a token's density, one column each.

A scored token's row describes the position t whose prediction is traced: the model has read the
token at t last, and predicts the token after it. Frequency, length, script, repetition and the
token's own surprisal are those of the token at t.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..tracer.store import Store
from .frames import document_rows, label_names, token_frame
from .words import sentence_starts, word_spans

Kind = Literal["number", "category"]
Column = Callable[[pd.DataFrame], ArrayLike] | ArrayLike
UNSEEN = 0.5  # count assumed for a token never seen elsewhere
TEXT = "text"  # column of token texts that callables see in addition to the factors


@dataclass(frozen=True)
class Factor:
    """Description of a column of `factor_frame`."""

    name: str
    unit: str
    about: str
    kind: Kind = "number"


FACTORS = (
    Factor(
        "log_frequency",
        "log10 per million tokens",
        "how often the token at t occurs elsewhere in the scanned corpus: its own occurrence is "
        f"left out of count and total; no other occurrence counts as {UNSEEN:g}",
    ),
    Factor(
        "log_reference_frequency",
        "log10 per million tokens",
        "how often the token at t occurs in the reference counts, where these are given; "
        f"none counts as {UNSEEN:g}",
    ),
    Factor(
        "surprisal_own",
        "nats",
        "-log p of the token at t under the clean model's prediction at t - 1; missing at a "
        "window's first token, which nothing predicts",
    ),
    Factor(
        "surprisal_next",
        "nats",
        "-log p of the token after t under the clean model's prediction at t, the one that is "
        "traced; missing at a document's end",
    ),
    Factor("model_entropy", "nats", "of the clean model's prediction at t"),
    Factor("context", "tokens", "tokens that t sees, itself included"),
    Factor("position", "tokens", "tokens before t in its document"),
    Factor(
        "sentence_position",
        "tokens",
        "tokens before t in its sentence; a token without text belongs to the sentence before it, "
        "a beginning-of-text token to none; missing where the sentence begins in a window that is "
        "not scanned",
    ),
    Factor("token_length", "characters", "of the text of the token at t; 0 where it has none"),
    Factor(
        "word_place",
        "",
        "initial: the token at t begins a word; continuation: it goes on with one (or with one "
        "character's bytes); none: it holds white space or nothing",
        "category",
    ),
    Factor(
        "script",
        "",
        "first word of the Unicode name of the first letter in the token at t, lower case "
        "(latin, cyrillic, cjk, ...); none without a letter",
        "category",
    ),
    Factor(
        "character_class",
        "",
        "Unicode category of the first character of the token at t that is no white space: "
        "letter, mark, digit, punctuation, symbol, other; space, or none without text",
        "category",
    ),
    Factor("repeated", "", "whether the token at t is in its window before t: yes, no", "category"),
    Factor(
        "repeat_distance",
        "tokens",
        "from t back to the same token's last place in the window; missing where it has none",
    ),
)
_CLASSES = {
    "L": "letter",
    "M": "mark",
    "N": "digit",
    "P": "punctuation",
    "S": "symbol",
    "Z": "space",
    "C": "other",
}


def factor_table(frame: pd.DataFrame | None = None) -> pd.DataFrame:
    """List the factors as a table for pages and reports.

    Args:
        frame: a frame of `factor_frame`, whose columns are listed, including labels and columns
            of the user; by default the built-in factors.

    Returns:
        One row per factor, indexed by name: `unit`, `kind`, `description`.

    Example:
        >>> factor_table().loc["context", "unit"]
        'tokens'
    """
    known = {factor.name: factor for factor in FACTORS}
    names = list(known) if frame is None else list(frame.columns)
    rows = [known.get(name) or _described(frame, name) for name in names]
    columns = {"unit": "unit", "kind": "kind", "description": "about"}
    data = {column: [getattr(row, field) for row in rows] for column, field in columns.items()}
    return pd.DataFrame(data, index=pd.Index(names, name="factor"))


def _described(frame: pd.DataFrame | None, name: str) -> Factor:
    """Describe a factor that is not built in: a label, or a column of the user."""
    assert frame is not None
    label = name in frame.attrs.get("labels", ())
    about = "label of the token's document" if label else "given by the user"
    return Factor(name, "", about, "category" if is_category(frame[name]) else "number")


def is_category(column: pd.Series) -> bool:
    """Whether a factor's values are names rather than numbers."""
    return not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)


def factor_frame(
    store: Store,
    reference_counts: Mapping[int, float] | ArrayLike | None = None,
    factors: Mapping[str, Column] | None = None,
    *,
    tokens: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Compute the factors of every scored token, aligned with `token_frame`.

    Args:
        store: a scanned store.
        reference_counts: occurrences by token id in some large corpus: a mapping, or numbers [V].
        factors: further columns; see `with_columns`.
        tokens: `token_frame(store)`, if already computed.

    Returns:
        One row per scored token, in the order and with the index of `token_frame`: the columns of
        `FACTORS` (`log_reference_frequency` if counts are given), then the documents' labels as
        categories (`label_NAME` where NAME is a factor), then `factors`. Numbers are float64, NaN
        where missing.

    Raises:
        InputError: counts that are negative or of another vocabulary; see also `with_columns`.

    Example:
        >>> frame = factor_frame(open_store("traces.zarr"))  # doctest: +SKIP
        >>> frame.groupby("script")["surprisal_own"].mean()  # doctest: +SKIP
    """
    if tokens is None:
        tokens = token_frame(store)
    texts = _token_texts(tokens, store.documents["text"])
    frame = pd.DataFrame(index=tokens.index)
    frame["log_frequency"] = own_frequency(tokens["token"].to_numpy())
    if reference_counts is not None:
        frame["log_reference_frequency"] = _reference_frequency(
            tokens["token"].to_numpy(), reference_counts
        )
    frame["surprisal_own"] = tokens.groupby("window")["surprisal"].shift(1)
    frame["surprisal_next"] = tokens["surprisal"]
    for name in ("model_entropy", "context", "position"):
        frame[name] = tokens[name]
    frame["sentence_position"] = _sentence_position(tokens, store.documents["text"])
    frame["token_length"] = texts.str.len()
    frame["word_place"] = _word_place(tokens, texts, store.documents["text"])
    frame["script"] = pd.Categorical([_script(text) for text in texts])
    frame["character_class"] = pd.Categorical([_character_class(text) for text in texts])
    distance = _repeat_distance(tokens)
    frame["repeated"] = pd.Categorical(np.where(distance.isna(), "no", "yes"), ["no", "yes"])
    frame["repeat_distance"] = distance
    numbers = frame.select_dtypes("number").columns
    frame[numbers] = frame[numbers].astype(np.float64)
    labels = label_names(store.labels, frame.columns)
    for label, name in labels.items():
        frame[name] = pd.Categorical(tokens["document"].map(store.documents[label]))
    frame.attrs["labels"] = tuple(labels.values())
    return with_columns(frame, factors or {}, texts)


def with_columns(
    frame: pd.DataFrame, factors: Mapping[str, Column], texts: pd.Series | None = None
) -> pd.DataFrame:
    """Add the user's columns to a factor frame.

    Args:
        frame: a frame of `factor_frame`, N rows.
        factors: name -> values [N], a Series with the frame's index, or a callable that computes
            them from the frame so far. Strings, booleans and categoricals become categories,
            everything else float64.
        texts: the tokens' texts [N]; callables see them as column `text`.

    Raises:
        InputError: a name that is taken, a wrong length or index.

    Example:
        >>> frame = pd.DataFrame({"context": [1.0, 2.0, 4.0]})
        >>> with_columns(frame, {"octave": lambda f: np.log2(f["context"])})["octave"].tolist()
        [0.0, 1.0, 2.0]
    """
    result = frame.copy()
    result.attrs = dict(frame.attrs)
    for name, given in factors.items():
        if name in result or name == TEXT:
            raise InputError(f"factor {name!r} is there already: choose another name")
        shown = result if texts is None else result.assign(**{TEXT: texts})
        values = given(shown) if callable(given) else given
        if isinstance(values, pd.Series) and not values.index.equals(result.index):
            raise InputError(f"factor {name!r} has another index than the frame")
        column = pd.Series(values).reset_index(drop=True)
        if len(column) != len(result):
            raise InputError(f"factor {name!r} has {len(column)} values for {len(result)} tokens")
        result[name] = (
            pd.Categorical(column) if is_category(column) else column.to_numpy(np.float64)
        )
    return result


def _token_texts(tokens: pd.DataFrame, documents: pd.Series) -> pd.Series:
    """The text of each token; empty where it has none."""
    first, last = (tokens[name].clip(lower=0).to_numpy() for name in ("char_start", "char_end"))
    pieces = np.empty(len(tokens), object)
    for document, rows in document_rows(tokens).items():
        whole = documents[document]
        spans = zip(first[rows].tolist(), last[rows].tolist(), strict=True)
        pieces[rows] = [whole[start:end] for start, end in spans]
    return pd.Series(pieces, tokens.index, dtype=object)


def first_of_text(texts: pd.Series, document: pd.Series) -> pd.Series:
    """Map documents to the first document of the same text; those without text to themselves.

    Args:
        texts: the text of each document.
        document: int [N], labels of the index of `texts`.

    Example:
        >>> first_of_text(pd.Series(["a", "b", "a", "", ""]), pd.Series(range(5))).tolist()
        [0, 1, 0, 3, 4]
    """
    index = texts.index.to_series()
    first = index.groupby(texts).transform("first").where(texts != "", index)
    return document.map(first)


def _per_million(counts: NDArray[np.floating], total: float) -> NDArray[np.float64]:
    seen = np.where(counts > 0, counts, UNSEEN)
    return np.asarray(np.log10(1e6 * seen / max(total, 1.0)))


def own_frequency(ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute the factor `log_frequency`, float64 [N], of token ids int64 [N].

    Example:
        >>> own_frequency(np.array([7, 7, 8])).round(2).tolist()
        [5.7, 5.7, 5.4]
    """
    counts = np.bincount(ids)
    return _per_million(counts - 1.0, len(ids) - 1.0)[ids]


def _reference_frequency(
    ids: NDArray[np.int64], given: Mapping[int, float] | ArrayLike
) -> NDArray[np.float64]:
    if isinstance(given, Mapping):
        counts = np.array([float(given.get(token, 0.0)) for token in ids.tolist()])
        total = float(sum(given.values()))
        lowest = min(given.values(), default=0.0)
    else:
        table = np.asarray(given, np.float64)
        if table.ndim != 1 or len(table) <= ids.max():
            raise InputError(
                f"reference_counts has shape {table.shape}, but token id {ids.max()} occurs: "
                "give one count for each id of the vocabulary"
            )
        counts, total, lowest = table[ids], float(table.sum()), float(table.min())
    if not (lowest >= 0 and total > 0):
        raise InputError("reference_counts must be numbers >= 0, not all zero")
    return _per_million(counts, total)


def _sentence_position(tokens: pd.DataFrame, documents: pd.Series) -> pd.Series:
    sentence = np.zeros(len(tokens), np.int64)
    for document, rows in document_rows(tokens).items():
        starts = sentence_starts(documents[document])
        # Locate a token by its last character: a leading space belongs to the word after it.
        last = tokens["char_end"].to_numpy()[rows] - 1
        sentence[rows] = np.maximum.accumulate(np.searchsorted(starts, last, side="right"))
    position = tokens["position"]
    begins = position.groupby([tokens["document"], sentence]).transform("first")
    follows = position.groupby(tokens["document"]).diff().fillna(position + 1) == 1
    known = follows.groupby([tokens["document"], sentence]).transform("first")
    return (position - begins).where(known)


def _word_place(
    tokens: pd.DataFrame, texts: pd.Series, documents: pd.Series
) -> "pd.Categorical[str]":
    begins = tokens["char_start"].to_numpy() + texts.map(lambda t: len(t) - len(t.lstrip()))
    empty = texts.map(str.strip) == ""
    place = np.where(empty, "none", "continuation").astype(object)
    for document, rows in document_rows(tokens).items():
        first = begins.to_numpy()[rows]
        starts = word_spans(documents[document])[:, 0]
        # Of the tokens that share one character's bytes, only the first begins the word.
        end = tokens["char_end"].to_numpy()[rows]
        reach = np.maximum.accumulate(np.concatenate([[0], end[:-1]]))
        initial = np.isin(first, starts) & (first >= reach) & ~empty.to_numpy()[rows]
        place[rows[initial]] = "initial"
    return pd.Categorical(place, ["initial", "continuation", "none"])


@lru_cache(maxsize=1 << 16)
def _script(text: str) -> str:
    letter = next((c for c in text if unicodedata.category(c)[0] == "L"), "")
    return unicodedata.name(letter, "none").split()[0].lower() if letter else "none"


@lru_cache(maxsize=1 << 16)
def _character_class(text: str) -> str:
    shown = text.strip()
    if shown:
        return _CLASSES[unicodedata.category(shown[0])[0]]
    return "space" if text else "none"


def _repeat_distance(tokens: pd.DataFrame) -> pd.Series:
    """Distance from each token back to the same id in its window; NaN if there is none."""
    position = tokens["context"]
    before = position.groupby([tokens["window"], tokens["token"]]).shift(1)
    return position - before


def frequency_bands(log_frequency: Sequence[float] | pd.Series) -> pd.Series:
    """Band frequencies by decade, as categories, rarest first: `< 10`, `10 to 100`, ...

    Args:
        log_frequency: float [N], log10 per million.

    Example:
        >>> frequency_bands([1.5, 4.2]).tolist()
        ['10 to 100', '10,000 to 100,000']
    """
    values = pd.Series(log_frequency)
    decade = np.floor(values).clip(lower=0).astype(int)
    names = {
        d: f"{10**d:,} to {10 ** (d + 1):,}" if d else "< 10"
        for d in range(int(decade.min()), int(decade.max()) + 1)
    }
    return pd.Series(pd.Categorical(decade.map(names), list(names.values())), values.index)
