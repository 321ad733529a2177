"""A corpus as windows: what is scanned, planned before anything is traced."""

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
TOGETHER = 256  # documents that the tokenizer is given at once, to divide among its threads
TOGETHER_CHARACTERS = 1 << 18  # of them, at most
MOST_PADDING = 0.05  # of a batch's tokens, at most
NONE = -1  # where there is no next token, no character span, no token


@dataclass(frozen=True)
class Encoded:
    """The tokens of a text."""

    ids: list[int]
    spans: list[tuple[int, int]] | None = None  # characters [start, end) of each, where known


Encode = Callable[[Sequence[str]], Sequence[Encoded]]


@dataclass(frozen=True)
class Plan:
    """M documents cut into N windows; tokens lie one after the other, in the documents' order."""

    documents: Spool | None  # M, in the order scanned; None in the plan of a part or head
    tokens: NDArray[np.int32]  # [all tokens]
    spans: NDArray[np.int32]  # [all tokens, 2] characters [start, end), -1 where unknown
    first: NDArray[np.int64]  # [M + 1] where each document's tokens begin, and the end
    document: NDArray[np.int32]  # [N] document of each window
    window_start: NDArray[np.int32]  # [N] first token of each window, counted in its document
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
        """The first windows alone."""
        return replace(
            self,
            documents=None,
            document=self.document[:windows],
            window_start=self.window_start[:windows],
            length=self.length[:windows],
        )

    def place(self, window: int) -> slice:
        """Where the tokens of a window lie in `tokens` and `spans`."""
        start = int(self.first[self.document[window]]) + int(self.window_start[window])
        return slice(start, start + int(self.length[window]))

    def ids(self, window: int) -> list[int]:
        """The token ids of a window."""
        found: list[int] = self.tokens[self.place(window)].tolist()
        return found

    def next_token(self, window: int) -> int:
        """The token that follows a window in its document, -1 at the document's end."""
        stop = self.place(window).stop
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

    A beginning-of-text token stands only where the tokenizer puts it, at a document's start. What
    is held in memory is a few documents, and some bytes of each document and window.

    Args:
        documents: see `read_corpus`.
        encode: the tokenizer, of several texts.
        context: tokens a window, at most.
        spool: takes the documents that have a token, and these.
        vocab_size: of the model; ids beyond it are refused.
        report: receives the documents of which the tokenizer makes no token.
        added: told of the tokens of each document that is in the spool.

    Raises:
        InputError: context below 1, a token id outside the vocabulary.
        CorpusError: no document has a token.
    """
    if not isinstance(context, int) or context < 1:
        raise InputError(f"context={context}: a window holds 1, 2, 3, ... tokens at most")
    without: list[str] = []
    with spool, closing(_encoded(documents, encode)) as found:
        for document, encoded in found:
            if encoded.ids:
                spool.add(document, _ids(encoded, document, vocab_size), _spans(encoded))
                added(len(encoded.ids))
            else:
                without.append(document.source)
    if not len(spool):
        raise CorpusError("the corpus holds no token: " + NO_TOKENS + ", of any text")
    if report is not None:
        report.documents -= len(without)
        for source in without:
            report.skip(NO_TOKENS, source)
    return plan_of(spool, context)


def plan_of(spool: Spool, context: int) -> Plan:
    """The documents of a spool, cut into windows of at most `context` tokens."""
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
    """Documents and their tokens: some are read while others are tokenised and a third are used."""

    def runs(waiting: Iterable[list[Document]]) -> Iterator[Iterable[tuple[Document, Encoded]]]:
        for run in waiting:
            yield zip(run, encode([document.text for document in run]), strict=True)

    with closing(prefetch(_together(documents))) as read, closing(prefetch(runs(read))) as encoded:
        for run in encoded:
            yield from run


def _together(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Runs of documents, few enough to be tokenised at once."""
    run: list[Document] = []
    characters = 0
    for document in documents:
        if run and (len(run) == TOGETHER or characters + len(document.text) > TOGETHER_CHARACTERS):
            yield run
            run, characters = [], 0
        run.append(document)
        characters += len(document.text)
    if run:
        yield run


# ---- windows that are traced together ------------------------------------------------------------


def batches(
    lengths: NDArray[np.int32], tokens: int, padding: float = MOST_PADDING
) -> list[list[int]]:
    """Windows grouped by similar length.

    Args:
        lengths: tokens of each window.
        tokens: of a group of more than one window with its padding, at most.
        padding: most of it in a group, as a share of its tokens.

    Example:
        >>> batches(np.array([30, 90, 29, 20]), 90)
        [[1], [0, 2], [3]]
    """
    order = np.argsort(-lengths, kind="stable")
    return [order[run].tolist() for run in runs(lengths[order], tokens, padding)]


def runs(lengths: NDArray[np.integer], tokens: int, padding: float = MOST_PADDING) -> list[slice]:
    """Windows that lie side by side grouped as `batches` groups them, which sorts them first."""
    found: list[slice] = []
    start = longest = held = 0
    for window, length in enumerate(lengths.tolist()):
        longer = max(longest, length)
        padded = (window + 1 - start) * longer
        if window > start and (padded > tokens or padded > (1 + padding) * (held + length)):
            found.append(slice(start, window))
            start, longer, held = window, length, 0
        longest, held = longer, held + length
    return [*found, slice(start, len(lengths))] if len(lengths) else []


def joined(
    groups: Sequence[Sequence[int]], lengths: NDArray[np.int32], tokens: int
) -> list[list[int]]:
    """Groups of windows side by side joined to larger ones, of so many tokens at most with padding.

    Example:
        >>> joined([[1], [0, 2], [3]], np.array([30, 90, 29, 20]), 300)
        [[1, 0, 2], [3]]
    """
    found: list[list[int]] = []
    for group in groups:
        longest = max(lengths[[*(found[-1] if found else ()), *group]])
        if found and (len(found[-1]) + len(group)) * longest <= tokens:
            found[-1] += group
        else:
            found.append([*group])
    return found


def spread(lengths: NDArray[np.integer], tokens: int) -> NDArray[np.int64]:
    """Windows taken evenly over all until they hold about `tokens` tokens."""
    wanted = min(len(lengths), max(1, round(tokens / max(1.0, lengths.mean()))))
    places: NDArray[np.int64] = np.linspace(0, len(lengths) - 1, wanted).round().astype(np.int64)
    return np.unique(places)


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
