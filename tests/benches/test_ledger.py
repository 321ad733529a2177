"""The ledger's file names, and its page of a record."""

from datetime import date
from pathlib import Path
from typing import Any

import ledger
import pytest
import torch
from costs import moved_bytes

from densitrace.kernels import AttentionEdges, NormWeight, Pattern


@pytest.mark.parametrize(
    ("processor", "threads", "slug"),
    [
        ("AMD EPYC", 2, "amd-epyc-2t"),
        ("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", 28, "intel-xeon-e5-2680-v4-28t"),
        ("AMD Ryzen 9 7950X 16-Core Processor", 16, "amd-ryzen-9-7950x-16t"),
        ("unknown", 1, "unknown-1t"),
    ],
)
def test_a_machine_is_named_by_its_processor(processor: str, threads: int, slug: str) -> None:
    assert ledger.slug(processor, threads) == slug


def test_records_are_never_overwritten(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        path = ledger.new_record(tmp_path, "abacus-2t", date(2026, 11, 23))
        names.append(path.name)
        path.touch()
    assert names == [f"abacus-2t-2026-11-23{end}.json" for end in ("", "-2", "-3")]


def entry(file: str, name: str, median: float, **noted: Any) -> dict[str, Any]:
    stats = {"q1": median / 2, "median": median, "q3": median * 2, "data": [median]}
    return {
        "fullname": f"benches/{file}::{name}",
        "name": name,
        "extra_info": noted,
        "stats": stats,
        "options": {},
    }


def test_a_page_has_a_section_per_file() -> None:
    ratio = {"to": "SDPA", "q1": 1.5, "median": 2.0, "q3": 2.5}
    record: dict[str, Any] = {
        "machine_info": ledger.machine(),
        "commit_info": {"id": "0123456789abcdef", "dirty": True, "branch": "own"},
        "datetime": "2026-11-23T10:00:00+00:00",
        "benchmarks": [
            entry("test_engine.py", "test_a[1]", 0.02, ratio=ratio),
            entry("test_engine.py", "test_b", 4e-5, **{"tokens/s": 12_345_678}),
            entry("test_memory.py", "test_c", 9.0, **{"peak MiB added": 12.5}),
        ],
    }
    ledger.slim(record)
    assert record["commit_info"] == {"id": "0123456789", "dirty": True}
    assert "data" not in record["benchmarks"][0]["stats"]
    lines = ledger.page(record).splitlines()
    assert lines[0] == "# Benchmarks, 2026-11-23"
    assert "commit 0123456789, with changes." in lines[2]
    engine, memory = lines.index("## test_engine.py"), lines.index("## test_memory.py")
    assert lines[engine + 2].endswith("?")  # the question that the file asks
    assert lines[engine + 4 : engine + 8] == [
        "|  | time | ratio | tokens/s |",
        "| --- | --- | --- | --- |",
        "| a[1] | 20 ms (10 to 40) | 2 (1.5 to 2.5) x SDPA |  |",
        "| b | 40 µs (20 to 80) |  | 12.3 M |",
    ]
    assert lines[memory + 4 :] == [
        "|  | ratio | peak MiB added |",
        "| --- | --- | --- |",
        "| c |  | 12.5 |",
    ]


def test_bytes_are_counted_once_also_in_dataclasses() -> None:
    keys = torch.zeros(1, 2, 3, 4)
    edges = AttentionEdges(Pattern(keys, keys, 1.0), NormWeight(torch.zeros(1, 2, 3)))
    assert moved_bytes(edges, keys, None, "auto", torch.zeros(5, dtype=torch.uint8)) == 96 + 24 + 5
