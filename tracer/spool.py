"""What was read of a corpus, on disk until a store has it: it may be larger than memory."""

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
    """M documents and their tokens, in files of a folder; add to it inside `with`, then read."""

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
        """One document more, its tokens [n] and their characters [n, 2]."""
        kept = [document.id, document.text, dict(document.labels), document.source]
        self._documents.write(json.dumps(kept, ensure_ascii=False).encode() + b"\n")
        self._tokens.write(tokens.astype(np.int32).tobytes())
        self._spans.write(spans.astype(np.int32).tobytes())
        self._sizes.append(len(tokens))
        self._fields.update(dict.fromkeys(document.labels))

    def flush(self) -> None:
        """Let what was added so far be read while more is added."""
        for file in (self._documents, self._tokens, self._spans):
            file.flush()

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[Document]:
        """The documents, in the order in which they came."""
        with (self._folder / "documents").open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                name, text, labels, source = json.loads(line)
                yield Document(name, text, labels, source)

    @property
    def label_fields(self) -> list[str]:
        """Every label that a document has, in the order of first appearance."""
        return list(self._fields)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """int64 [M]: tokens of each document."""
        return np.array(self._sizes, dtype=np.int64)

    @property
    def tokens(self) -> NDArray[np.int32]:
        """int32 [all tokens], read from the file where it is looked at."""
        return np.memmap(self._folder / "tokens", np.int32, "r")

    @property
    def spans(self) -> NDArray[np.int32]:
        """int32 [all tokens, 2], read from the file where it is looked at."""
        return np.memmap(self._folder / "spans", np.int32, "r").reshape(-1, 2)
