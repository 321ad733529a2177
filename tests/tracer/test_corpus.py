"""A corpus as documents and windows: every kind of source, and what is skipped by name."""

import errno
import io
import json
import os
import tracemalloc
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densitrace import CorpusError, InputError
from densitrace.tracer import corpus
from densitrace.tracer.corpus import (
    CorpusReport,
    Document,
    Fingerprint,
    check_alone,
    read_corpus,
)
from densitrace.tracer.spool import Spool
from densitrace.tracer.windows import TOGETHER, TOGETHER_CHARACTERS, Encoded, Plan, plan_windows


def read(source: Path | str, **options: Any) -> tuple[list[Document], CorpusReport]:
    report = CorpusReport()
    documents = list(read_corpus(source, report=report, **options))
    return documents, report


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


# ---- sources -------------------------------------------------------------------------------------


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_bytes("\ufeffzwei\nZeilen ü".encode())
    documents, report = read(path)
    assert documents == [Document("one.txt", "zwei\nZeilen ü", {}, "one.txt")]
    assert (report.documents, report.skipped) == (1, {})


def test_jsonl_labels_are_all_other_strings_and_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    row = {"id": 7, "text": "t", "lang": "de", "year": 1800, "ok": True, "score": 0.5, "x": None}
    path.write_text(json.dumps(row) + "\n\n" + json.dumps({"text": "u", "lang": "en"}))
    documents, report = read(path)
    assert documents[0] == Document("7", "t", {"lang": "de", "year": "1800"}, "c.jsonl:1")
    assert documents[1] == Document("c.jsonl:3", "u", {"lang": "en"}, "c.jsonl:3")
    assert report.skipped == {}


