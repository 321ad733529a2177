"""Find words and sentences of a text as character spans, without dictionaries.

Words follow Unicode's default segmentation (UAX #29), merged where it would split a grapheme
cluster: a letter keeps its combining marks, an emoji its modifiers. In scripts without spaces a
Han character, a hiragana and a Thai syllable cluster are a word each, a run of katakana is one
word. Punctuation marks are separate words.
"""

import numpy as np
import regex
from numpy.typing import NDArray

_WORDS = regex.compile(r"\b", regex.WORD | regex.VERSION1)
_GRAPHEME = regex.compile(r"\X")
# Terminators and closing marks, then white space or, in scripts without spaces, anything: a full
# stop inside a number or a name like example.com ends no sentence.
_SENTENCE_END = regex.compile(
    r"[。！？｡]+[\p{Pe}\p{Pf}\p{Quotation_Mark}]*\s*"
    r"|\p{Sentence_Terminal}+[\p{Pe}\p{Pf}\p{Quotation_Mark}]*\s+"
    r"|\s*\n\s*"
)


def word_spans(text: str) -> NDArray[np.int64]:
    """Split a text into words: every character that is not white space is in exactly one.

    Args:
        text: any Unicode text; characters are code points.

    Returns:
        int64 [W, 2]: [start, end) of each word in characters, in order.

    Source: UAX #29 §3 and §4, as the package `regex` implements them.

    Example:
        >>> text = "Don't, 猫だ"
        >>> [text[start:end] for start, end in word_spans(text)]
        ["Don't", ',', '猫', 'だ']
    """
    graphemes = {match.end() for match in _GRAPHEME.finditer(text)}
    cuts = {match.start() for match in _WORDS.finditer(text)} & graphemes
    edges = np.unique([0, *cuts, len(text)])
    pieces = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    spans = [_without_space(text, start, end) for start, end in pieces]
    return np.array([span for span in spans if span[0] < span[1]], np.int64).reshape(-1, 2)


def sentence_starts(text: str) -> NDArray[np.int64]:
    """Find where sentences begin: after an end mark and a space, or after a line break.

    The full stop of an abbreviation ends a sentence too, for want of a dictionary.

    Args:
        text: any Unicode text.

    Returns:
        int64 [S]: characters, rising, the first 0; empty for an empty text.

    Example:
        >>> sentence_starts("It cost 3.5. Really? 猫だ。犬だ。").tolist()
        [0, 13, 21, 24]
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return np.unique([at for at in (0, *ends) if at < len(text)]).astype(np.int64)


def _without_space(text: str, start: int, end: int) -> tuple[int, int]:
    """Trim white space from the ends of a span."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
