"""Edges in a store: what `Trace.edges` says of every window, whatever happens on the way."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scan_workers import Job, assert_same_store, killed_until_complete, shards, write_corpus
from tiny_models import VARIANTS, VOCABULARY, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from densitrace import (
    AutoStrata,
    InputError,
    Nucleus,
    Size,
    Store,
    StoreError,
    Threshold,
    Trace,
    Tracer,
    open_store,
    scan,
)
from densitrace.kernels import cpu
from densitrace.tracer import edge_tables, layout
from densitrace.tracer.cli import cli
from densitrace.tracer.cuda_graphs import GraphCache
from densitrace.tracer.edge_tables import EdgeSpool
from densitrace.tracer.run import Limits

RULE = Threshold([0.2, 0.05, 0.01])
OPTIONS: dict[str, Any] = {"select": RULE, "context": 16, "edges": 1}


def number_tokenizer() -> PreTrainedTokenizerFast:
    """Texts of numbers, one token each: for models of few tokens."""
    words = models.WordLevel({str(token): token for token in range(VOCABULARY)}, unk_token="0")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """Documents of 1 to 16 numbers."""
    draw = random.Random(0)
    path = tmp_path / "numbers.jsonl"
    texts = [
        " ".join(str(draw.randrange(VOCABULARY)) for _ in range(length))
        for length in (1, 9, 16, 3, 12)
    ]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of two windows."""
    monkeypatch.setattr(layout, "PART_VALUES", 2 * 16 * len(RULE))


def traces(tracer: Tracer, store: Store) -> list[Trace]:
    """Every window traced for itself."""
    found = []
    for ids, length in zip(store.token[:], store.lengths, strict=True):
        trace = tracer.trace(ids[:length].tolist(), select=store.rule)
        assert isinstance(trace, Trace)
        found.append(trace)
    return found


