"""Cuts a corpus into windows, planned before tracing starts, and groups windows into batches."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import CorpusError, InputError
from .corpus import CorpusReport, Document
from .prefetch import prefetch
from .spool import Spool

NO_TOKENS = "the tokenizer makes no token of it"
TOGETHER = 256  # most documents per tokenizer call, which spreads them over its threads
TOGETHER_CHARACTERS = 1 << 18  # most characters per tokenizer call
MOST_PADDING = 0.05  # most padding in a batch, as a share of its tokens
NONE = -1  # stands for no next token, no character span, no token


@dataclass(frozen=True)
class Encoded:
    """The tokens of a text."""

    ids: list[int]
    spans: list[tuple[int, int]] | None = None  # characters [start, end) of each, if known


Encode = Callable[[Sequence[str]], Sequence[Encoded]]


@dataclass(frozen=True)
class Plan:
    """M documents cut into N windows; tokens are concatenated in document order."""

    documents: Spool | None  # the M documents; None in the plan of a part or head
    tokens: NDArray[np.int32]  # [all tokens]
    spans: NDArray[np.int32]  # [all tokens, 2] characters [start, end), -1 where unknown
    first: NDArray[np.int64]  # [M + 1] offset of each document's tokens, and the end
    document: NDArray[np.int32]  # [N] document of each window
    window_start: NDArray[np.int32]  # [N] first token of each window, within its document
    length: NDArray[np.int32]  # [N] tokens of each window

    @property
    def n_windows(self) -> int:
        """N."""
        return len(self.length)

    @property
    def longest(self) -> int:
        """Tokens of the longest window."""
        return int(self.length.max())

    def head(self, windows: int) -> "Plan":
        """The plan of the first `windows` windows."""
        return replace(
            self,
            documents=None,
            document=self.document[:windows],
            window_start=self.window_start[:windows],
            length=self.length[:windows],
        )

    def token_range(self, window: int) -> slice:
        """The slice of `tokens` and `spans` that a window covers."""
        start = int(self.first[self.document[window]]) + int(self.window_start[window])
        return slice(start, start + int(self.length[window]))

    def ids(self, window: int) -> list[int]:
        """The token ids of a window."""
        ids: list[int] = self.tokens[self.token_range(window)].tolist()
        return ids

    def next_token(self, window: int) -> int:
        """The token that follows a window in its document, -1 at the document's end."""
        stop = self.token_range(window).stop
        return int(self.tokens[stop]) if stop < self.first[self.document[window] + 1] else NONE


def plan_windows(
    documents: Iterable[Document],
    encode: Encode,
    context: int,
    spool: Spool,
    *,
    vocab_size: int | None = None,
    report: CorpusReport | None = None,
    added: Callable[[int], None] = lambda tokens: None,
) -> Plan:
    """Tokenise documents and cut them into windows of at most `context` tokens.

    Only the tokenizer adds beginning-of-text tokens, at document starts. Memory holds a few
    documents at a time, and some bytes per document and window.

    Args:
        documents: see `read_corpus`.
        encode: tokenises several texts.
        context: most tokens per window.
        spool: stores the documents that have tokens, and the tokens.
        vocab_size: of the model; larger ids are refused.
        report: receives the documents without tokens.
        added: called with the token count of each document added to the spool.

    Raises:
        InputError: context below 1, a token id outside the vocabulary.
        CorpusError: no document has a token.
    """
    if not isinstance(context, int) or context < 1:
        raise InputError(f"context={context!r} is not a whole number of tokens >= 1")
    without_tokens: list[str] = []
    with spool, closing(_encoded(documents, encode)) as pairs:
        for document, encoded in pairs:
            if encoded.ids:
                spool.add(document, _ids(encoded, document, vocab_size), _spans(encoded))
                added(len(encoded.ids))
            else:
                without_tokens.append(document.source)
    if not len(spool):
        raise CorpusError("the corpus holds no token: " + NO_TOKENS + ", of any text")
    if report is not None:
        report.documents -= len(without_tokens)
        for source in without_tokens:
            report.skip(NO_TOKENS, source)
    return plan_of(spool, context)


