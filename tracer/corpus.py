"""Read a corpus into documents: .txt, .jsonl and .parquet files, folders of them, standard input.

Unusable input (a line that does not parse, an empty text, an unreadable file) is skipped, counted
and named in a `CorpusReport`; only a corpus without any document is an error.
"""

import codecs
import hashlib
import io
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, takewhile
from pathlib import Path
from threading import Event
from typing import Any, Literal, cast, get_args

from ..errors import CorpusError, InputError, first_line
from .indices import shown

log = logging.getLogger(__name__)

Format = Literal["auto", "txt", "jsonl", "parquet"]
SUFFIXES: dict[str, Format] = {".txt": "txt", ".jsonl": "jsonl", ".parquet": "parquet"}
STDIN = "-"
RESERVED = ("id", "text")  # columns of the document table: not allowed as names of labels
CHUNK_BYTES = 1 << 20  # read at once; also the characters of a text that are copied at once
EXAMPLES = 3  # of each kind of problem, named in the report

UNREADABLE = "cannot be read"
LINKED = "link to a folder, not followed"
OTHER_TYPE = "neither .txt, .jsonl nor .parquet"
INVALID_UTF8 = "invalid UTF-8"
NOT_JSON = "does not parse as a JSON object"
NO_SUCH_LABEL = "label field that no document has"
NO_FIELD = "lacks the text field"
NOT_TEXT = "text is not a string"
EMPTY = "empty text"
BAD_VALUE = "holds a value that Python cannot represent"

_JSON = json.JSONEncoder(ensure_ascii=False)


@dataclass(frozen=True)
class Document:
    """One text with its labels."""

    id: str
    text: str
    labels: Mapping[str, str]
    source: str  # file, with the line or row if there is one


