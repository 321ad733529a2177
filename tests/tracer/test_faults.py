"""What can go wrong on the way of a scan: nothing is lost, and the store comes out the same."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byte_model import byte_model, save
from click.testing import CliRunner
from scan_workers import (
    CONTEXT,
    RULE,
    SECONDS,
    HeldJob,
    Job,
    assert_same_store,
    beside,
    killed_until_complete,
    shards,
    until,
    write_corpus,
)

from densitrace import (
    ModelError,
    NotFiniteError,
    ScanError,
    Store,
    StoreError,
    Tracer,
    open_store,
    scan,
)
from densitrace.tracer import parts, storage
from densitrace.tracer.cli import cli
from densitrace.tracer.parts import DEATHS, Claim, Claims, claims_of, failures_of
from densitrace.tracer.run import Limits, Run
from densitrace.tracer.signals import stop_signals
from densitrace.tracer.stored_plan import create_store

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS: dict[str, Any] = {"select": RULE, "context": CONTEXT}


@pytest.fixture(scope="module")
def jobs(
    byte_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Job]]:
    """Scans of one corpus, each into a store of its own."""
    folder = tmp_path_factory.mktemp("faults")
    corpus = folder / "corpus.jsonl"
    write_corpus(corpus)
    number = iter(range(1000))
    yield lambda: Job(byte_folder, corpus, folder / f"store{next(number)}")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def whole(jobs: Callable[[], Job]) -> tuple[Path, float]:
    """The store of a scan that nothing happened to, and the seconds that it took."""
    jobs().finished()  # the first is slow: what forks the others is made
    job, started = jobs(), time.monotonic()
    job.finished()
    seconds = time.monotonic() - started
    assert open_store(job.out).n_parts > 10
    return job.out, seconds


# ---- workers that die, hang, or are one too many -------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_random_moments(
    jobs: Callable[[], Job], whole: tuple[Path, float], workers: int
) -> None:
    path, seconds = whole
    moments, kills = random.Random(workers), 0
    while kills < 5:
        job = jobs()
        kills += killed_until_complete(job, workers, seconds, moments)
        assert_same_store(job.out, path)
        assert beside(job.out) == []


def test_a_worker_that_hangs_is_replaced(
    jobs: Callable[[], Job], whole: tuple[Path, float]
) -> None:
    job = jobs()
    hanging = HeldJob(job.model, job.corpus, job.out)
    (process,) = hanging.started()
    until(lambda: job.out.exists() and bool(claims_of(open_store(job.out).storage)))
    os.kill(process.pid or 0, signal.SIGSTOP)
    hanging.release()
    Job(job.model, job.corpus, job.out, lease=0.5).finished()
    assert_same_store(job.out, whole[0])
    os.kill(process.pid or 0, signal.SIGCONT)
    process.join()
    assert process.exitcode == 0
    assert_same_store(job.out, whole[0])


def test_two_workers_on_the_same_parts(
    jobs: Callable[[], Job], whole: tuple[Path, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Claims, "take", lambda *_: True)
    job = jobs()
    Job(job.model, job.corpus, job.out).run()  # plans; and does all parts
    for part in range(1, 12):
        open_store(job.out).storage.delete(f"part_done/c.{part}")
    threads = [threading.Thread(target=job.run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same_store(job.out, whole[0])


def test_what_a_killed_planner_left_is_removed(
    jobs: Callable[[], Job], whole: tuple[Path, float]
) -> None:
    job = jobs()
    (process,) = job.started()
    until(lambda: bool(beside(job.out)) or not process.is_alive())
    process.kill()
    process.join()
    alive = job.out.with_name(f".{job.out.name}.0.{socket.gethostname()}.{os.getpid()}.planning")
    alive.mkdir()
    job.finished()
    assert_same_store(job.out, whole[0])
    assert beside(job.out) == [alive.name]
    alive.rmdir()


def test_two_who_plan_at_once_keep_what_either_has_done(
    jobs: Callable[[], Job], whole: tuple[Path, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, created = jobs(), create_store

    def after_another(*given: Any, **how: Any) -> Store:
        monkeypatch.setattr("densitrace.tracer.scan.create_store", created)
        run_here(job, limits=Limits(max_parts=3))
        return created(*given, **how)

    monkeypatch.setattr("densitrace.tracer.scan.create_store", after_another)
    written: list[int] = []
    write_part = Store.write_part

    def noted(store: Store, part: int, *given: Any) -> int:
        written.append(part)
        return write_part(store, part, *given)

    monkeypatch.setattr(Store, "write_part", noted)
    run_here(job)
    assert written == list(range(open_store(job.out).n_parts))
    assert_same_store(job.out, whole[0])
    assert beside(job.out) == []


def test_asked_to_stop(jobs: Callable[[], Job], whole: tuple[Path, float]) -> None:
    """The part at hand is left without a trace, and nobody waits for it."""
    job = jobs()

    def one_is_done() -> bool:
        return job.out.exists() and bool(open_store(job.out).done_parts())

    run_here(job, limits=Limits(should_stop=one_is_done))
    store = open_store(job.out)
    assert 0 < len(store.done_parts()) < store.n_parts
    assert claims_of(store.storage) == {}
    job.finished()
    assert_same_store(job.out, whole[0])


def run_here(job: Job, **options: Any) -> None:
    """A job in this process, small parts and all, without changing what others see."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("densitrace.tracer.layout.PART_VALUES", 2 * CONTEXT * len(RULE))
        patch.setattr(parts, "POLL_SECONDS", 0.05)
        tracer = Tracer.from_pretrained(job.model, device="cpu")
        scan(tracer, job.corpus, job.out, batch_tokens=CONTEXT, **OPTIONS, **options)