def plan_of(spool: Spool, context: int) -> Plan:
    """Cut the documents of a spool into windows of at most `context` tokens."""
    sizes = spool.sizes
    windows = -(-sizes // context)
    owner = np.repeat(np.arange(len(sizes)), windows)
    before = np.concatenate([[0], np.cumsum(windows)[:-1]])
    window_start = (np.arange(len(owner)) - before[owner]) * context
    return Plan(
        documents=spool,
        tokens=spool.tokens,
        spans=spool.spans,
        first=np.concatenate([[0], np.cumsum(sizes)]),
        document=owner.astype(np.int32),
        window_start=window_start.astype(np.int32),
        length=np.minimum(sizes[owner] - window_start, context).astype(np.int32),
    )


def _encoded(
    documents: Iterable[Document], encode: Encode
) -> Generator[tuple[Document, Encoded], None, None]:
    """Documents and their tokens; reading, tokenising and the caller's work run concurrently."""

    def encode_all(
        groups: Iterable[list[Document]],
    ) -> Iterator[Iterable[tuple[Document, Encoded]]]:
        for group in groups:
            yield zip(group, encode([document.text for document in group]), strict=True)

    with (
        closing(prefetch(_groups(documents))) as read,
        closing(prefetch(encode_all(read))) as encoded,
    ):
        for pairs in encoded:
            yield from pairs


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Group consecutive documents for one tokenizer call each."""
    group: list[Document] = []
    characters = 0
    for document in documents:
        longer = characters + len(document.text)
        if group and (len(group) == TOGETHER or longer > TOGETHER_CHARACTERS):
            yield group
            group, longer = [], len(document.text)
        group.append(document)
        characters = longer
    if group:
        yield group


# ---- windows that are traced together ------------------------------------------------------------


def batches(
    lengths: NDArray[np.int32], tokens: int, padding: float = MOST_PADDING
) -> list[list[int]]:
    """Group windows of similar length.

    Args:
        lengths: tokens of each window.
        tokens: most tokens, padding included, in a group of several windows.
        padding: most padding in a group, as a share of its tokens.

    Returns:
        The windows of each group, longest first.

    Example:
        >>> batches(np.array([30, 90, 29, 20]), 90)
        [[1], [0, 2], [3]]
    """
    order = np.argsort(-lengths, kind="stable")
    return [order[run].tolist() for run in consecutive_batches(lengths[order], tokens, padding)]


def consecutive_batches(
    lengths: NDArray[np.integer], tokens: int, padding: float = MOST_PADDING
) -> list[slice]:
    """Group consecutive windows by the limits of `batches`, without sorting them."""
    groups: list[slice] = []
    start = longest = filled = 0
    for window, length in enumerate(lengths.tolist()):
        longer = max(longest, length)
        padded = (window + 1 - start) * longer
        if window > start and (padded > tokens or padded > (1 + padding) * (filled + length)):
            groups.append(slice(start, window))
            start, longer, filled = window, length, 0
        longest, filled = longer, filled + length
    return [*groups, slice(start, len(lengths))] if len(lengths) else []


def joined(
    groups: Sequence[Sequence[int]], lengths: NDArray[np.int32], tokens: int
) -> list[list[int]]:
    """Join consecutive groups of windows into groups of at most `tokens` tokens, padding included.

    Example:
        >>> joined([[1], [0, 2], [3]], np.array([30, 90, 29, 20]), 300)
        [[1, 0, 2], [3]]
    """
    larger: list[list[int]] = []
    for group in groups:
        longest = max(lengths[[*(larger[-1] if larger else ()), *group]])
        if larger and (len(larger[-1]) + len(group)) * longest <= tokens:
            larger[-1] += group
        else:
            larger.append([*group])
    return larger


def spread(lengths: NDArray[np.integer], tokens: int) -> NDArray[np.int64]:
    """Indices of evenly spaced windows that hold about `tokens` tokens in total."""
    wanted = min(len(lengths), max(1, round(tokens / max(1.0, lengths.mean()))))
    return np.linspace(0, len(lengths) - 1, wanted).round().astype(np.int64)


def _ids(encoded: Encoded, document: Document, vocab_size: int | None) -> NDArray[np.int32]:
    ids = np.array(encoded.ids, dtype=np.int64)
    if vocab_size is not None and not 0 <= ids.min() <= ids.max() < vocab_size:
        wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
        raise InputError(
            f"token id {wrong} (in {document.source}) is outside the model's vocabulary "
            f"0..{vocab_size - 1}: the tokenizer belongs to another model"
        )
    return ids.astype(np.int32)


def _spans(encoded: Encoded) -> NDArray[np.int32]:
    if encoded.spans is None:
        return np.full((len(encoded.ids), 2), NONE, dtype=np.int32)
    return np.array(encoded.spans, dtype=np.int32)