def test_asked_fields(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    row = {"body": "t", "text": "other", "score": 0.5, "tags": ["ä"], "by": {"name": "ö"}}
    path.write_text(json.dumps(row))
    documents, _ = read(path, text_field="body", label_fields=["score", "tags", "by", "none"])
    assert documents[0].text == "t"
    assert documents[0].labels == {
        "score": "0.5",
        "tags": '["ä"]',
        "by": '{"name": "ö"}',
        "none": "",
    }
    documents, _ = read(path, text_field="body")
    assert documents[0].labels == {}  # `text` would pass for the document's own


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    columns = {"text": ["a", None, "", "d"], "lang": ["en", "de", "fr", None], "n": [1, 2, 3, 4]}
    pq.write_table(pa.table(columns), path)
    documents, report = read(path)
    assert [(d.id, d.text, d.labels) for d in documents] == [
        ("c.parquet row 1", "a", {"lang": "en", "n": "1"}),
        ("c.parquet row 4", "d", {"n": "4"}),
    ]
    assert report.examples == {
        "text is not a string": ["c.parquet row 2 (a NoneType)"],
        "empty text": ["c.parquet row 3"],
    }


def test_asked_fields_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    days = pa.array([[0, 1]], pa.list_(pa.date32()))
    pq.write_table(pa.table({"id": ["x"], "text": ["t"], "lang": ["en"], "days": days}), path)
    documents, _ = read(path, label_fields=["days"])
    assert [(d.id, d.labels) for d in documents] == [
        ("x", {"days": '["1970-01-01", "1970-01-02"]'})
    ]


@pytest.mark.parametrize(
    ("kind", "may_be"),
    [
        (pa.large_string(), True),
        (pa.string_view(), True),
        (SimpleNamespace(storage_type=pa.string()), True),  # an extension type
        (SimpleNamespace(storage_type=pa.binary()), False),
        (pa.dictionary(pa.int8(), pa.float32()), False),
    ],
)
def test_types_of_labels(kind: Any, may_be: bool) -> None:
    assert corpus._may_be_label(kind) == may_be


def test_parquet_with_invalid_utf8(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    text = pa.array([b"fine", b"\xff\xfe"]).view(pa.string())
    pq.write_table(pa.table({"text": text}), path)
    documents, report = read(path)
    assert [document.text for document in documents] == ["fine"]
    assert report.examples == {"invalid UTF-8": ["c.parquet row 2"]}


FAR = {
    "seconds": pa.array([10**14, 0], pa.timestamp("s")),
    "zone": pa.array([0, 0], pa.timestamp("s", "Mars/Base")),
    "day": pa.array([10**7, 0], pa.date32()),
    "span": pa.array([2**62, 0], pa.duration("s")),
    "nested": pa.array([[10**14], []], pa.list_(pa.timestamp("s"))),
}


def test_parquet_values_that_python_cannot_represent(tmp_path: Path) -> None:
    """They matter only where they are asked for; then the document is skipped by name."""
    path = tmp_path / "c.parquet"
    columns = {"text": ["a", "b"], "lang": pa.array(["en", "de"]).dictionary_encode()}
    pq.write_table(pa.table(columns | FAR), path)
    documents, report = read(path)
    assert [(d.text, d.labels) for d in documents] == [("a", {"lang": "en"}), ("b", {"lang": "de"})]
    assert report.skipped == {}
    documents, report = read(path, label_fields=["day", "lang"])
    assert [document.labels for document in documents] == [{"day": "1970-01-01", "lang": "de"}]
    kind = "holds a value that Python cannot represent"
    assert report.examples == {kind: ["c.parquet row 1 (date value out of range)"]}
    for name in FAR:
        with pytest.raises(CorpusError, match=f"{kind}, first c.parquet row 1|not a string"):
            read(path, text_field=name)


def test_parquet_with_repeated_columns(tmp_path: Path) -> None:
    """The last one counts, as in JSON."""
    names = ["text", "x", "x", "text"]
    pq.write_table(pa.table([[name] for name in "abcd"], names=names), tmp_path / "c.parquet")
    (tmp_path / "d.jsonl").write_text('{"text": "a", "x": "b", "x": "c", "text": "d"}')
    documents, _ = read(tmp_path)
    assert [(document.text, document.labels) for document in documents] == [("d", {"x": "c"})] * 2


def test_names_that_are_no_utf8_can_be_printed(tmp_path: Path) -> None:
    names = (b"\xe9.txt", b"\xe9.csv", b"\xe9.jsonl", b"\xe9.parquet")
    try:
        for name in names:
            Path(tmp_path, os.fsdecode(name)).write_text("a")
    except OSError as error:
        pytest.skip(f"no such names here: {error}")
    pq.write_table(pa.table({"text": ["b"]}), tmp_path / "b.parquet")
    (tmp_path / "b.parquet").rename(tmp_path / os.fsdecode(names[-1]))
    documents, report = read(tmp_path)
    assert [document.id for document in documents] == ["\\xe9.parquet row 1", "\\xe9.txt"]
    assert report.examples["neither .txt, .jsonl nor .parquet"] == ["\\xe9.csv"]
    assert report.examples["does not parse as a JSON object"][0].startswith("\\xe9.jsonl:1 (")
    documents, _ = read(tmp_path / os.fsdecode(names[0]))
    assert documents[0].source == "\\xe9.txt"


def test_links_to_folders_are_named(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    (root / "b").mkdir(parents=True)
    (root / "b" / "c.txt").write_text("c")
    (root / "a").symlink_to(root / "b")
    (root / "b" / "up").symlink_to(root)
    documents, report = read(root)
    assert [document.id for document in documents] == ["b/c.txt"]
    assert report.examples == {"link to a folder, not followed": ["a", "b/up"]}


def test_a_folder_is_read_in_order_and_mixed(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "b" / "z.txt").write_text("in b")
    (tmp_path / "a.txt").write_text("in a")
    (tmp_path / "c.jsonl").write_text('{"text": "in c"}')
    (tmp_path / "notes.md").write_text("# notes")
    (tmp_path / ".hidden" / "x.txt").write_text("hidden")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nowhere.txt")
    pq.write_table(pa.table({"text": ["in d"]}), tmp_path / "d.parquet")
    (tmp_path / "e.parquet").write_bytes(b"no parquet")
    documents, report = read(tmp_path)
    assert [document.id for document in documents] == [
        "a.txt",
        "b/z.txt",
        "c.jsonl:1",
        "d.parquet row 1",
    ]
    assert report.skipped == {"cannot be read": 2, "neither .txt, .jsonl nor .parquet": 1}
    assert report.examples["cannot be read"][0] == "broken.txt (No such file or directory)"
    assert report.examples["cannot be read"][1].startswith("e.parquet (")


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by root, who may read all."""
    scandir = os.scandir

    def denied(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    (tmp_path / "closed").mkdir()
    (tmp_path / "open.txt").write_text("a")
    monkeypatch.setattr(os, "scandir", denied)
    documents, report = read(tmp_path)
    assert [document.id for document in documents] == ["open.txt"]
    assert report.examples == {"cannot be read": [f"{tmp_path / 'closed'} (Permission denied)"]}


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    path = tmp_path / "C.JSONL"
    path.write_text('{"text": "a"}')
    for source in (path, tmp_path):
        documents, _ = read(source)
        assert documents == [Document("C.JSONL:1", "a", {}, "C.JSONL:1")]


@pytest.mark.parametrize(
    ("data", "options", "ids"),
    [
        (b"plain\ntext", {}, ["stdin"]),
        (b'\n {"text": "a"}\n{"text": "b"}\n', {}, ["stdin:2", "stdin:3"]),
        (b'{"text": "a"}', {"file_format": "txt"}, ["stdin"]),
        (b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n', {}, ["stdin:1", "stdin:2"]),
        (b"\xef\xbb\xbfplain", {}, ["stdin"]),
    ],
)
def test_standard_input(
    monkeypatch: pytest.MonkeyPatch, data: bytes, options: dict[str, str], ids: list[str]
) -> None:
    stdin(monkeypatch, data)
    documents, _ = read("-", **options)
    assert [document.id for document in documents] == ids


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[IO[bytes]]:
    """What is written to it, standard input is; it ends when this is closed."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as input_, os.fdopen(writing, "wb", buffering=0) as output:
        monkeypatch.setattr("sys.stdin", input_)
        yield output


def test_lines_come_from_standard_input_while_it_is_written(pipe: IO[bytes]) -> None:
    documents = read_corpus("-")
    pipe.write(b'\n{"text": "a"}\n{"te')
    assert next(documents) == Document("stdin:2", "a", {}, "stdin:2")
    pipe.write(b'xt": "b"}\n')
    assert next(documents) == Document("stdin:3", "b", {}, "stdin:3")
    pipe.close()
    assert list(documents) == []


def test_a_byte_order_mark_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "CHUNK_BYTES", 1)
    stdin(monkeypatch, b'\xef\xbb\xbf\n{"text": "a"}\n')
    documents, _ = read("-")
    assert documents == [Document("stdin:2", "a", {}, "stdin:2")]


def test_nothing_is_read_behind_what_is_no_text(pipe: IO[bytes]) -> None:
    pipe.write(b"abc\xff")
    with pytest.raises(CorpusError, match=r"1 skipped: invalid UTF-8, first stdin \(byte 3\)"):
        list(read_corpus("-"))


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 100])
def test_texts_are_the_same_in_chunks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chunk: int
) -> None:
    monkeypatch.setattr(corpus, "CHUNK_BYTES", chunk)
    text = '\ufeffsay "zwei"\r\nZeilen ü\x00 天😀\ufeff\\ \n'
    files = {
        "a.txt": text.encode(),
        "b.txt": b"caf\xc3",  # ends within a character
        "c.txt": "天😀".encode() + b"\xa0 ",
        "d.txt": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    documents, report = read(tmp_path)
    assert documents == [Document("a.txt", text[1:], {}, "a.txt")]
    assert report.examples == {
        "invalid UTF-8": ["b.txt (byte 3)", "c.txt (byte 7)"],
        "empty text": ["d.txt"],
    }
    item = json.dumps(["a.txt", text[1:], []], ensure_ascii=False) + "\n"
    assert Fingerprint(documents).hex() == sha256(item.encode()).hexdigest()


def test_a_text_is_held_twice_at_most(tmp_path: Path) -> None:
    size = 1 << 24
    (tmp_path / "c.txt").write_bytes(b"To be, or not to" * (size // 16))
    tracemalloc.start()
    Fingerprint(read_corpus(tmp_path / "c.txt")).hex()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2.5 * size


def test_standard_input_is_for_one_process() -> None:
    check_alone("-", alone=True)
    check_alone("c.txt", alone=False)
    with pytest.raises(InputError, match=r"'-' .* one process alone, .*: write it to a file"):
        check_alone("-", alone=False)


# ---- what is skipped -----------------------------------------------------------------------------


def test_bad_lines_are_skipped_counted_and_named(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    lines = [
        b'{"text": "good"}',
        b"{broken",
        b'{"body": "x"}',
        b'{"text": 3}',
        b'{"text": "\xff"}',
        b'{"text": "  "}',
        b'["text"]',
        b"[" * 100_000,
        b'{"text": "half \\ud800"}',
        b'{"text": "also good"}',
    ]
    path.write_bytes(b"\n".join(lines))
    documents, report = read(path)
    assert [document.text for document in documents] == ["good", "also good"]
    assert report.documents == 2
    assert report.skipped == {
        "does not parse as a JSON object": 3,
        "lacks the text field": 1,
        "text is not a string": 1,
        "invalid UTF-8": 2,
        "empty text": 1,
    }
    named = report.examples
    assert named["lacks the text field"] == ["c.jsonl:3 (no 'text')"]
    assert named["empty text"] == ["c.jsonl:6"]
    numbers = [example.split(" ")[0] for example in named["does not parse as a JSON object"]]
    assert numbers == ["c.jsonl:2", "c.jsonl:7", "c.jsonl:8"]
    assert "1 skipped: empty text, first c.jsonl:6" in report.summary()


@pytest.mark.parametrize("field", ['"id": "{}"', '"by": "{}"', '"{}": "x"'])
def test_half_a_surrogate_pair_beside_the_text(tmp_path: Path, field: str) -> None:
    path = tmp_path / "c.jsonl"
    lines = (f'{{"text": "a", {field.format(half)}}}\n' for half in ("\\ud83d", "\\ud83d\\ude00"))
    path.write_text("".join(lines))
    documents, report = read(path)
    assert [document.source for document in documents] == ["c.jsonl:2"]
    assert report.examples == {"invalid UTF-8": ["c.jsonl:1 (half of a surrogate pair)"]}


def test_only_the_first_of_a_kind_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("x\n" * 9 + '{"text": "good"}')
    _, report = read(path)
    kind = "does not parse as a JSON object"
    assert report.skipped[kind] == 9
    assert [example.split(" ")[0] for example in report.examples[kind]] == [
        "c.jsonl:1",
        "c.jsonl:2",
        "c.jsonl:3",
    ]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("missing.txt", None, "does not exist"),
        ("c.csv", b"text\nx", "neither .txt, .jsonl nor .parquet"),
        ("c.txt", b"", "holds no document"),
        ("c.txt", b"\xff\xfe", "1 skipped: invalid UTF-8, first c.txt"),
        ("c.jsonl", b"{}\n{}", "2 skipped: lacks the text field, first c.jsonl:1"),
    ],
)
def test_a_corpus_without_a_document(
    tmp_path: Path, name: str, data: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(CorpusError, match=message) as caught:
        read(path)
    assert name in str(caught.value)


def test_labels_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="label field 'id'"):
        read(tmp_path, label_fields=["id"])
    with pytest.raises(InputError, match="label field 'body' is the document's own body"):
        read(tmp_path, text_field="body", label_fields=["body"])
    with pytest.raises(InputError, match="file_format='csv'"):
        read(tmp_path, file_format="csv")
    with pytest.raises(InputError, match="'parquet' cannot be read from standard input"):
        read("-", file_format="parquet")


def test_label_fields_that_are_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "a", "domain": "x", "by": null}\n{"text": "b"}\n', encoding="utf-8")
    report = CorpusReport()
    list(read_corpus(path, label_fields=["domain", "domian", "by"], report=report))
    assert report.summary() == "1 skipped: label field that no document has, first 'domian'"
    with pytest.raises(InputError, match="label_fields='domain' is one name"):
        read_corpus(path, label_fields="domain")


def test_fingerprint_sees_ids_texts_labels_and_order() -> None:
    one, two = Document("a", "b", {"l": "x"}, "f:1"), Document("b", "c", {}, "f:2")
    base = Fingerprint([one, two]).hex()
    assert base == Fingerprint([one, Document("b", "c", {}, "moved elsewhere")]).hex()
    labels = {"l": "x", "k": "y"}
    turned = dict(reversed(labels.items()))
    ours, theirs = (Fingerprint([Document("a", "b", each, "")]).hex() for each in (labels, turned))
    assert ours == theirs
    others = [
        [two, one],
        [one],
        [Document("ab", "", {"l": "x"}, ""), two],
        [Document("a", "b", {"l": "y"}, ""), two],
        [Document("a", "b", {"m": "x"}, ""), two],
    ]
    assert len({base, *(Fingerprint(other).hex() for other in others)}) == 1 + len(others)


# ---- windows -------------------------------------------------------------------------------------


def encode(text: str) -> Encoded:
    """BOS (0), then one token a letter; nothing at all for "-"."""
    if text == "-":
        return Encoded([])
    ids = [0, *(ord(letter) - ord("a") + 1 for letter in text)]
    return Encoded(ids, [(0, 0), *((i, i + 1) for i in range(len(text)))])


def encode_all(texts: Sequence[str]) -> list[Encoded]:
    return [encode(text) for text in texts]


def planned(*texts: str, context: int = 3) -> tuple[Plan, CorpusReport]:
    report = CorpusReport(documents=len(texts))
    documents = [Document(str(i), text, {"n": str(i)}, f"f:{i}") for i, text in enumerate(texts)]
    with TemporaryDirectory() as folder:
        spool = Spool(Path(folder) / "spool")
        plan = plan_windows(documents, encode_all, context, spool, vocab_size=27, report=report)
    return plan, report


def test_windows_of_a_document() -> None:
    plan, _ = planned("abcdef", "a")
    assert [plan.ids(window) for window in range(plan.n_windows)] == [
        [0, 1, 2],
        [3, 4, 5],
        [6],
        [0, 1],
    ]
    assert [plan.next_token(window) for window in range(4)] == [3, 6, -1, -1]
    np.testing.assert_array_equal(plan.document, [0, 0, 0, 1])
    np.testing.assert_array_equal(plan.window_start, [0, 3, 6, 0])
    np.testing.assert_array_equal(plan.spans[plan.token_range(1)], [[2, 3], [3, 4], [4, 5]])
    assert plan.longest == 3


def test_every_token_is_in_one_window() -> None:
    texts = ["abc" * n for n in range(1, 9)]
    for context in (1, 2, 5, 7, 100):
        plan, _ = planned(*texts, context=context)
        ids = [token for window in range(plan.n_windows) for token in plan.ids(window)]
        assert ids == [token for text in texts for token in encode(text).ids]
        assert plan.length.max() <= context


def test_a_document_without_tokens_is_skipped_by_name() -> None:
    plan, report = planned("ab", "-")
    assert plan.n_windows == 1
    assert report.documents == 1
    assert report.examples == {"the tokenizer makes no token of it": ["f:1"]}
    with pytest.raises(CorpusError, match="holds no token"):
        planned("-")


def test_windows_that_cannot_be() -> None:
    with pytest.raises(InputError, match="context=0"):
        planned("ab", context=0)
    with pytest.raises(InputError, match=r"token id 27 \(in f:1\) .* 0\.\.26"):
        planned("ab", "a{")  # "{" comes after "z"
    with pytest.raises(InputError, match=r"token id -1 \(in f:1\)"):
        planned("ab", "a_")  # two before "a"


def test_documents_come_back_from_the_spool(tmp_path: Path) -> None:
    texts = ["a\nb\r\n", "\u2028\x85 \x1e", "é\x00 😀", "{}"]
    documents = [Document(str(i), text, {f"l{i}": text}, "f") for i, text in enumerate(texts)]
    with Spool(tmp_path / "spool") as spool:
        for size, document in enumerate(documents, 1):
            spool.add(document, np.full(size, size, np.int32), np.full((size, 2), -1, np.int32))
    assert list(spool) == list(spool) == documents
    assert len(spool) == 4
    assert spool.label_fields == ["l0", "l1", "l2", "l3"]
    np.testing.assert_array_equal(spool.sizes, [1, 2, 3, 4])
    np.testing.assert_array_equal(spool.tokens, [1, 2, 2, 3, 3, 3, 4, 4, 4, 4])
    assert spool.spans.shape == (10, 2)


def test_the_tokenizer_is_given_few_documents_at_once(tmp_path: Path) -> None:
    seen: list[Sequence[str]] = []

    def watched(texts: Sequence[str]) -> list[Encoded]:
        seen.append(texts)
        return encode_all(texts)

    texts = ["a"] * (TOGETHER + 1) + ["b" * TOGETHER_CHARACTERS, "c", "d"]
    documents = [Document(str(i), text, {}, "f") for i, text in enumerate(texts)]
    plan = plan_windows(documents, watched, 9, Spool(tmp_path / "spool"))
    assert [len(together) for together in seen] == [TOGETHER, 1, 1, 2]
    assert [text for together in seen for text in together] == texts
    assert plan.length.sum() == sum(len(text) + 1 for text in texts)


def test_planning_holds_a_few_bytes_a_token(tmp_path: Path) -> None:
    """However many tokens there are: neither they nor the texts stay in memory."""

    def peak(documents: int) -> int:
        source = (Document(str(i), "abcde" * 40, {"l": "x"}, "f") for i in range(documents))
        tracemalloc.start()
        plan_windows(source, encode_all, 128, Spool(tmp_path / str(documents)))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    few, many = 1024, 4096
    assert (peak(many) - peak(few)) / (201 * (many - few)) < 1
