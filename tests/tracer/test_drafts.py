"""A corpus that is traced while it is still read: the store is that of one read before."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scan_workers import beside, shards

from densitrace import (
    AutoStrata,
    CorpusError,
    ScanError,
    Store,
    StoreError,
    Threshold,
    Tracer,
    open_store,
    scan,
)
from densitrace.tracer import layout
from densitrace.tracer.corpus import CorpusReport, Document, read_corpus
from densitrace.tracer.parts import Worker, failures_of
from densitrace.tracer.prefetch import NICENESS
from densitrace.tracer.progress import Meter
from densitrace.tracer.reading import Reading
from densitrace.tracer.run import Limits, Run
from densitrace.tracer.scan import encoder
from densitrace.tracer.spool import Spool
from densitrace.tracer.stored_plan import _same_windows
from densitrace.tracer.windows import Encode, Encoded, Plan, plan_windows

RULE = Threshold([0.2, 0.05, 0.01])
CONTEXT = 16
OPTIONS: dict[str, Any] = {"select": RULE, "context": CONTEXT, "batch_tokens": 1}
WRITE_PART = Store.write_part
SECONDS = 60.0  # to wait for another thread, should it never come


@pytest.fixture
def plain(byte_tracer: Tracer, corpus: Path, tmp_path: Path) -> Callable[..., Store]:
    """The scan of a corpus that is read before anything is traced."""

    def scanned(**options: Any) -> Store:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layout, "PART_VALUES", 2 * CONTEXT * len(RULE))
            patch.setattr(layout, "PARTS", 64)
            patch.setattr("densitrace.tracer.scan.read_corpus", read_corpus)
            patch.setattr(Store, "write_part", WRITE_PART)
            return scan(byte_tracer, corpus, tmp_path / "plain", **OPTIONS, **options)

    return scanned


@pytest.fixture
def short_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten windows, the first four make two parts of two, whatever comes; few are read ahead."""
    monkeypatch.setattr(layout, "PART_VALUES", 2 * CONTEXT * len(RULE))
    monkeypatch.setattr(layout, "PARTS", 2)
    monkeypatch.setattr("densitrace.tracer.windows.TOGETHER", 1)


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch, short_head: None) -> "Slowly":
    reader = Slowly()
    monkeypatch.setattr("densitrace.tracer.scan.read_corpus", reader)
    return reader


class Slowly:
    """Reads a corpus; its last document once it is told to."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.error: Exception | None = None  # in place of the last document

    def __call__(self, *given: Any, **about: Any) -> Iterator[Document]:
        *documents, last = read_corpus(*given, **about)
        yield from documents
        assert self.go_on.wait(SECONDS)
        if self.error is not None:
            raise self.error
        yield last


@pytest.fixture
def drafted(monkeypatch: pytest.MonkeyPatch, slowly: Slowly) -> list[int]:
    """The parts that were written before the whole corpus was read; it is once there are two."""
    found: list[int] = []

    def noted(store: Store, part: int, *given: Any) -> int:
        size = WRITE_PART(store, part, *given)
        if not slowly.go_on.is_set():
            found.append(part)
            if len(found) == 2:
                slowly.go_on.set()
        return size

    monkeypatch.setattr(Store, "write_part", noted)
    return found


# ---- the same store ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"edges": -1, "controls": ("random",)}])
def test_parts_are_traced_and_written_while_the_corpus_is_read(
    byte_tracer: Tracer,
    corpus: Path,
    tmp_path: Path,
    plain: Callable[..., Store],
    drafted: list[int],
    options: dict[str, Any],
) -> None:
    expected = plain(**options)
    store = scan(byte_tracer, corpus, tmp_path / "s", **OPTIONS, **options)
    assert drafted == [0, 1]
    assert store.complete
    assert shards(tmp_path / "s") == shards(tmp_path / "plain")
    again = open_store(tmp_path / "s")
    assert again.path == tmp_path / "s"
    assert again.recipe == expected.recipe
    assert again.documents.equals(expected.documents)
    assert again.attributes["label_fields"] == expected.attributes["label_fields"]
    assert again.attributes["corpus"] == expected.attributes["corpus"]
    assert again.attributes["corpus"]["documents"] == 6
    assert beside(tmp_path / "s") == []


class Phases(Meter):
    """What was told: each phase, the tokens that it begins with and those that it adds."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, int, int]] = []

    def begin(self, what: str, total: int | None, done: int = 0) -> None:
        self.what, self.done = what, done
        super().begin(what, total, done)

    def end(self) -> None:
        self.told.append((self.what, self.done, self.tokens))
        super().end()