def test_sigterm_ends_a_command_cleanly(
    jobs: Callable[[], Job], whole: tuple[Path, float], tmp_path: Path
) -> None:
    job = jobs()
    run_here(job, limits=Limits(max_parts=1))
    # One window a batch, as the others have it.
    command = [sys.executable, "-m", "densitrace", "scan", job.corpus]
    command += ["--model", job.model, "--out", job.out]
    command += ["--thresholds", "0.2,0.05,0.01", "--context", CONTEXT, "--batch-tokens", CONTEXT]
    command += ["--log", tmp_path / "log"]
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    until(lambda: (tmp_path / "log").exists() and "part done" in (tmp_path / "log").read_text())
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=SECONDS)
    store = open_store(job.out)
    if process.returncode == 0:  # it had just become complete
        assert store.complete
    else:
        # Before it, torchao and others may have told what they miss on this machine.
        assert error.splitlines()[-1] == (
            "densitrace: stopped by a signal; finished parts are kept, run the same command to "
            "continue"
        )
        assert process.returncode == 1
    assert claims_of(store.storage) == {}
    job.finished()
    assert_same_store(job.out, whole[0])


def test_the_second_interrupt_ends_at_once() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with stop_signals() as stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
            assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize("limits", [Limits(max_parts=3), Limits(seconds=0.0)])
def test_limits(jobs: Callable[[], Job], whole: tuple[Path, float], limits: Limits) -> None:
    job = jobs()
    run_here(job, limits=limits)
    store = open_store(job.out)
    assert len(store.done_parts()) == (limits.max_parts or 0)
    assert claims_of(store.storage) == {}
    job.finished(2)
    assert_same_store(job.out, whole[0])


# ---- parts that fail -----------------------------------------------------------------------------


class Failing:
    """Raises on parts 3 and 5, so many times each."""

    def __init__(self, times: int, error: Exception) -> None:
        self.left = {3: times, 5: times}
        self.error = error

    def __call__(self, run: Any, part: int) -> Any:
        if self.left.get(part, 0) > 0:
            self.left[part] -= 1
            raise self.error
        return TRACE(run, part)


TRACE = Run._trace


