"""Documents and tokens of a corpus on disk, until they are in a store; may exceed memory."""

import json
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from .corpus import Document


class Spool:
    """M documents and their tokens in files of a folder; add inside `with`, then read.

    Iterating yields the documents in the order in which they were added.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes = array("q")
        self._fields: dict[str, None] = {}
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        self._documents, self._tokens, self._spans = (
            self._open(name) for name in ("documents", "tokens", "spans")
        )
        return self

    def _open(self, name: str) -> BinaryIO:
        return self._opened.enter_context((self._folder / name).open("wb"))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()

    def add(self, document: Document, tokens: NDArray[np.int32], spans: NDArray[np.int32]) -> None:
        """Append a document, its tokens [n] and their character spans [n, 2]."""
        record = [document.id, document.text, dict(document.labels), document.source]
        self._documents.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._tokens.write(tokens.astype(np.int32).tobytes())
        self._spans.write(spans.astype(np.int32).tobytes())
        self._sizes.append(len(tokens))
        self._fields.update(dict.fromkeys(document.labels))

    def flush(self) -> None:
        """Make everything added so far readable while more is added."""
        for file in (self._documents, self._tokens, self._spans):
            file.flush()

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[Document]:
        """Yield the documents, in the order in which they were added."""
        with (self._folder / "documents").open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                name, text, labels, source = json.loads(line)
                yield Document(name, text, labels, source)

    @property
    def label_fields(self) -> list[str]:
        """All labels of the documents, in order of first appearance."""
        return list(self._fields)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """int64 [M]: tokens of each document."""
        return np.array(self._sizes, dtype=np.int64)

    @property
    def tokens(self) -> NDArray[np.int32]:
        """int32 [all tokens], memory-mapped."""
        return np.memmap(self._folder / "tokens", np.int32, "r")

    @property
    def spans(self) -> NDArray[np.int32]:
        """int32 [all tokens, 2], memory-mapped."""
        return np.memmap(self._folder / "spans", np.int32, "r").reshape(-1, 2)
