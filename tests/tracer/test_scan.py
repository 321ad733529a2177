"""A scan: what it stores is what `trace` says, in any batches, after any interruption."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from byte_model import BYTES, byte_model, byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model

from densitrace import (
    AutoStrata,
    InputError,
    ScanError,
    Size,
    Store,
    StoreError,
    Threshold,
    Trace,
    Tracer,
    open_store,
    scan,
)
from densitrace.tracer import layout
from densitrace.tracer.corpus import Document, read_corpus
from densitrace.tracer.models import Block
from densitrace.tracer.parts import Claim, Worker, claims_of, failures_of
from densitrace.tracer.progress import Meter
from densitrace.tracer.run import Limits
from densitrace.tracer.sizes import by_quartile
from densitrace.tracer.storage import Folder
from densitrace.tracer.windows import Plan, batches, consecutive_batches, joined, spread

RULE = Threshold([0.2, 0.05, 0.01])
CONTEXT = 16
SECONDS = 60.0  # to wait for another thread, should it never come
Snapshot = Callable[[Path], dict[str, bytes]]


def windows_of(tracer: Tracer, store: Store) -> list[tuple[list[int], int]]:
    """Ids and next token of every window, from the texts alone."""
    found = []
    for text in store.documents["text"]:
        ids = tracer.encode(text)
        for start in range(0, len(ids), CONTEXT):
            end = start + CONTEXT
            found.append((ids[start:end], ids[end] if end < len(ids) else -1))
    return found


def assert_row(store: Store, window: int, trace: Trace) -> None:
    """A window of the store holds a trace, to float32 rounding."""
    n = len(trace.tokens)
    np.testing.assert_array_equal(store.token[window, :n], trace.tokens)
    np.testing.assert_array_equal(store.full_edge_count[window, :n], trace.full_edge_count)
    for name in ("size", "surprisal", "model_entropy"):
        np.testing.assert_allclose(store.array(name)[window, :n], getattr(trace, name), atol=1e-5)
    for name, values in trace.errors.items():
        np.testing.assert_allclose(store.array(name)[window, :n], values, atol=1e-5)
    topology = by_quartile(torch.from_numpy(trace.topology))
    np.testing.assert_array_equal(store.topology[window, :n], topology)


def contents(snapshot: Mapping[str, bytes]) -> dict[str, bytes]:
    """The chunks of all arrays: everything but attributes and what a killed write left."""
    return {
        name: data
        for name, data in snapshot.items()
        if "/c." in name and not name.endswith(".partial")
    }


# ---- content -------------------------------------------------------------------------------------


def test_a_store_holds_what_trace_says(byte_tracer: Tracer, corpus: Path, tmp_path: Path) -> None:
    controls = ("inverse", "random")
    store = scan(
        byte_tracer, corpus, tmp_path / "s", select=RULE, context=CONTEXT, controls=controls
    )
    windows = windows_of(byte_tracer, store)
    assert len(windows) == store.n_windows == 10
    for window, (ids, following) in enumerate(windows):
        trace = byte_tracer.trace(ids, select=RULE, controls=controls, next_token=[following])
        assert isinstance(trace, Trace)
        assert_row(store, window, trace)


def test_the_last_loss_of_a_window_looks_at_the_next_one(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path
) -> None:
    store = scan(byte_tracer, corpus, tmp_path / "s", select=RULE, context=CONTEXT)
    surprisal, token = store.surprisal[:], store.token[:]
    document = store.document[:]
    for window in range(store.n_windows):
        last = int((token[window] >= 0).sum()) - 1
        ends = window + 1 == store.n_windows or document[window + 1] != document[window]
        assert np.isnan(surprisal[window, last]) == ends
        assert np.isfinite(surprisal[window, :last]).all()


@pytest.mark.parametrize("select", [RULE, Size([0.2, 0.5])])
def test_scope_output_traces_every_position(
    byte_tracer: Tracer, tmp_path: Path, select: Threshold | Size
) -> None:
    path = tmp_path / "c.txt"
    path.write_text("abcde")
    store = scan(byte_tracer, path, tmp_path / "s", select=select, scope="output", context=4)
    assert store.attributes["scope"] == "output"
    ids = byte_tracer.encode("abcde")
    for window, (start, end) in enumerate(((0, 4), (4, 6))):
        for output in range(end - start):
            trace = byte_tracer.trace(ids[start:end], select=select, scope="output", output=output)
            assert isinstance(trace, Trace)
            np.testing.assert_allclose(store.size[window, output], trace.size[0])
            np.testing.assert_allclose(store.tv[window, output], trace.errors["tv"][0], atol=1e-6)
    assert np.isfinite(store.surprisal[0, 3])
    assert np.isnan(store.surprisal[1, 1])


def test_batches_do_not_matter(byte_tracer: Tracer, corpus: Path, tmp_path: Path) -> None:
    stores = [
        scan(
            byte_tracer,
            corpus,
            tmp_path / f"s{size}",
            select=RULE,
            context=CONTEXT,
            batch_tokens=size,
        )
        for size in (1, 40, 10_000)
    ]
    for name in ("size", "topology", "token", "full_edge_count"):
        for other in stores[1:]:
            np.testing.assert_array_equal(stores[0].array(name)[:], other.array(name)[:])
    for name in ("tv", "kl", "loss", "surprisal"):
        for other in stores[1:]:
            np.testing.assert_allclose(stores[0].array(name)[:], other.array(name)[:], atol=1e-5)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=30),
    st.integers(1, 120),
    st.sampled_from([0.0, 0.05, 0.5, np.inf]),
)
def test_batches_hold_each_window_once_and_stay_small(
    lengths: list[int], tokens: int, padding: float
) -> None:
    array = np.array(lengths, dtype=np.int32)
    groups = batches(array, tokens, padding)
    assert sorted(window for group in groups for window in group) == list(range(len(lengths)))
    for group in groups:
        padded = len(group) * array[group].max()
        assert len(group) == 1 or padded <= tokens
        assert padded <= (1 + padding) * array[group].sum()
    together = batches(array, tokens, np.inf)
    assert len(together) <= len(groups)
    # Of groups that are joined, each run of rows is one of them again.
    for joint in joined(groups, array, 3 * tokens):
        within = [joint[run] for run in consecutive_batches(array[joint], tokens, padding)]
        assert within == groups[: len(within)]
        groups = groups[len(within) :]
    assert not groups


def test_batches_may_be_full() -> None:
    lengths = np.array([4, 4], dtype=np.int32)
    assert batches(lengths, 8) == joined([[0], [1]], lengths, 8) == [[0, 1]]
    assert batches(lengths, 7) == joined([[0], [1]], lengths, 7) == [[0], [1]]


@pytest.mark.parametrize(
    ("lengths", "tokens", "windows"),
    [([10] * 10, 30, [0, 4, 9]), ([10] * 3, 100, [0, 1, 2]), ([5000] * 3, 2048, [0])],
)
def test_a_pilot_is_spread(lengths: list[int], tokens: int, windows: list[int]) -> None:
    assert spread(np.array(lengths), tokens).tolist() == windows


def test_two_scans_give_the_same_bytes(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    options: dict[str, Any] = {"select": AutoStrata(3), "context": CONTEXT}
    one, two = (
        scan(byte_tracer, corpus, tmp_path / name, controls=("random",), **options) for name in "ab"
    )
    assert contents(snapshot(Path(one.path))) == contents(snapshot(Path(two.path)))
    assert one.rule == two.rule


# ---- parts and resuming --------------------------------------------------------------------------


class Stop(Exception):
    """The end of a test's patience."""


