"""A scan by workers of a Ray cluster, one of which is killed on the way."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from byte_model import byte_model, save
from scan_workers import CONTEXT, RULE, assert_same_store

from densitrace import StoreError, open_store, scan
from densitrace.tracer import layout
from densitrace.tracer.parts import claims_of
from densitrace.tracer.progress import Meter
from densitrace.tracer.ray_engine import scan_with_ray
from densitrace.tracer.run import Limits
from densitrace.tracer.tracer import Tracer

WORKERS = 2


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Of this machine alone; every worker has one thread."""
    tests = str(Path(__file__).parents[1])
    environment = {"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": tests}}
    ray.init(
        num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, runtime_env=environment
    )
    yield
    ray.shutdown()


class Killer(threading.Thread):
    """Kills the first worker that is seen at a part while others are done."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.killed = path, 0

    def run(self) -> None:
        while not self.killed:
            time.sleep(0.01)
            try:
                store = open_store(self.path)
            except StoreError:
                continue
            if len(store.done_parts()) > 1:
                for claim in claims_of(store.place).values():
                    os.kill(claim.process, signal.SIGKILL)
                    self.killed = claim.process
                    break


def test_a_killed_worker_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    model = save(tmp_path / "model", byte_model())
    corpus = tmp_path / "c.txt"
    corpus.write_text("To be, or not to be, that is the question. " * 100)
    options: dict[str, Any] = {"select": RULE, "context": CONTEXT, "batch_tokens": CONTEXT}
    monkeypatch.setattr(layout, "PART_VALUES", 6 * CONTEXT * len(RULE))
    tracer = Tracer.from_pretrained(model, device="cpu")
    for name in ("ray", "here"):  # planned here, where parts are small
        scan(tracer, corpus, tmp_path / name, limits=Limits(max_parts=1), **options)
    killer, meter = Killer(tmp_path / "ray"), Meter()
    killer.start()
    loading = {"path": str(model), "device": "cpu"}
    store = scan_with_ray(
        loading, corpus, tmp_path / "ray", workers=WORKERS, limits={}, progress=meter, **options
    )
    killer.join(10)
    assert killer.killed
    assert 0 < meter.tokens < store.attributes["tokens"]
    scan(tracer, corpus, tmp_path / "here", **options)
    assert_same_store(tmp_path / "ray", tmp_path / "here")


def test_what_a_worker_raises_is_raised_here(tmp_path: Path) -> None:
    model = save(tmp_path / "model", byte_model())
    loading = {"path": str(model), "device": "cpu"}
    with pytest.raises(Exception, match=r"nowhere\.txt' does not exist"):
        scan_with_ray(
            loading, tmp_path / "nowhere.txt", tmp_path / "s", workers=1, limits={},
            progress=Meter(), select=RULE,
        )  # fmt: skip