@dataclass
class CorpusReport:
    """Counts of documents read and of inputs skipped, by kind, with the first few of each named."""

    documents: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, kind: str, where: str, detail: str = "") -> None:
        """Count a skipped input, and keep its name if it is among the first of its kind."""
        self.skipped[kind] += 1
        examples = self.examples.setdefault(kind, [])
        text = f"{where} ({detail})" if detail else where
        log.info("skipped %s: %s", text, kind)
        if len(examples) < EXAMPLES:
            examples.append(text)

    def summary(self) -> str:
        """Describe in one line how many inputs were skipped, why, and the first of each kind."""
        return "; ".join(
            f"{count} skipped: {kind}, first {self.examples[kind][0]}"
            for kind, count in self.skipped.items()
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-serialisable values."""
        return {
            "documents": self.documents,
            "skipped": dict(self.skipped),
            "examples": {kind: list(names) for kind, names in self.examples.items()},
        }


def read_corpus(
    source: str | Path,
    text_field: str = "text",
    label_fields: Sequence[str] | None = None,
    *,
    file_format: Format = "auto",
    report: CorpusReport | None = None,
) -> Iterator[Document]:
    """Read the documents of a corpus, in a fixed order.

    Args:
        source: a .txt file (one document), a .jsonl or .parquet file (one document a line or row),
            a folder (all such files in it, recursively, sorted by path; links to folders are not
            followed), or "-": standard input.
        text_field: the field of .jsonl and .parquet that holds the text.
        label_fields: fields kept as labels; by default all others that hold strings or whole
            numbers. The field `id`, if present, names the document. Of fields with the same name
            the last counts.
        file_format: how to read a single file or standard input; "auto" goes by the suffix, and on
            standard input by the first byte: "{" means jsonl, anything else one text.
        report: updated while the documents are iterated over.

    Returns:
        An iterator over the documents; files are read as it advances.

    Raises:
        CorpusError: no such file, a file of another kind, or (at the end) no document at all.
        InputError: an unknown format, or a label field called `id`, `text` or as `text_field`.

    Example:
        >>> report = CorpusReport()
        >>> documents = list(read_corpus("examples/corpus", report=report))
        >>> report.documents, dict(report.skipped)
        (263, {'neither .txt, .jsonl nor .parquet': 1})
    """
    if not isinstance(source, str | Path):
        raise InputError(
            f"corpus={shown(source)}: the path of a file or folder is needed; for texts in memory "
            "there is DensityEstimator"
        )
    if file_format not in get_args(Format):
        raise InputError(
            f"file_format={file_format!r} is unknown; use one of {', '.join(get_args(Format))}"
        )
    if isinstance(label_fields, str):
        raise InputError(f"label_fields={label_fields!r} is one name: give a list of them")
    for name in label_fields or ():
        if name in RESERVED or name == text_field:
            raise InputError(f"label field {name!r} is the document's own {name}, not a label")
    reader = _Reader(text_field, label_fields, report if report is not None else CorpusReport())
    if str(source) == STDIN:
        documents = reader.stdin(file_format)
    else:
        documents = reader.path(Path(source), file_format)
    return _not_empty(documents, str(source), reader)


def check_alone(source: str | Path, alone: bool) -> None:
    """Refuse standard input as the corpus of several processes: each has its own.

    Args:
        source: the corpus.
        alone: whether one process, on this machine, does the scan.

    Raises:
        InputError: the source is standard input, and not `alone`.
    """
    if str(source) == STDIN and not alone:
        raise InputError(
            f"corpus {STDIN!r} (standard input) can be read by one process alone, and not by "
            "several workers or those of Ray: write it to a file"
        )


class Fingerprint:
    """Passes documents through and computes the sha256 of their ids, texts and labels, in order."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._documents = iter(documents)
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[Document]:
        for document in self._documents:
            for piece in _as_json(document):
                self._digest.update(piece.encode())
            yield document

    def hex(self) -> str:
        """Return the hash of all documents, reading those that were not iterated over yet."""
        for _ in self:
            pass
        return self._digest.hexdigest()


def _as_json(document: Document) -> Iterator[str]:
    """Encode a document as the line `[id, text, labels]`, in pieces."""
    yield f'[{_JSON.encode(document.id)}, "'
    for piece in _pieces(document.text):
        yield _JSON.encode(piece)[1:-1]
    yield f'", {_JSON.encode(sorted(document.labels.items()))}]\n'


def until(enough: Event, documents: Iterable[Document]) -> Iterator[Document]:
    """Yield documents until `enough` is set."""
    return takewhile(lambda _: not enough.is_set(), documents)


@dataclass
class _Reader:
    text_field: str
    label_fields: Sequence[str] | None
    report: CorpusReport
    seen_labels: set[str] = field(default_factory=set)  # label fields that some document had

    # ---- sources -----------------------------------------------------------------------------

    def path(self, path: Path, file_format: Format) -> Iterator[Document]:
        if not path.exists():
            raise CorpusError(f"corpus {str(path)!r} does not exist")
        if path.is_dir():
            return self._folder(path)
        kind = SUFFIXES.get(path.suffix.lower()) if file_format == "auto" else file_format
        if kind is None:
            raise CorpusError(f"corpus {str(path)!r} is {OTHER_TYPE}; rename it or name its format")
        return self._file(path, printable(path.name), kind)

    def stdin(self, file_format: Format) -> Iterator[Document]:
        if file_format == "parquet":
            raise InputError("file_format='parquet' cannot be read from standard input; use a file")
        return self._stdin(file_format)

    def _stdin(self, file_format: Format) -> Iterator[Document]:
        data = cast(io.BufferedIOBase, sys.stdin.buffer)
        beginning = data.read1(CHUNK_BYTES)
        while (
            file_format == "auto"
            and (codecs.BOM_UTF8.startswith(beginning) or not _content(beginning))
            and (more := data.read1(CHUNK_BYTES))
        ):
            beginning += more
        if file_format == "jsonl" or (file_format == "auto" and _content(beginning)[:1] == b"{"):
            yield from self._lines(_lines_from(beginning, data), "stdin")
        else:
            yield from self._text(chain([beginning], _chunks(data)), "stdin")

    def _folder(self, root: Path) -> Iterator[Document]:
        files = []
        for folder, folders, names in os.walk(root, onerror=self._unreadable):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for path in (Path(folder, name) for name in folders):
                if path.is_symlink():  # `os.walk` does not follow it
                    self.report.skip(LINKED, _name(path, root))
            files += [Path(folder, name) for name in names if not name.startswith(".")]
        for path in sorted(files, key=lambda path: path.relative_to(root).parts):
            name = _name(path, root)
            kind = SUFFIXES.get(path.suffix.lower())
            if kind is None:
                self.report.skip(OTHER_TYPE, name)
            else:
                yield from self._file(path, name, kind)

    def _unreadable(self, error: OSError) -> None:
        self.report.skip(UNREADABLE, printable(str(error.filename)), error.strerror or "")

    # ---- one file ----------------------------------------------------------------------------

    def _file(self, path: Path, name: str, kind: Format) -> Iterator[Document]:
        try:
            if kind == "parquet":
                yield from self._rows(path, name)
            elif kind == "jsonl":
                with path.open("rb") as lines:
                    yield from self._lines(lines, name)
            else:
                with path.open("rb") as file:
                    yield from self._text(_chunks(file), name)
        except OSError as error:
            self.report.skip(UNREADABLE, name, error.strerror or first_line(error))

    def _text(self, chunks: Iterable[bytes], name: str) -> Iterator[Document]:
        try:
            text = _decoded(chunks)
        except UnicodeDecodeError as error:
            self.report.skip(INVALID_UTF8, name, f"byte {error.start}")
            return
        yield from self._checked(name, text, {}, name)

    def _lines(self, lines: Iterable[bytes], name: str) -> Iterator[Document]:
        for number, line in enumerate(lines, 1):
            where = f"{name}:{number}"
            try:
                decoded = line.decode("utf-8-sig" if number == 1 else "utf-8")
                record = json.loads(decoded) if decoded.strip() else None
            except UnicodeDecodeError as error:
                self.report.skip(INVALID_UTF8, where, f"byte {error.start} of the line")
            except (ValueError, RecursionError) as error:
                self.report.skip(NOT_JSON, where, first_line(error))
            else:
                if isinstance(record, dict):
                    yield from self._record(record, where)
                elif decoded.strip():
                    self.report.skip(NOT_JSON, where, f"a {type(record).__name__}")

    def _rows(self, path: Path, name: str) -> Iterator[Document]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with path.open("rb") as file, pq.ParquetFile(file) as table:
                number = 0
                for batch in table.iter_batches(batch_size=1024):
                    columns = {
                        field.name: batch.column(index)
                        for index, field in enumerate(batch.schema)
                        if self._is_used(field)
                    }
                    for row in range(batch.num_rows):
                        number += 1
                        yield from self._row(columns, row, f"{name} row {number}")
        except pa.ArrowException as error:
            self.report.skip(UNREADABLE, name, first_line(error))

    def _row(self, columns: Mapping[str, Any], row: int, where: str) -> Iterator[Document]:
        try:
            record = {name: column[row].as_py() for name, column in columns.items()}
        except UnicodeDecodeError:
            self.report.skip(INVALID_UTF8, where)
        except (OverflowError, ValueError, KeyError) as error:  # a date after the year 9999
            self.report.skip(BAD_VALUE, where, first_line(error))
        else:
            yield from self._record(record, where)

    def _is_used(self, column: Any) -> bool:
        """Return whether an Arrow field is the text, or may be the id or a label."""
        if column.name == self.text_field or column.name in (self.label_fields or ()):
            return True
        return (self.label_fields is None or column.name == "id") and _may_be_label(column.type)

    # ---- one document ------------------------------------------------------------------------

    def _record(self, record: Mapping[str, Any], where: str) -> Iterator[Document]:
        if self.text_field not in record:
            self.report.skip(NO_FIELD, where, f"no {self.text_field!r}")
            return
        text, name = record[self.text_field], record.get("id")
        if not isinstance(text, str):
            self.report.skip(NOT_TEXT, where, f"a {type(text).__name__}")
            return
        document_id = str(name) if _is_label(name) else where
        yield from self._checked(document_id, text, self._labels(record), where)

    def _labels(self, record: Mapping[str, Any]) -> dict[str, str]:
        if self.label_fields is not None:
            self.seen_labels |= record.keys() & self.label_fields
            return {name: _label(record.get(name)) for name in self.label_fields}
        reserved = (self.text_field, *RESERVED)
        return {
            name: str(value)
            for name, value in record.items()
            if name not in reserved and _is_label(value)
        }

    def _checked(
        self, name: str, text: str, labels: Mapping[str, str], where: str
    ) -> Iterator[Document]:
        try:  # JSON can spell half of a surrogate pair, which no UTF-8 holds
            for part in (name, *_pieces(text), *labels, *labels.values()):
                part.encode()
        except UnicodeEncodeError:
            self.report.skip(INVALID_UTF8, where, "half of a surrogate pair")
            return
        if not text or text.isspace():
            self.report.skip(EMPTY, where)
            return
        self.report.documents += 1
        yield Document(name, text, labels, where)


def _not_empty(documents: Iterator[Document], source: str, reader: _Reader) -> Iterator[Document]:
    yield from documents
    if reader.report.documents == 0:
        why = reader.report.summary() or "it is empty"
        raise CorpusError(f"corpus {source!r} holds no document that can be scanned: {why}")
    for name in reader.label_fields or ():
        if name not in reader.seen_labels:
            reader.report.skip(NO_SUCH_LABEL, repr(name))


def printable(name: str) -> str:
    r"""Write the bytes of a file's name that are no UTF-8 as `\xff`."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _name(path: Path, root: Path) -> str:
    return printable(path.relative_to(root).as_posix())


def _content(beginning: bytes) -> bytes:
    """Drop a byte-order mark and white space from the beginning of a file."""
    return beginning.removeprefix(codecs.BOM_UTF8).lstrip()


def _chunks(file: io.BufferedIOBase) -> Iterator[bytes]:
    """Read a file or pipe chunk by chunk, each as soon as it is available."""
    return iter(lambda: file.read1(CHUNK_BYTES), b"")


def _lines_from(beginning: bytes, file: io.BufferedIOBase) -> Iterator[bytes]:
    """Yield the lines of a file or pipe whose beginning was read, each as soon as available."""
    whole = beginning.rfind(b"\n") + 1
    yield from io.BytesIO(beginning[:whole])
    if line := beginning[whole:] + file.readline():
        yield line
    yield from file


def _pieces(text: str) -> Iterator[str]:
    """Yield a text in pieces, so that encoding it never copies all of it at once."""
    return (text[start : start + CHUNK_BYTES] for start in range(0, len(text), CHUNK_BYTES))


def _decoded(chunks: Iterable[bytes]) -> str:
    """Decode UTF-8 and drop a byte-order mark; reading stops at the first invalid chunk.

    Raises:
        UnicodeDecodeError: its `start` counts from the first byte of the first chunk.
    """
    decoder, text, read = codecs.getincrementaldecoder("utf-8")(), io.StringIO(), 0
    for chunk in chain(chunks, [b""]):
        pending = len(decoder.getstate()[0])  # bytes of an incomplete character
        try:
            text.write(decoder.decode(chunk, final=not chunk))
        except UnicodeDecodeError as error:
            error.start += read - pending
            raise
        read += len(chunk)
    return text.getvalue().removeprefix("\ufeff")


def _is_label(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _may_be_label(kind: Any) -> bool:
    """Return whether the values of an Arrow type are strings or whole numbers."""
    from pyarrow import types

    kind = getattr(kind, "storage_type", kind)  # of an extension type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(text or types.is_integer(kind))


def _label(value: object) -> str:
    """Convert the value of a field in `label_fields`, of any type, to a label.

    None gives "", what JSON has other types for is written as JSON, a date as text.
    """
    if value is None:
        return ""
    if isinstance(value, int | float | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
