"""The codec bench measures a whole part, different chunk sizes, and several readers."""

from pathlib import Path

import click
import pytest
from bench_files import bench
from byte_model import byte_model, save
from scan_workers import CONTEXT, RULE, WINDOWS

from densitrace import Tracer, scan
from densitrace.tracer import layout

PART = 2 * WINDOWS


def test_measures_codecs_chunks_and_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "c.txt"
    corpus.write_text("To be, or not to be. " * 10)
    tracer = Tracer.from_pretrained(save(tmp_path / "model", byte_model()), device="cpu")
    store = scan(tracer, corpus, tmp_path / "s", select=RULE, context=CONTEXT)
    window = CONTEXT * len(RULE)
    script = bench("store_codecs")
    monkeypatch.setattr(script, "ROUNDS", 1)
    with pytest.raises(click.UsageError, match=r"fewer than \d+ windows"):
        script.part_of(store)
    monkeypatch.setattr(layout, "PART_VALUES", PART * window)
    monkeypatch.setattr(layout, "CHUNK_VALUES", WINDOWS * window)
    monkeypatch.setattr(script, "CHUNK_VALUES", (window, WINDOWS * window, 9 * window))
    record = script.record_of(store, tmp_path)
    assert record["windows"] == PART
    rows = record["codecs and chunks"]
    assert [row["windows a chunk"] for row in rows] == [WINDOWS] * 7 + [1, PART]
    assert [row["codec"] for row in rows if "chosen" in row["codec"]] == [
        "zstd 3, shuffled (chosen)"
    ]
    assert [row["chunks at once"] for row in record["chunks at once"]] == [1, 4, 10, 32]
    assert [row["readers"] for row in record["readers"]] == ["1", "2", "4 (chosen)", "8"]
    for row in (*rows, *record["chunks at once"], *record["readers"]):
        assert all(value > 0 for name, value in row.items() if name.endswith(", s"))
    assert "| 4 (chosen) |" in script.page(record)
    monkeypatch.setattr(script, "CHUNK_VALUES", (window, WINDOWS * window, WINDOWS * window + 1))
    with pytest.raises(click.UsageError, match="have to differ"):
        script.codecs_and_chunks(tmp_path, script.part_of(store))