OUT_OF_LUCK = RuntimeError("CUDA error: out of luck")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Parts 3 and 5 fail, so many times each."""

    def fail(times: int, error: Exception = OUT_OF_LUCK) -> None:
        trouble = Failing(times, error)
        monkeypatch.setattr(Run, "_trace", lambda run, part: trouble(run, part))
        monkeypatch.setattr("densitrace.tracer.run.RETRY_SECONDS", (0.0, 0.0))

    return fail


@pytest.mark.parametrize(
    "error",
    [
        OUT_OF_LUCK,
        MemoryError(),
        ModelError("weights cannot be read: Input/output error"),
        torch.AcceleratorError("CUDA error: out of memory"),
    ],
)
def test_a_part_is_tried_again(
    jobs: Callable[[], Job],
    whole: tuple[Path, float],
    failing: Callable[..., None],
    error: Exception,
) -> None:
    failing(2, error)
    job = jobs()
    run_here(job)
    assert_same_store(job.out, whole[0])


def test_a_lost_device_ends_the_worker_and_frees_its_part(
    jobs: Callable[[], Job], whole: tuple[Path, float], failing: Callable[..., None]
) -> None:
    """Nothing else could run on it; another worker, or the same command, goes on at once."""
    failing(1, torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    job = jobs()
    for _ in (3, 5):
        with pytest.raises(ScanError, match=r"device failed: CUDA error: an illegal .* continues"):
            run_here(job)
    run_here(job)
    assert_same_store(job.out, whole[0])


def test_what_a_failed_part_held_is_freed_before_the_pause(
    jobs: Callable[[], Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    seen: list[object] = []

    def fail(run: Run, part: int) -> Any:
        if held:
            return TRACE(run, part)
        states = torch.zeros(3)
        held.append(weakref.ref(states))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def empty_cache() -> None:
        seen.extend(states() for states in held)

    monkeypatch.setattr(Run, "_trace", fail)
    monkeypatch.setattr("densitrace.tracer.run.RETRY_SECONDS", (0.0,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    run_here(jobs())
    assert seen == [None]


def test_what_overflows_is_not_tried_again(
    jobs: Callable[[], Job], failing: Callable[..., None]
) -> None:
    failing(1, NotFiniteError("NaN"))
    with pytest.raises(ScanError, match=r"2 of \d+ parts .* part 3 first: NaN"):
        run_here(jobs())


def test_a_part_whose_workers_died_comes_last(
    jobs: Callable[[], Job], whole: tuple[Path, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs()
    run_here(job, limits=Limits(max_parts=1))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    where = open_store(job.out).storage
    for part, before in ((1, DEATHS), (2, DEATHS - 1)):
        claim = Claim(socket.gethostname(), gone.pid, beat=0, deaths=before)
        where.put(f"part_done/claim.{part}", claim.to_bytes())
    shown = CliRunner().invoke(cli, ["status", str(job.out)])
    told = " ".join(shown.stdout.replace("│", " ").split())
    assert f"(gone); {DEATHS} workers before it were lost" in told
    order: list[int] = []

    def noted(run: Any, part: int) -> Any:
        order.append(part)
        deaths.append(claims_of(where)[part].deaths)
        return TRACE(run, part)

    deaths: list[int] = []
    monkeypatch.setattr(Run, "_trace", noted)
    run_here(job)
    assert order == [2, *range(3, open_store(job.out).n_parts), 1]
    assert (deaths[0], set(deaths[1:-1]), deaths[-1]) == (DEATHS, {0}, DEATHS + 1)
    assert_same_store(job.out, whole[0])


def test_parts_that_fail_are_named_and_the_rest_goes_on(
    jobs: Callable[[], Job], whole: tuple[Path, float], failing: Callable[..., None]
) -> None:
    failing(3)
    job = jobs()
    with pytest.raises(ScanError, match=r"2 of \d+ parts .* part 3 first: CUDA error: out of luck"):
        run_here(job)
    store = open_store(job.out)
    assert set(range(store.n_parts)) - set(store.done_parts()) == {3, 5}
    assert failures_of(store.storage) == dict.fromkeys((3, 5), "CUDA error: out of luck")
    shown = CliRunner().invoke(cli, ["status", str(job.out)])
    assert shown.exit_code == 0
    assert "failed: CUDA error: out of luck" in shown.stdout
    run_here(job)  # it has had its three times
    assert_same_store(job.out, whole[0])


# ---- disks ---------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which can be full or read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "densitrace-test", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("left", [30_000, 0])  # room for claims, for nothing
def test_a_disk_that_is_full(
    jobs: Callable[[], Job], whole: tuple[Path, float], small_disk: Path, left: int
) -> None:
    job = jobs()
    job = Job(job.model, job.corpus, small_disk / "store")
    run_here(job, limits=Limits(max_parts=2))
    ballast = small_disk / "ballast"
    free = shutil.disk_usage(small_disk).free
    ballast.write_bytes(bytes(max(0, free - left)))
    with pytest.raises(StoreError, match="No space left on device; finished parts are kept"):
        run_here(job)
    done = open_store(job.out).done_parts()
    assert len(done) >= 2
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    run_here(job)
    assert_same_store(job.out, whole[0])


def test_a_disk_that_cannot_be_written(
    jobs: Callable[[], Job], whole: tuple[Path, float], small_disk: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    job = jobs()
    job = Job(job.model, job.corpus, small_disk / "store")
    run_here(job, limits=Limits(max_parts=2))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StoreError, match="cannot be written"):
        run_here(job)
    assert len(open_store(job.out).done_parts()) == 2
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    run_here(job)
    assert_same_store(job.out, whole[0])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    run_here(job)  # nothing is left to be written


def test_a_disk_is_not_replaced_by_a_store(jobs: Callable[[], Job], small_disk: Path) -> None:
    job = jobs()
    with pytest.raises(StoreError, match=r"mount point, .* choose a path in it"):
        run_here(Job(job.model, job.corpus, small_disk))


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_damaged_parts_are_found_and_done_again(
    jobs: Callable[[], Job], whole: tuple[Path, float], damage: str
) -> None:
    job = jobs()
    shutil.copytree(whole[0], job.out)
    names = ("tv/c.4.0.0", "token/c.7.0", "topology/c.2.0.0.0.0")
    for name in names:
        file = job.out / name
        data = bytearray(file.read_bytes())
        if damage == "missing":
            file.unlink()
        elif damage == "truncated":
            file.write_bytes(data[: len(data) // 2])
        else:
            data[len(data) // 3] ^= 1
            file.write_bytes(data)
    with pytest.raises(StoreError, match="'tv', is damaged"):
        open_store(job.out).tokens()
    result = CliRunner().invoke(cli, ["status", str(job.out), "--repair"])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("damaged, to be done again") == 3
    store = open_store(job.out)
    assert set(range(store.n_parts)) - set(store.done_parts()) == {2, 4, 7}
    run_here(job)
    assert_same_store(job.out, whole[0])


PLANNED = ["plan/token/c.0", "plan/span/c.0.0", "plan/length/c.0", "plan/first/c.0", "text/c.0"]


@pytest.mark.parametrize("damage", ["flipped", "missing"])
@pytest.mark.parametrize("name", PLANNED)
def test_a_damaged_plan_is_found_and_not_scanned(
    jobs: Callable[[], Job], whole: tuple[Path, float], name: str, damage: str
) -> None:
    job = jobs()
    shutil.copytree(whole[0], job.out)
    (job.out / "part_done" / "c.3").unlink()
    file = job.out / name
    if damage == "missing":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
    result = CliRunner().invoke(cli, ["status", str(job.out), "--repair"])
    assert result.exit_code == 1
    assert re.search(rf"the plan is damaged: .*{name.split('/')[-2]}", result.stderr)
    told = f"{name.rpartition('/')[0]}', is damaged: .*; overwrite the store"
    if name.startswith("plan"):
        with pytest.raises(StoreError, match=told):
            run_here(job)
    else:
        with pytest.raises(StoreError, match=told):
            _ = open_store(job.out).documents


# ---- what changed in between ---------------------------------------------------------------------


def test_a_corpus_line_that_broke_in_between(jobs: Callable[[], Job]) -> None:
    job = jobs()
    corpus = job.out.with_suffix(".jsonl")
    lines = job.corpus.read_text().splitlines(keepends=True)
    corpus.write_text("".join(lines))
    job = Job(job.model, corpus, job.out)
    run_here(job, limits=Limits(max_parts=2))
    before = shards(job.out)
    corpus.write_text("".join([*lines[:9], "{broken\n", *lines[10:]]))
    with pytest.raises(StoreError, match=r"corpus is .* there, .* here"):
        run_here(job)
    assert shards(job.out) == before


def test_a_tokenizer_that_changed(
    jobs: Callable[[], Job], byte_folder: Path, tmp_path: Path
) -> None:
    job = jobs()
    run_here(job, limits=Limits(max_parts=2))
    model = save(tmp_path / "other", byte_model())
    shutil.copy(byte_folder / "model.safetensors", model)
    described = json.loads((model / "tokenizer.json").read_text())
    described["pre_tokenizer"]["add_prefix_space"] = True
    (model / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(StoreError, match=r"tokenizer is .* there, .* here"):
        run_here(Job(model, job.corpus, job.out))


def test_a_clock_set_back(
    jobs: Callable[[], Job], whole: tuple[Path, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time of day runs backwards; a part whose worker stands still is taken over all the same.

    Who took the time of day for how long that was would wait for ever.
    """
    now = time.time()
    passed = iter(np.linspace(0, -1e6, 1_000_000).tolist())
    monkeypatch.setattr(time, "time", lambda: now + next(passed))
    job = jobs()
    run_here(job, limits=Limits(max_parts=2))
    open_store(job.out).storage.put("part_done/claim.2", Claim("elsewhere", 1, beat=0).to_bytes())
    monkeypatch.setattr(time, "time", lambda: now - 1e7 + next(passed))
    run_here(job, lease_seconds=0.2)
    assert_same_store(job.out, whole[0])


def test_a_part_is_durable_before_it_is_marked_done(
    jobs: Callable[[], Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its files and their folders are flushed, then the mark is put, then its folder is."""
    happened: list[str] = []
    flush = storage._flush

    def noted(path: Path) -> None:
        happened.append(str(path))
        flush(path)

    monkeypatch.setattr(storage, "_flush", noted)
    job = jobs()
    run_here(job, limits=Limits(max_parts=1))
    store = open_store(job.out)
    mark, *files = store.keys(0)
    put = max(n for n, path in enumerate(happened) if f"/.{Path(mark).name}." in path)
    before, after = happened[:put], happened[put + 1 :]
    assert {str(job.out / key) for key in files} <= set(before)
    assert {str((job.out / key).parent) for key in files} <= set(before)
    assert str((job.out / mark).parent) in after