class StopAfter(Meter):
    """Raises once so many batches were traced."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left, self.phase = batches, ""

    def begin(self, what: str, total: int | None, done: int = 0) -> None:
        super().begin(what, total, done)
        self.phase = what

    def advance(self, tokens: int) -> None:
        super().advance(tokens)
        if self.phase == "tracing":
            self.left -= 1
            if self.left == 0:
                raise Stop


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of two windows."""
    monkeypatch.setattr(layout, "PART_VALUES", 2 * CONTEXT * len(RULE))


@pytest.mark.usefixtures("small_parts")
def test_an_incomplete_store_shows_what_is_done(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    options: dict[str, Any] = {"select": RULE, "context": CONTEXT, "batch_tokens": 1}
    with pytest.raises(Stop):
        scan(byte_tracer, corpus, path, progress=StopAfter(5), **options)
    store = open_store(path)
    assert (store.n_parts, store.done_parts(), store.complete) == (5, [0, 1], False)
    assert sorted(set(store.tokens()["window"])) == [0, 1, 2, 3]
    assert (store.token[:][4:] == -1).all()
    assert np.isfinite(store.stratum_means()["tv"]).all()

    meter = Meter()
    scan(byte_tracer, corpus, path, progress=meter, **options)
    assert store.complete
    whole = scan(byte_tracer, corpus, tmp_path / "whole", **options)
    assert meter.tokens == (whole.token[:][4:] >= 0).sum()
    assert store.tokens().equals(whole.tokens())


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Those that would be written: nothing else is put as a part is traced."""
    found: list[int] = []

    def noted(storage: Folder, key: str, data: bytes) -> None:
        claim = Claim.of(data)
        assert key.startswith("part_done/claim.") and claim is not None
        found.append(claim.beat)

    monkeypatch.setattr(Folder, "put", noted)
    return found


WITHIN: dict[str, dict[str, Any]] = {
    "live": {},
    "frozen": {"attention": "frozen", "controls": ("inverse", "random")},
    "output": {"scope": "output", "edges": -1, "batch_tokens": 16},
}


@pytest.mark.parametrize("offload", [None, "layers"])
@pytest.mark.parametrize("options", WITHIN.values(), ids=WITHIN)
def test_a_worker_tells_within_a_batch_that_it_gets_on(
    byte_folder: Path,
    corpus: Path,
    tmp_path: Path,
    beats: list[int],
    options: dict[str, Any],
    offload: Literal["layers"] | None,
) -> None:
    """At every half of a block: the first batch may take longer than a lease."""
    tracer = Tracer.from_pretrained(byte_folder, device="cpu", offload=offload)
    options = options | {"select": RULE, "context": CONTEXT, "progress": StopAfter(1)}
    with pytest.raises(Stop):
        scan(tracer, corpus, tmp_path / "s", lease_seconds=1e-9, **options)
    assert len(beats) >= 2 * tracer.n_layers
    assert beats == list(range(1, len(beats) + 1))


def test_a_worker_seldom_tells_that_it_gets_on(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, beats: list[int]
) -> None:
    scan(byte_tracer, corpus, tmp_path / "s", select=RULE, context=CONTEXT)
    assert beats == []


def test_a_worker_that_hangs_within_a_batch_does_not_tell(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    beats: list[int],
) -> None:  # fmt: skip
    mlp, told, hangs, go_on = Block.mlp, 0, threading.Event(), threading.Event()

    def hanging(block: Block, rows: torch.Tensor) -> torch.Tensor:
        nonlocal told
        if block is byte_tracer._decoder.blocks[1] and not hangs.is_set():
            told = len(beats)
            hangs.set()
            assert go_on.wait(SECONDS)
        return mlp(block, rows)

    monkeypatch.setattr(Block, "mlp", hanging)
    options: dict[str, Any] = {"select": RULE, "context": CONTEXT, "lease_seconds": 1e-9}
    with ThreadPoolExecutor(1) as worker:
        scanned = worker.submit(scan, byte_tracer, corpus, tmp_path / "s", **options)
        assert hangs.wait(SECONDS)
        try:
            time.sleep(0.3)  # many leases
            assert 0 < told == len(beats)
        finally:
            go_on.set()
        assert scanned.result().complete


class Told(Meter):
    """Tells when so many batches were traced."""

    def __init__(self, batches: int = 1) -> None:
        super().__init__()
        self.left, self.traced = batches, threading.Event()

    def advance(self, tokens: int) -> None:
        super().advance(tokens)
        self.left -= 1
        if self.left == 0:
            self.traced.set()


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("broken", [False, True])
def test_tracing_goes_on_while_the_corpus_is_read_again(
    byte_tracer: Tracer,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: bool,
) -> None:
    options: dict[str, Any] = {"select": RULE, "context": CONTEXT, "batch_tokens": 1}
    store = scan(byte_tracer, corpus, tmp_path / "s", limits=Limits(max_parts=1), **options)
    meter = Told()

    def slowly(*given: Any, **about: Any) -> Iterator[Document]:
        documents = list(read_corpus(*given, **about))
        yield from documents[:-1]
        assert meter.traced.wait(SECONDS)  # before the corpus is known to be the same,
        assert store.done_parts() == [0]  # and nothing is written until it is
        yield replace(documents[-1], text="another") if broken else documents[-1]

    monkeypatch.setattr("densitrace.tracer.scan.read_corpus", slowly)
    if broken:
        with pytest.raises(StoreError, match=r"corpus is .* there, .* here"):
            scan(byte_tracer, corpus, tmp_path / "s", progress=meter, **options)
        assert store.done_parts() == [0]
    else:
        assert scan(byte_tracer, corpus, tmp_path / "s", progress=meter, **options).complete


@pytest.mark.usefixtures("small_parts")
def test_a_part_is_read_while_the_one_before_is_traced(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = [threading.Event() for _ in range(5)]
    plan, trace = Store.plan, Tracer.trace_batches

    def noted(store: Store, part: int) -> Plan:
        read[part].set()
        return plan(store, part)

    traced = 0

    def waiting(*given: Any, **options: Any) -> Iterator[list[Trace]]:
        nonlocal traced
        traced += 1
        assert all(event.wait(SECONDS) for event in read[: traced + 1])
        assert not any(event.is_set() for event in read[traced + 1 :])
        yield from trace(*given, **options)

    monkeypatch.setattr(Store, "plan", noted)
    monkeypatch.setattr(Tracer, "trace_batches", waiting)
    store = scan(byte_tracer, corpus, tmp_path / "s", select=RULE, context=CONTEXT)
    assert store.complete and traced == store.n_parts == len(read)


@pytest.mark.usefixtures("small_parts")
def test_a_worker_reads_no_part_of_another(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, plan = set(), Store.plan

    def noted(store: Store, part: int) -> Plan:
        read.add(part)
        return plan(store, part)

    monkeypatch.setattr(Store, "plan", noted)
    options: dict[str, Any] = {"worker": Worker(0, 2), "limits": Limits(max_parts=2)}
    store = scan(byte_tracer, corpus, tmp_path / "s", select=RULE, context=CONTEXT, **options)
    assert store.done_parts() == [0, 2]
    assert read == {0, 2, 4}


@pytest.mark.usefixtures("small_parts")
def test_who_stops_does_not_wait_for_the_corpus(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"select": RULE, "context": CONTEXT, "batch_tokens": 1}
    scan(byte_tracer, corpus, tmp_path / "s", limits=Limits(max_parts=1), **options)
    document, taken = next(read_corpus(corpus)), 0

    def endless(*_: Any, **__: Any) -> Iterator[Document]:
        nonlocal taken
        while True:
            taken += 1
            yield document

    monkeypatch.setattr("densitrace.tracer.scan.read_corpus", endless)
    meter = Told(3)  # a part waits to be written, the next is begun
    stop = Limits(should_stop=meter.traced.is_set)
    store = scan(byte_tracer, corpus, tmp_path / "s", limits=stop, progress=meter, **options)
    assert taken and store.done_parts() == [0]


@pytest.mark.parametrize("offload", [None, "layers"])
def test_who_is_asked_to_stop_does_not_end_the_batch(
    byte_folder: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    offload: Literal["layers"] | None,
) -> None:
    """It may take longer than whoever asks waits."""
    tracer = Tracer.from_pretrained(byte_folder, device="cpu", offload=offload)
    options: dict[str, Any] = {"select": RULE, "context": CONTEXT}
    asked, blocks, mlp = threading.Event(), tracer._decoder.blocks, Block.mlp

    def asks(block: Block, rows: torch.Tensor) -> torch.Tensor:
        assert block is not blocks[1]
        asked.set()
        return mlp(block, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Block, "mlp", asks)
        store = scan(
            tracer, corpus, tmp_path / "s", limits=Limits(should_stop=asked.is_set), **options
        )
    assert asked.is_set() and store.done_parts() == [] and claims_of(store.storage) == {}
    whole = scan(tracer, corpus, tmp_path / "whole", **options)
    assert scan(tracer, corpus, tmp_path / "s", **options).tokens().equals(whole.tokens())


@pytest.mark.usefixtures("small_parts")
def test_nothing_done_yet(byte_tracer: Tracer, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        scan(byte_tracer, corpus, tmp_path / "s", select=RULE, progress=StopAfter(1))
    store = open_store(tmp_path / "s")
    assert store.done_parts() == []
    assert len(store.tokens()) == 0
    assert store.stratum_means()["tv"].isna().all()


def test_a_complete_store_is_left_alone(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    store = scan(byte_tracer, corpus, tmp_path / "s", select=AutoStrata(3))
    before = snapshot(Path(store.path))
    meter = Meter()
    scan(byte_tracer, corpus, tmp_path / "s", select=AutoStrata(3), progress=meter)
    assert meter.tokens == 0
    assert snapshot(Path(store.path)) == before


@pytest.mark.usefixtures("small_parts")
def test_strata_are_those_of_the_plan(byte_tracer: Tracer, corpus: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"select": AutoStrata(3), "context": CONTEXT, "batch_tokens": 1}
    with pytest.raises(Stop):
        scan(byte_tracer, corpus, tmp_path / "s", progress=StopAfter(5), **options)
    planned = open_store(tmp_path / "s").rule
    store = scan(byte_tracer, corpus, tmp_path / "s", **options)
    assert store.rule == planned
    assert store.select == AutoStrata(3)


KILLED = """
import os, signal, sys
from pathlib import Path
from densitrace import Threshold, Tracer, scan
from densitrace.tracer import layout
from densitrace.tracer.corpus import Document, read_corpus
from densitrace.tracer.parts import failures_of
from densitrace.tracer.storage import Folder

model, corpus, out, left = *map(Path, sys.argv[1:4]), int(sys.argv[4])
layout.PART_VALUES = 2 * 16 * 3

def hook(event, arguments):
    '''Kills this process when it opens a file of the finished plan for writing, the n-th time.'''
    global left
    if event != "open" or not isinstance(arguments[0], str | os.PathLike):
        return
    if str(arguments[0]).startswith(f"{out}/") and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
tracer = Tracer.from_pretrained(model, device="cpu")
scan(tracer, corpus, out, select=Threshold([0.2, 0.05, 0.01]), context=16)
"""


@pytest.mark.usefixtures("small_parts")
def test_a_killed_scan_goes_on_and_equals_one_that_never_died(
    byte_folder: Path, byte_tracer: Tracer, corpus: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    path = tmp_path / "killed"
    arrays = len(layout.window_arrays())
    # In the middle of the first part, then just before the second part is marked done.
    for writes, done in ((arrays // 2, []), (2 * (arrays + 1), [0])):
        paths = [str(place) for place in (byte_folder, corpus, path)]
        command = [sys.executable, "-c", KILLED, *paths, str(writes)]
        died = subprocess.run(command, capture_output=True, text=True, check=False)
        assert died.returncode == -9, died.stderr
        assert open_store(path).done_parts() == done
    options: dict[str, Any] = {"select": RULE, "context": CONTEXT}
    resumed = scan(byte_tracer, corpus, path, **options)
    whole = scan(byte_tracer, corpus, tmp_path / "whole", **options)
    assert resumed.complete
    assert contents(snapshot(Path(resumed.path))) == contents(snapshot(Path(whole.path)))
    for name in (spec.name for spec in layout.window_arrays()):
        np.testing.assert_array_equal(resumed.array(name)[:], whole.array(name)[:])


def test_a_model_that_fails_on_the_way_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = byte_model()
    bad = byte_tokenizer().encode("!", add_special_tokens=False)[0]

    def overflow(_: torch.nn.Module, ids: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        return out.masked_fill((ids[0] == bad)[..., None], torch.inf)

    model.get_input_embeddings().register_forward_hook(overflow)
    path = tmp_path / "c.jsonl"
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in ("one", "two", "no!", "last")))
    monkeypatch.setattr(layout, "PART_VALUES", 2 * len("last") * len(RULE) + 6)  # two windows
    tracer, meter = Tracer(model, byte_tokenizer()), Meter()
    with pytest.raises(ScanError, match=r"1 of 2 parts could not be traced, part 1 .* NaN"):
        scan(tracer, path, tmp_path / "s", select=RULE, batch_tokens=1, progress=meter)
    store = open_store(tmp_path / "s")
    assert (store.n_parts, store.done_parts()) == (2, [0])
    assert list(failures_of(store.storage)) == [1]
    assert meter.tokens == len(store.tokens()) == len("one") + len("two") + 2
    assert np.isfinite(store.tokens()["auc_tv"]).all()


def test_a_full_disk_is_told_and_loses_nothing(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Folder.create

    def full(storage: Folder, key: str, data: bytes) -> bool:
        if key.startswith("part_done/c."):
            raise OSError(28, "No space left on device")
        return create(storage, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "create", full)
        with pytest.raises(StoreError, match="No space left on device"):
            scan(byte_tracer, corpus, tmp_path / "s", select=RULE, context=CONTEXT)
    assert open_store(tmp_path / "s").done_parts() == []
    assert scan(byte_tracer, corpus, tmp_path / "s", select=RULE, context=CONTEXT).complete


def test_a_complete_store_need_not_be_writable(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"select": RULE, "context": CONTEXT}
    store = scan(byte_tracer, corpus, tmp_path / "s", **options)
    store.storage.put("part_done/claim.0", Claim("elsewhere", 1, 0).to_bytes())

    def read_only(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("put", "create", "delete", "make_durable"):
        monkeypatch.setattr(Folder, name, read_only)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: read_only())
    assert scan(byte_tracer, corpus, tmp_path / "s", **options).complete
    with pytest.raises(StoreError, match="Read-only file system"):
        scan(byte_tracer, corpus, tmp_path / "s", overwrite=True, **options)


def test_the_vocabulary_of_the_model_bounds_the_tokenizer(tmp_path: Path) -> None:
    tracer = Tracer(byte_model(vocabulary=BYTES - 100), byte_tokenizer())
    path = tmp_path / "c.txt"
    path.write_text("abc")
    with pytest.raises(ValueError, match=r"token id 256 \(in c.txt\)"):
        scan(tracer, path, tmp_path / "s", select=RULE)
    assert not (tmp_path / "s").exists()


def test_whole_numbers_of_numpy(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    numbers: dict[str, Any] = {"seed": 3, "context": CONTEXT, "edges": 1, "batch_tokens": 64}
    of_numpy: dict[str, Any] = {name: np.int64(number) for name, number in numbers.items()}
    scan(byte_tracer, corpus, tmp_path / "s", select=AutoStrata(3), **numbers)
    before = snapshot(tmp_path / "s")
    scan(byte_tracer, corpus, tmp_path / "s", select=AutoStrata(3), **of_numpy)
    assert snapshot(tmp_path / "s") == before
    scan(byte_tracer, corpus, tmp_path / "n", select=AutoStrata(3), **of_numpy)
    assert contents(snapshot(tmp_path / "n")) == contents(before)


@pytest.mark.parametrize("name", ["seed", "context", "batch_tokens"])
@pytest.mark.parametrize("value", [1.5, np.float64(8), "8", [8]])
def test_numbers_that_are_not_whole(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, name: str, value: Any
) -> None:
    with pytest.raises(InputError, match=f"{name}=.* is not a whole number"):
        scan(byte_tracer, corpus, tmp_path / "s", **{name: value})
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("worker", (0, 1)),
        ("lease_seconds", "9"),
        ("lease_seconds", 0),
        ("lease_seconds", np.nan),
        ("controls", "random"),
    ],
)
def test_arguments_of_another_kind(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, name: str, value: Any
) -> None:
    with pytest.raises(InputError, match=re.escape(f"{name}={value!r}")):
        scan(byte_tracer, corpus, tmp_path / "s", **{name: value})
    assert not (tmp_path / "s").exists()


def test_sizes_need_one_output(byte_tracer: Tracer, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it needs scope='output'"):
        scan(byte_tracer, corpus, tmp_path / "s", select=Size([0.1]))
    assert not (tmp_path / "s").exists()


def test_context_beyond_learned_positions(corpus: Path, tmp_path: Path) -> None:
    """Refused before anything is planned or written."""
    tracer = Tracer(tiny_model("gpt2"))
    with pytest.raises(InputError, match="context=65 is more than the 64 tokens"):
        scan(tracer, corpus, tmp_path / "store", context=65)
    assert not (tmp_path / "store").exists()