@pytest.mark.usefixtures("drafted")
def test_every_token_is_told_of_once(byte_tracer: Tracer, corpus: Path, tmp_path: Path) -> None:
    phases = Phases()
    store = scan(byte_tracer, corpus, tmp_path / "s", progress=phases, **OPTIONS)
    tokens = len(store.tokens([]))
    assert sum(added for what, _, added in phases.told if what == "tracing") == tokens
    what, done, added = phases.told[-2]  # before the last tracing
    assert (what, done + added) == ("reading", tokens)


def test_several_workers_are_told_of_all_that_is_read(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, slowly: Slowly
) -> None:
    threading.Timer(0.5, slowly.go_on.set).start()
    phases = Phases()
    store = scan(
        byte_tracer, corpus, tmp_path / "s", worker=Worker(0, 2), progress=phases, **OPTIONS
    )
    (first, second), tokens = phases.told[:2], len(store.tokens([]))
    assert first[:2] == ("reading", 0)
    assert 0 < first[2] <= second[1] < tokens
    assert second == ("reading", second[1], tokens - second[1])


def test_a_small_corpus_is_read_in_one_phase(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path
) -> None:
    phases = Phases()
    store = scan(byte_tracer, corpus, tmp_path / "s", progress=phases, **OPTIONS)
    tokens = len(store.tokens([]))
    assert phases.told == [("reading", 0, tokens), ("tracing", 0, tokens)]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_reading_gives_way_to_tracing(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def reads(*given: Any, **about: Any) -> Iterator[Document]:
        found["reading"] = niceness()
        yield from read_corpus(*given, **about)

    def encodes(tracer: Tracer) -> Encode:
        def encode(texts: Sequence[str]) -> Sequence[Encoded]:
            found["tokenising"] = niceness()
            return encoder(tracer)(texts)

        return encode

    found: dict[str, int] = {}
    monkeypatch.setattr("densitrace.tracer.scan.read_corpus", reads)
    monkeypatch.setattr("densitrace.tracer.scan.encoder", encodes)
    before = niceness()
    scan(byte_tracer, corpus, tmp_path / "s", **OPTIONS)
    lowered = min(19, before + NICENESS)
    assert found == {"reading": lowered, "tokenising": lowered}
    assert niceness() == before


def test_a_bucket_receives_what_was_traced(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, plain: Callable[..., Store],
    drafted: list[int],
) -> None:  # fmt: skip
    expected = plain()
    scan(byte_tracer, corpus, f"memory://drafts/{tmp_path.name}", **OPTIONS)
    assert drafted == [0, 1]
    store = open_store(f"memory://drafts/{tmp_path.name}")
    assert store.complete
    assert store.tokens().equals(expected.tokens())


@pytest.mark.usefixtures("short_head")
def test_a_pilot_is_of_the_head_however_many_workers(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path
) -> None:
    options = OPTIONS | {"select": AutoStrata(len(RULE))}
    stores = [
        scan(byte_tracer, corpus, tmp_path / str(count), worker=Worker(0, count), **options)
        for count in (1, 2)
    ]
    head = [stores[0].token[window] for window in range(layout.head_windows(CONTEXT, len(RULE)))]
    ids = [row[row >= 0].tolist() for row in head]
    assert len(ids) == 4
    assert stores[0].rule == byte_tracer.choose_strata(AutoStrata(len(RULE)), ids)
    assert shards(tmp_path / "1") == shards(tmp_path / "2")


# ---- stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [0, 1, 2, 3])
def test_limits_count_what_is_traced_early(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, slowly: Slowly, parts: int
) -> None:
    threading.Timer(0.5, slowly.go_on.set).start()
    limits = Limits(max_parts=parts)
    store = scan(byte_tracer, corpus, tmp_path / "s", limits=limits, **OPTIONS)
    assert store.done_parts() == list(range(parts))


def test_who_is_asked_to_stop_leaves_the_part_and_plans(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, plain: Callable[..., Store], slowly: Slowly
) -> None:
    plain()
    batches = 0

    class AtTheThird(Meter):  # a part is done, the next one begun
        def advance(self, tokens: int) -> None:
            nonlocal batches
            if not asked.is_set() and not slowly.go_on.is_set() and self.tracing:
                batches += 1
                if batches == 3:
                    asked.set()
                    slowly.go_on.set()

        def begin(self, what: str, total: int | None, done: int = 0) -> None:
            self.tracing = what == "tracing"

    asked = threading.Event()
    limits = Limits(should_stop=asked.is_set)
    store = scan(
        byte_tracer, corpus, tmp_path / "s", limits=limits, progress=AtTheThird(), **OPTIONS
    )
    assert store.done_parts() == [0]
    assert store.n_parts == 5
    assert scan(byte_tracer, corpus, tmp_path / "s", **OPTIONS).complete
    assert shards(tmp_path / "s") == shards(tmp_path / "plain")


# ---- what is kept --------------------------------------------------------------------------------


@pytest.fixture
def kept(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, slowly: Slowly,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:  # fmt: skip
    """Where a store would be, had the disk not been full once a part was written."""
    written: list[int] = []

    def fills(store: Store, part: int, *given: Any) -> int:
        if written:
            slowly.go_on.set()  # nobody waits for the last document, but its thread
            raise StoreError("no space left")
        written.append(part)
        return WRITE_PART(store, part, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_part", fills)
        with pytest.raises(StoreError, match="no space left"):
            scan(byte_tracer, corpus, tmp_path / "s", **OPTIONS)
    assert written == [0]
    assert not (tmp_path / "s").exists()
    assert len(beside(tmp_path / "s")) == 1
    return tmp_path / "s"


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The parts that are traced."""
    found: list[int] = []
    trace = Run._trace

    def noted(run: Run, part: int) -> Any:
        found.append(part)
        return trace(run, part)

    monkeypatch.setattr(Run, "_trace", noted)
    return found


def test_parts_of_before_a_full_disk_are_gone_on_from(
    byte_tracer: Tracer, corpus: Path, plain: Callable[..., Store], kept: Path, traced: list[int]
) -> None:
    scan(byte_tracer, corpus, kept, **OPTIONS)
    assert traced == [1, 2, 3, 4]
    plain()
    assert shards(kept) == shards(kept.parent / "plain")
    assert beside(kept) == []


@pytest.mark.parametrize("damage", ["zarr.json", "plan/token/c.0", 0, 2])
def test_what_was_kept_of_something_else_is_not_used(
    byte_tracer: Tracer, corpus: Path, plain: Callable[..., Store], kept: Path, traced: list[int],
    damage: str | int,
) -> None:  # fmt: skip
    if isinstance(damage, int):  # a document whose 17th token is another, right after a window
        rows = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
        text = rows[damage]["text"]
        rows[damage]["text"] = f"{text[:15]}#{text[16:]}"
        corpus.write_text("\n".join(map(json.dumps, rows)))
    else:
        (kept.parent / beside(kept)[0] / "kept" / damage).write_bytes(b"{")
    scan(byte_tracer, corpus, kept, **OPTIONS)
    assert sorted(traced) == [0, 1, 2, 3, 4]
    plain()
    assert shards(kept) == shards(kept.parent / "plain")
    assert beside(kept) == []


def test_what_was_kept_of_another_recipe_is_not_used(
    byte_tracer: Tracer, corpus: Path, plain: Callable[..., Store], kept: Path, traced: list[int]
) -> None:
    scan(byte_tracer, corpus, kept, importance="norm_l2", **OPTIONS)
    assert traced == [0, 1, 2, 3, 4]
    plain(importance="norm_l2")
    assert shards(kept) == shards(kept.parent / "plain")


def test_what_another_user_kept_is_not_used(
    byte_tracer: Tracer, corpus: Path, kept: Path, traced: list[int]
) -> None:
    try:
        os.chown(kept.parent / beside(kept)[0], os.getuid() + 1, -1)
    except PermissionError:
        pytest.skip("only root gives folders away")
    scan(byte_tracer, corpus, kept, **OPTIONS)
    assert traced == [0, 1, 2, 3, 4]


def test_who_is_asked_to_stop_does_not_wait_for_a_long_corpus(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, plain: Callable[..., Store],
    slowly: Slowly, traced: list[int], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("densitrace.tracer.reading.GRACE_SECONDS", 0.1)
    monkeypatch.setattr("densitrace.tracer.reading.POLL_SECONDS", 0.05)

    def asked() -> bool:
        if len(traced) < 2:
            return False
        threading.Timer(1.0, slowly.go_on.set).start()  # long after
        return True

    with pytest.raises(StoreError, match="is not planned yet, as its corpus was not read"):
        scan(byte_tracer, corpus, tmp_path / "s", limits=Limits(should_stop=asked), **OPTIONS)
    assert not (tmp_path / "s").exists()
    scan(byte_tracer, corpus, tmp_path / "s", **OPTIONS)
    assert traced == [0, 1, 1, 2, 3, 4]
    plain()
    assert shards(tmp_path / "s") == shards(tmp_path / "plain")


def test_an_error_of_the_corpus_ends_tracing(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, slowly: Slowly, drafted: list[int]
) -> None:
    slowly.error = CorpusError("the tape is torn")
    with pytest.raises(CorpusError, match="the tape is torn"):
        scan(byte_tracer, corpus, tmp_path / "s", **OPTIONS)
    assert drafted
    assert not (tmp_path / "s").exists()
    assert beside(tmp_path / "s") == []


def test_an_error_of_tracing_ends_reading(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, slowly: Slowly,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def interrupted(run: Run, part: int) -> None:
        slowly.go_on.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "_trace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scan(byte_tracer, corpus, tmp_path / "s", **OPTIONS)
    assert not (tmp_path / "s").exists()
    assert beside(tmp_path / "s") == []


def test_a_part_that_fails_early_is_listed_by_the_store(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, drafted: list[int], slowly: Slowly,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    trace = Run._trace

    def failing(run: Run, part: int) -> Any:
        if part == 0:
            raise RuntimeError("out of luck")
        slowly.go_on.set()
        return trace(run, part)

    monkeypatch.setattr(Run, "_trace", failing)
    monkeypatch.setattr("densitrace.tracer.run.RETRY_SECONDS", (0.0,))
    with pytest.raises(ScanError, match=r"1 of 5 parts .* part 0 first: out of luck"):
        scan(byte_tracer, corpus, tmp_path / "s", **OPTIONS)
    store = open_store(tmp_path / "s")
    assert store.done_parts() == [1, 2, 3, 4]
    assert failures_of(store.storage) == {0: "out of luck"}


# ---- the head of a plan --------------------------------------------------------------------------


@given(st.integers(1, 4096), st.integers(1, 255), st.integers(0, 1 << 40))
def test_parts_of_a_head_are_those_of_the_whole(columns: int, strata: int, more: int) -> None:
    head = layout.head_windows(columns, strata)
    parts = layout.parts(columns, strata, head)
    assert layout.parts(columns, strata, head + more) == parts
    assert head == layout.PARTS * parts.windows


@pytest.mark.parametrize(
    ("lengths", "there"),
    [
        ([16, 5, 40, 1], True),  # windows of 16, 5, 16, 16, 8 and 1
        ([15, 5, 9, 1, 16], False),  # no window of the first four is whole
        ([16, 16, 15], False),  # the end comes before
    ],
)
def test_a_head_is_there_where_parts_are_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lengths: list[int], there: bool
) -> None:
    monkeypatch.setattr(layout, "PART_VALUES", 2 * CONTEXT)
    monkeypatch.setattr(layout, "PARTS", 2)
    texts = ["a" * length for length in lengths]
    documents = [Document(str(n), text, {}, "f") for n, text in enumerate(texts)]

    def encode(texts: Any) -> list[Encoded]:
        return [Encoded([ord(letter) for letter in text]) for text in texts]

    reading = Reading(Spool(tmp_path / "spool"), CONTEXT, 1)
    plan = reading.read(documents, encode, 128, CorpusReport())
    head = reading.head.result()
    assert (head is not None) == there
    if head is None:
        return
    assert head.documents is None
    assert head.n_windows == 4
    for window in range(4):
        assert head.ids(window) == plan.ids(window)
        assert head.next_token(window) == plan.next_token(window)
    for name in ("document", "window_start", "length"):
        np.testing.assert_array_equal(getattr(head, name), getattr(plan, name)[:4])


@pytest.mark.parametrize(
    ("texts", "same"),
    [
        (("abcd", "efgh", "    ix", "y"), True),  # what comes after does not matter
        (("abcd", "efghi", "jk"), False),  # a token follows in the document
        (("abcd", "ef gh", "    ijk"), False),  # in other places
        (("abcd", "efgx", "    ijk"), False),
        (("abc", "defg", "    ijk"), False),
    ],
)
def test_heads_that_are_the_same(tmp_path: Path, texts: Sequence[str], same: bool) -> None:
    def encode(texts: Sequence[str]) -> list[Encoded]:
        spans = [[(i, i + 1) for i, letter in enumerate(text) if letter != " "] for text in texts]
        return [
            Encoded([ord(text[start]) for start, _ in places], places)
            for text, places in zip(texts, spans, strict=True)
        ]

    def head(name: str, texts: Sequence[str]) -> Plan:
        documents = [Document(str(n), text, {}, "f") for n, text in enumerate(texts)]
        return plan_windows(documents, encode, 4, Spool(tmp_path / name)).head(2)

    there, here = head("there", ("abcd", "efgh", "    ijk")), head("here", texts)
    arrays = {"plan/first": there.first, "plan/token": there.tokens, "plan/span": there.spans}
    draft: Any = SimpleNamespace(
        owners=there.document,
        starts=there.window_start,
        lengths=there.length,
        array=arrays.__getitem__,
    )
    assert _same_windows(draft, here) == same