def assert_edges(store: Store, tracer: Tracer, stratum: int) -> int:
    """The store's edges are those of `Trace.edges`; how many there are."""
    count = 0
    for window, trace in enumerate(traces(tracer, store)):
        kept = store.edges(window, None)
        keys = ["layer", "kind", "head", "target", "source"]
        assert not kept.duplicated(keys).any()
        assert kept.equals(kept.sort_values(keys, ignore_index=True))
        for output in {len(trace.tokens) // 2, len(trace.tokens) - 1}:
            expected = trace.edges(output, stratum)
            found = store.edges(window, output)
            pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(len(found), trace.edge_count[output, stratum])
            assert len(found.merge(kept, on=[*keys, "weight"])) == len(found)
        count += len(kept)
    return count


def files(folder: Path) -> dict[str, bytes]:
    """The files of the tables of edges, descriptions among them."""
    found = (path for path in (folder / "edges").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


# ---- content -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*VARIANTS, "gemma4_shared"])
def test_edges_are_those_of_the_trace(family: str, numbers: Path, tmp_path: Path) -> None:
    tracer = Tracer(tiny_model(family), number_tokenizer())
    store = scan(tracer, numbers, tmp_path / "s", **OPTIONS)  # in one batch, with padding
    assert store.recipe.edges == 1
    assert assert_edges(store, tracer, 1) > 100


@pytest.mark.parametrize(
    "options",
    [
        {"batch_tokens": 24},  # rows pass a block one after another
        {"edges": -1, "importance": "cosine", "attention": "frozen"},
        {"edges": 0, "scope": "output", "select": Nucleus([0.5, 0.9])},
        {"controls": ("inverse", "random"), "select": AutoStrata(3), "edges": 2},
    ],
)
def test_edges_under_other_settings(options: dict[str, Any], numbers: Path, tmp_path: Path) -> None:
    tracer = Tracer(tiny_model("llama"), number_tokenizer())
    store = scan(tracer, numbers, tmp_path / "s", **OPTIONS | options)
    stratum = options.get("edges", 1) % len(store.rule)
    assert store.recipe.edges == stratum
    count = 0
    for window, ids in enumerate(store.token[:]):
        trace = tracer.trace(
            ids[: store.lengths[window]].tolist(),
            select=store.rule,
            importance=options.get("importance", "norm_l1"),
        )
        assert isinstance(trace, Trace)
        expected = trace.edges(-1, stratum)
        pd.testing.assert_frame_equal(store.edges(window), expected, rtol=1e-4, atol=1e-6)
        count += len(expected)
    assert count > 50


def test_edges_of_an_offloaded_model(numbers: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny_model("qwen3").save_pretrained(folder)
    number_tokenizer().save_pretrained(folder)
    resident = Tracer.from_pretrained(folder, device="cpu")
    offloaded = Tracer.from_pretrained(folder, device="cpu", offload="layers")
    store = scan(offloaded, numbers, tmp_path / "s", batch_tokens=16, **OPTIONS)
    assert assert_edges(store, resident, 1) > 100


def test_a_trace_without_edges(byte_tracer: Tracer, corpus: Path, tmp_path: Path) -> None:
    options = OPTIONS | {"select": Threshold([0.9999, 0.999]), "edges": 0}
    store = scan(byte_tracer, corpus, tmp_path / "s", **options)
    assert sum(len(store.edges(window, None)) for window in range(store.n_windows)) == 0
    assert assert_edges(store, byte_tracer, 0) == 0
    assert list(store.damage()) == []


@pytest.mark.usefixtures("small_parts")
def test_many_shards_and_a_spool_on_disk_hold_the_same(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = scan(byte_tracer, corpus, tmp_path / "plain", **OPTIONS)
    monkeypatch.setattr(layout, "EDGES_PER_CHUNK", 8)
    monkeypatch.setattr(layout, "EDGES_PER_SHARD", 32)
    monkeypatch.setattr(edge_tables, "SPOOL_BYTES", 1)
    cut = scan(byte_tracer, corpus, tmp_path / "cut", **OPTIONS)
    assert len(files(tmp_path / "cut")) > len(files(tmp_path / "plain"))
    for window in range(plain.n_windows):
        pd.testing.assert_frame_equal(plain.edges(window, None), cut.edges(window, None))
    assert list(cut.damage()) == []


@pytest.mark.parametrize("options", [{}, {"batch_tokens": 24}, {"edges": -1}], ids=str)
def test_tables_of_any_size_make_the_same_store(
    options: dict[str, Any], numbers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte, and what is held for it is as small as a table."""
    tracer = Tracer(tiny_model("llama"), number_tokenizer())
    scan(tracer, numbers, tmp_path / "whole", **OPTIONS | options)
    add, taken = EdgeSpool.add, []

    def counted(spool: EdgeSpool, window: int, edges: NDArray[Any]) -> None:
        taken.append(len(edges if edges.base is None else edges.base))  # held for it
        add(spool, window, edges)

    monkeypatch.setattr(EdgeSpool, "add", counted)
    monkeypatch.setattr(cpu, "TABLE_EDGES", 20)
    scan(tracer, numbers, tmp_path / "parts", **OPTIONS | options)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert len(taken) > 50
    assert max(taken) <= 5 * 16  # the side edges of a batch, which come at once


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=12), st.integers(1, 12))
def test_a_spool_gives_back_what_it_took(runs: list[tuple[int, int]], at_once: int) -> None:
    spool, expected = EdgeSpool(4), np.zeros(0, layout.EDGE)
    taken: list[list[Any]] = [[], [], [], []]
    for number, (window, count) in enumerate(runs):
        edges = np.zeros(count, layout.EDGE)
        edges["target"], edges["source"] = number, np.arange(count)
        spool.add(window, edges)
        taken[window].append(edges)
    assert spool.counts.tolist() == [sum(map(len, window)) for window in taken]
    blocks = list(spool.blocks(at_once))
    assert [len(block) for block in blocks[:-1]] == [at_once] * len(blocks[:-1])
    expected = np.concatenate([expected, *(edges for window in taken for edges in window)])
    np.testing.assert_array_equal(np.concatenate([expected[:0], *blocks]), expected)
    spool.close()


def test_a_full_temporary_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_tables, "SPOOL_BYTES", 1)
    spool = EdgeSpool(1)
    spool.add(0, np.zeros(1, layout.EDGE))
    spool._file.rollover()
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(spool, "_file", full)
        with pytest.raises(StoreError, match="No space left on device; set TMPDIR"):
            spool.add(0, np.zeros(1, layout.EDGE))


# ---- what is asked -------------------------------------------------------------------------------


@pytest.mark.parametrize("edges", [3, -4, 0.05, "1", True])
def test_no_stratum(edges: Any, byte_tracer: Tracer, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no stratum: of 3, 0 is the sparsest and 2"):
        scan(byte_tracer, corpus, tmp_path / "s", **OPTIONS | {"edges": edges})
    assert not (tmp_path / "s").exists()


def test_what_does_not_go_with_edges(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = OPTIONS | {"select": Size([0.1]), "scope": "output", "edges": 0}
    with pytest.raises(InputError, match="not with Size"):
        scan(byte_tracer, corpus, tmp_path / "s", **size)
    monkeypatch.setattr(byte_tracer, "_graphs", GraphCache())
    with pytest.raises(InputError, match="edges=1 and cuda_graphs cannot be combined"):
        scan(byte_tracer, corpus, tmp_path / "s", **OPTIONS)


def test_the_command_line(byte_folder: Path, corpus: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "s")
    command = ["scan", str(corpus), "--model", str(byte_folder), "--device", "cpu", "--out", out]
    command += ["--thresholds", "0.2,0.05", "--context", "16", "--edges"]
    bad = CliRunner().invoke(cli, [*command, "2"])
    assert bad.exit_code == 2
    assert "--edges: edges=2 is no stratum: of 2, 0 is the sparsest and 1 the densest" in bad.output
    assert CliRunner().invoke(cli, [*command, "0.05"]).exit_code == 2
    done = CliRunner().invoke(cli, [*command, "-1"])
    assert done.exit_code == 0, done.output
    assert open_store(out).edges(0)["stratum"].max() == 1
    other = CliRunner().invoke(cli, [*command, "0"])
    assert other.exit_code == 1
    assert "holds another scan: edges is 1 there, 0 here" in other.output


def test_reading_what_is_not_there(byte_tracer: Tracer, corpus: Path, tmp_path: Path) -> None:
    options = {name: value for name, value in OPTIONS.items() if name != "edges"}
    without = scan(byte_tracer, corpus, tmp_path / "without", **options)
    with pytest.raises(StoreError, match="keeps no edges"):
        without.edges(0)
    with pytest.raises(StoreError, match="edges is none there, 1 here"):
        scan(byte_tracer, corpus, tmp_path / "without", **OPTIONS)
    store = scan(byte_tracer, corpus, tmp_path / "s", limits=Limits(seconds=0), **OPTIONS)
    with pytest.raises(StoreError, match=r"window 0 .* is not scanned yet"):
        store.edges(0)
    for window in (-1, store.n_windows):
        with pytest.raises(InputError, match="is outside the 10 windows"):
            store.edges(window)
    with pytest.raises(InputError, match="output=16 is outside the 16 tokens of window 0"):
        store.edges(0, 16)
    wrong: dict[str, Any]
    for wrong in ({"window": "0"}, {"window": 0, "output": 1.5}):
        with pytest.raises(InputError, match="is not a whole number"):
            store.edges(**wrong)


def test_stores_of_before_go_on(byte_tracer: Tracer, corpus: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"select": RULE, "context": 16}
    scan(byte_tracer, corpus, tmp_path / "s", **options)
    about = tmp_path / "s" / "zarr.json"
    described = json.loads(about.read_text())
    for name in (
        "edges",
        "blocks",
        "parallel",
        "batch_tokens",
        "arithmetic",
    ):  # they say nothing of
        del described["attributes"][name]
    about.write_text(json.dumps(described))
    assert scan(byte_tracer, corpus, tmp_path / "s", **options).complete


# ---- what happens on the way ---------------------------------------------------------------------


@pytest.mark.usefixtures("small_parts")
def test_a_scan_goes_on_to_the_same_bytes(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path
) -> None:
    whole = scan(byte_tracer, corpus, tmp_path / "whole", **OPTIONS)
    for parts in (1, 2, None):
        limits = Limits(max_parts=parts)
        store = scan(byte_tracer, corpus, tmp_path / "s", limits=limits, **OPTIONS)
    assert store.complete
    assert whole.n_parts == 5
    assert files(tmp_path / "s") == files(tmp_path / "whole")


@pytest.mark.usefixtures("one_thread")
def test_killed_workers_leave_the_same_edges(byte_folder: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")

    def job(name: str) -> Job:
        return Job(byte_folder, tmp_path / "corpus.jsonl", tmp_path / name, edges=1)

    whole, kills = job("whole"), 0
    whole.finished()  # the first is slow: what forks the others is made
    started = time.monotonic()
    job("two").finished(2)
    seconds, moments = time.monotonic() - started, random.Random(1)
    assert_same_store(tmp_path / "two", whole.out)
    while not kills:
        killed = job(f"killed{len(list(tmp_path.iterdir()))}")
        kills += killed_until_complete(killed, 2, seconds, moments)
        assert_same_store(killed.out, whole.out)
    assert len([name for name in shards(whole.out) if name.startswith("edges")]) > 8 * 10


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:7])


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("weight/c.2.0", _flip),
        ("source/c.2.0", _truncate),
        ("head/c.2.0", Path.unlink),
        ("first/c.2.0", _flip),
        ("first/c.2.0", Path.unlink),
    ],
)
def test_damage_is_found_and_repaired(
    file: str,
    harm: Callable[[Path], None],
    byte_tracer: Tracer,
    corpus: Path,
    tmp_path: Path,
) -> None:
    store = scan(byte_tracer, corpus, tmp_path / "s", **OPTIONS)
    before = files(tmp_path / "s")
    harm(tmp_path / "s" / "edges" / file)
    told = CliRunner().invoke(cli, ["status", str(tmp_path / "s"), "--repair"])
    assert told.exit_code == 0, told.output
    assert "damaged, to be done again" in told.output
    assert store.done_parts() == [0, 1, 3, 4]
    scan(byte_tracer, corpus, tmp_path / "s", **OPTIONS)
    assert files(tmp_path / "s") == before


def test_a_file_is_of_one_part(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of part 10 are not those of part 1, which a repair removes."""
    monkeypatch.setattr(layout, "PART_VALUES", 4 * len(RULE))
    store = scan(byte_tracer, corpus, tmp_path / "s", **OPTIONS | {"context": 4})
    assert store.n_parts > 10
    keys = [key for part in range(store.n_parts) for key in store.keys(part)]
    assert len(keys) == len(set(keys))


def test_damage_is_told_to_who_reads(byte_tracer: Tracer, corpus: Path, tmp_path: Path) -> None:
    store = scan(byte_tracer, corpus, tmp_path / "s", **OPTIONS)
    _flip(tmp_path / "s" / "edges" / "weight" / "c.0.0")
    with pytest.raises(StoreError, match="array 'edges/weight', is damaged"):
        store.edges(0)


def test_damage_in_any_chunk_is_found(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "EDGES_PER_CHUNK", 8)
    monkeypatch.setattr(layout, "EDGES_PER_SHARD", 32)
    store = scan(byte_tracer, corpus, tmp_path / "s", **OPTIONS)
    shard = tmp_path / "s" / "edges" / "weight" / "c.0.1"
    whole = shard.read_bytes()
    for place in range(0, len(whole), 16):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert [part for part, _ in store.damage()] == [0], place


@pytest.mark.parametrize("name", ["first", "layer", "kind", "head", "weight", "stratum"])
def test_missing_files_are_told_to_who_reads(
    name: str, byte_tracer: Tracer, corpus: Path, tmp_path: Path
) -> None:
    store = scan(byte_tracer, corpus, tmp_path / "s", **OPTIONS)
    (tmp_path / "s" / "edges" / name / "c.0.0").unlink()
    for output in (-1, None):
        with pytest.raises(StoreError, match=f"array 'edges/{name}', is damaged: part 0 is miss"):
            store.edges(0, output)


@pytest.mark.usefixtures("small_parts")
def test_edges_in_a_bucket(byte_tracer: Tracer, corpus: Path, tmp_path: Path) -> None:
    store = scan(byte_tracer, corpus, tmp_path / "s", **OPTIONS)
    there = scan(byte_tracer, corpus, f"memory://{tmp_path.name}", **OPTIONS)
    for window in range(store.n_windows):
        pd.testing.assert_frame_equal(store.edges(window), there.edges(window))
    there.storage.delete("edges/weight/c.1.0")
    assert list(there.damage()) == [(1, "file 'edges/weight/c.1.0' is missing")]
    there.open_again(1)
    assert "c.1.0" not in there.storage.files("edges/source")
    scan(byte_tracer, corpus, f"memory://{tmp_path.name}", **OPTIONS)
    assert list(there.damage()) == []
