"""A scan by workers of a Ray cluster: killed, failing, stopped on the way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from byte_model import byte_model, byte_tokenizer, save
from scan_workers import CONTEXT, RULE, SECONDS, assert_same_store, until

from densitrace import ScanError, StoreError, Threshold, open_store, scan
from densitrace.tracer import layout, ray_engine
from densitrace.tracer.parts import claims_of, failures_of
from densitrace.tracer.progress import Meter
from densitrace.tracer.ray_engine import RayJob, plan, scan_with_ray
from densitrace.tracer.run import Limits
from densitrace.tracer.tracer import Tracer

WORKERS = 2
OPTIONS: dict[str, Any] = {"select": RULE, "context": CONTEXT, "batch_tokens": CONTEXT}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[str]:
    """Of this machine alone; every worker has one thread. Its address."""
    tests = str(Path(__file__).parents[1])
    environment = {"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": tests}}
    ray.init(
        num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, runtime_env=environment
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """One document of four thousand tokens."""
    path = tmp_path / "c.txt"
    path.write_text("To be, or not to be, that is the question. " * 100)
    return path


@pytest.fixture
def planned(
    byte_folder: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> Callable[[Path], None]:
    """Plans a store here, where parts are small, and does one of them."""
    monkeypatch.setattr(layout, "PART_VALUES", 6 * CONTEXT * len(RULE))
    tracer = Tracer.from_pretrained(byte_folder, device="cpu")
    return lambda path: void(scan(tracer, corpus, path, limits=Limits(max_parts=1), **OPTIONS))


def void(_: object) -> None:
    """Of what is made for its effect."""


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
                for claim in claims_of(store.storage).values():
                    os.kill(claim.process, signal.SIGKILL)
                    self.killed = claim.process
                    break


class Told(Meter):
    """Remembers how many parts failed, as told last."""

    failed = 0

    def parts(self, done: int, total: int, failed: int, tokens: int) -> None:
        self.failed = failed


def test_a_killed_worker_is_replaced(
    tmp_path: Path, byte_folder: Path, corpus: Path, planned: Callable[[Path], None]
) -> None:
    for name in ("ray", "here"):
        planned(tmp_path / name)
    killer, meter = Killer(tmp_path / "ray"), Meter()
    killer.start()
    loading: dict[str, Any] = {"path": str(byte_folder), "device": "cpu"}
    store = scan_with_ray(
        loading, corpus, tmp_path / "ray", workers=WORKERS, limits={}, progress=meter,
        log_file=tmp_path / "log", **OPTIONS,
    )  # fmt: skip
    killer.join(10)
    assert killer.killed
    assert 0 < meter.tokens < store.attributes["tokens"]
    scan(Tracer.from_pretrained(**loading), corpus, tmp_path / "here", **OPTIONS)
    assert_same_store(tmp_path / "ray", tmp_path / "here")
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    logged = {line["part"] for line in lines if line["message"] == "part done"}
    # One was done before, one may have been that the killed worker had no time to tell of.
    assert len(logged) >= store.n_parts - 2


def test_what_a_worker_raises_is_raised_here(tmp_path: Path) -> None:
    model = save(tmp_path / "model", byte_model())
    loading = {"path": str(model), "device": "cpu"}
    with pytest.raises(Exception, match=r"nowhere\.txt' does not exist"):
        scan_with_ray(
            loading, tmp_path / "nowhere.txt", tmp_path / "s", workers=1, limits={},
            progress=Meter(), select=RULE,
        )  # fmt: skip


# ---- planning ------------------------------------------------------------------------------------


def test_a_store_is_replaced_by_more_workers_than_there_is_room_for(
    tmp_path: Path, byte_folder: Path, corpus: Path, planned: Callable[[Path], None]
) -> None:
    planned(tmp_path / "s")
    loading: dict[str, Any] = {"path": str(byte_folder), "device": "cpu"}
    options = OPTIONS | {"select": Threshold([0.1])}
    store = scan_with_ray(
        loading, corpus, tmp_path / "s", workers=WORKERS + 1, limits={}, progress=Meter(),
        overwrite=True, **options,
    )  # fmt: skip
    assert store.complete and store.rule == options["select"]


def test_planning_again_replaces_no_plan_of_its_own(
    tmp_path: Path, byte_folder: Path, corpus: Path, planned: Callable[[Path], None]
) -> None:
    planned(tmp_path / "s")
    replaced = open_store(tmp_path / "s").attributes
    options = OPTIONS | {"select": Threshold([0.1])}
    loading: dict[str, Any] = {"path": str(byte_folder), "device": "cpu"}
    job = RayJob(loading, str(corpus), str(tmp_path / "s"), None, options)
    plan(job, WORKERS, replaced)
    store = open_store(tmp_path / "s")
    assert store.rule == options["select"] and store.done_parts() == []
    tracer = Tracer.from_pretrained(**loading)
    scan(tracer, corpus, tmp_path / "s", limits=Limits(max_parts=1), **options)
    plan(job, WORKERS, replaced)  # as when its process had died after it
    assert open_store(tmp_path / "s").done_parts() == [0]


def test_who_is_asked_to_stop_while_planning_leaves_no_plan(
    tmp_path: Path, byte_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"text": "To be, or not to be, that is the question."}\n' * 200_000)
    monkeypatch.setattr(ray_engine, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(ray_engine, "STOP_LOOKS", 2)
    loading = {"path": str(byte_folder), "device": "cpu"}
    with pytest.raises(StoreError, match="is not planned yet"):
        scan_with_ray(
            loading, corpus, tmp_path / "s", workers=WORKERS, limits={}, progress=Meter(),
            should_stop=lambda: True, **OPTIONS,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == [corpus]


class Deaf:
    """Stands in for Ray with one task that loses its first interrupt."""

    exceptions = ray.exceptions

    def __init__(self) -> None:
        self.interrupts = 0

    def wait(self, tasks: list[str], timeout: float) -> tuple[list[str], list[str]]:
        """Nothing ends before the second interrupt."""
        return (tasks, []) if self.interrupts > 1 else ([], tasks)

    def cancel(self, task: str, force: bool = False) -> None:
        assert not force
        self.interrupts += 1

    def get(self, task: str) -> None:
        raise ray.exceptions.TaskCancelledError


def test_an_interrupt_that_was_lost_is_sent_again() -> None:
    """As in a module that catches every exception while it is imported."""
    deaf, looks = Deaf(), count()
    crew = ray_engine._Crew(deaf, [lambda: "task"])
    crew.run(lambda: True, lambda: void(next(looks)))
    assert crew.stopped and not crew.errors
    assert deaf.interrupts == 2
    assert next(looks) == ray_engine.STOP_LOOKS + 2


# ---- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_and_what_is_done_stays(
    number: signal.Signals,
    cluster: str,
    tmp_path: Path,
    byte_folder: Path,
    corpus: Path,
    planned: Callable[[Path], None],
) -> None:
    corpus.write_text(corpus.read_text() * 4)  # more than is done before anybody looks
    planned(tmp_path / "s")
    command = [sys.executable, "-m", "densitrace", "scan", corpus, "--model", byte_folder]
    command += ["--out", tmp_path / "s", "--engine", "ray", "--workers", 1]
    command += ["--thresholds", "0.2,0.05,0.01", "--context", CONTEXT, "--batch-tokens", CONTEXT]
    command += ["--device", "cpu", "--log", tmp_path / "log"]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"RAY_ADDRESS": cluster},
    )
    log = tmp_path / "log"
    until(lambda: log.exists() and "part done" in log.read_text())
    process.send_signal(number)
    _, error = process.communicate(timeout=SECONDS)
    assert error.splitlines()[-1] == (
        "densitrace: stopped by a signal; finished parts are kept, run the same command to continue"
    ), error
    assert process.returncode == 1
    store = open_store(tmp_path / "s")
    assert not store.complete
    assert claims_of(store.storage) == {}  # the part at hand was left, by a worker that lived
    assert "worker died" not in log.read_text()


# ---- what goes wrong -----------------------------------------------------------------------------


def overflowing_model() -> Any:
    """Of finite weights, and of infinite outputs wherever there is a tilde."""
    model: Any = byte_model()
    block = model.model.layers[0]
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:, -1] = 0
        embedding[byte_tokenizer().convert_tokens_to_ids("~"), -1] = 1
        block.self_attn.o_proj.weight[-1] = 0
        for projection in (block.mlp.gate_proj, block.mlp.up_proj):
            projection.weight[0] = 0
            projection.weight[0, -1] = 1e20  # float32 does not hold the square
    return model


def test_parts_that_fail_are_named_when_all_others_are_done(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus.write_text("To be, or not. " * 20 + "~" + " To be, or not." * 20)
    folder = save(tmp_path / "model", overflowing_model())
    monkeypatch.setattr(layout, "PART_VALUES", 6 * CONTEXT * len(RULE))
    tracer = Tracer.from_pretrained(folder, device="cpu")
    scan(tracer, corpus, tmp_path / "s", limits=Limits(max_parts=1), **OPTIONS)
    store, told = open_store(tmp_path / "s"), Told()
    with pytest.raises(ScanError, match=r"1 of \d+ parts could not be traced, part 3 first: "):
        scan_with_ray(
            {"path": str(folder), "device": "cpu"}, corpus, tmp_path / "s", workers=WORKERS,
            limits={}, progress=told, **OPTIONS,
        )  # fmt: skip
    assert set(range(store.n_parts)) - set(store.done_parts()) == {3}
    assert list(failures_of(store.storage)) == [3]
    assert told.failed == 1


def crew(*tasks: Callable[[], None]) -> ray_engine._Crew:
    """Of tasks that are no scans."""
    start = ray.remote(max_retries=0, num_cpus=1)
    return ray_engine._Crew(ray, [start(task).remote for task in tasks])


def test_what_one_raises_leaves_the_others_at_work(tmp_path: Path) -> None:
    def fails() -> None:
        raise ScanError("so it goes")

    def works(path: Path) -> None:
        until_failed = 3
        time.sleep(until_failed)
        path.touch()

    slow = partial(works, tmp_path / "done")
    workers = crew(fails, lambda: slow())
    workers.run(lambda: False, lambda: None)
    assert (tmp_path / "done").exists()
    assert list(map(str, workers.errors)) == ["so it goes"]


def test_a_worker_that_always_dies_is_given_up(tmp_path: Path) -> None:
    def dies() -> None:
        with (tmp_path / "tries").open("a") as file:
            file.write("x")
        os._exit(1)

    workers = crew(dies)
    workers.run(lambda: False, lambda: None)
    assert (tmp_path / "tries").read_text() == "x" * ray_engine.TRIES
    (error,) = workers.errors
    assert isinstance(error, ScanError)
    assert str(error).startswith(f"worker 0 died {ray_engine.TRIES} times (")
