"""Benches that compare stores notice every difference."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_files import bench
from byte_model import byte_model, save
from scan_workers import Job, shards, write_corpus

from densitrace.tracer import layout
from densitrace.tracer.storage import storage_of
from densitrace.tracer.store import open_store_in


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store."""
    folder = tmp_path_factory.mktemp("whole")
    write_corpus(folder / "c.jsonl")
    Job(save(folder / "model", byte_model()), folder / "c.jsonl", folder / "store").run()
    return folder / "store"


def test_the_kill_test_counts_stores_that_differ(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_test, number = bench("kill_test"), iter(range(10))

    def killed(job: Any, *_: object) -> int:
        shutil.copytree(whole, job.out)
        if next(number) % 2:  # the second scan of each number of workers
            path = job.out / next(name for name in shards(job.out) if name.startswith("nucleus"))
            path.write_bytes(path.read_bytes()[::-1])
        return 1

    monkeypatch.setattr(kill_test, "killed_until_complete", killed)
    monkeypatch.setattr(kill_test.Job, "finished", lambda job: shutil.copytree(whole, job.out))
    (tmp_path / "run").mkdir()
    rows = kill_test.record_of(tmp_path / "run", 2)["rows"]
    assert [(row["scans"], row["stores that differ"]) for row in rows] == [(2, 1), (2, 1)]


def test_offloaded_and_resident_stores_are_compared_array_by_array(
    whole: Path, tmp_path: Path
) -> None:
    for name in ("resident", "offloaded"):
        shutil.copytree(whole, tmp_path / name)
    differing = bench("offload").differing
    assert differing(tmp_path) == []
    store = open_store_in(storage_of(tmp_path / "offloaded"), to_write=True)
    names = [spec.name for spec in layout.window_arrays()]
    arrays = {name: store.array(name)[store.windows(2)] for name in names}
    for values in arrays.values():
        values.reshape(-1).view(np.uint8)[0] ^= 1
    store.write_part(2, arrays)
    assert differing(tmp_path) == names
