"""Who does which part: numbering, claims, what is left by others."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densitrace import InputError
from densitrace.tracer.parts import (
    Claim,
    Claims,
    Worker,
    claims_of,
    failures_of,
    forget_failure,
    note_failure,
)
from densitrace.tracer.storage import Folder, Storage, storage_of

LEASE = 100.0


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["folder", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Folder(tmp_path) if request.param == "folder" else storage_of(f"memory://{tmp_path}")


def others(storage: Storage, part: int, host: str, process: int, beat: int = 0) -> None:
    """Another process claims a part."""
    storage.put(f"part_done/claim.{part}", Claim(host, process, beat).to_bytes())


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Worker(0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, Worker(1, 4)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_STEP": "2",
          "SLURM_ARRAY_TASK_COUNT": "5"}, Worker(2, 5)),
        ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"}, Worker(1, 2)),
        ({"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_STEP": "0",
          "SLURM_ARRAY_TASK_COUNT": "1"}, Worker(0, 1)),
    ],
)  # fmt: skip
def test_numbering(environment: dict[str, str], expected: Worker) -> None:
    assert Worker.of_environment(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "abc", "WORLD_SIZE": "2"}, "RANK='abc' is not a whole number: .* --worker I/N"),
        ({"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_COUNT='' is not a whole number"),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "2"}, "worker 5/2 does not exist"),
    ],
)
def test_an_environment_without_a_number(environment: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Worker.of_environment(environment)


@pytest.mark.parametrize(("index", "count"), [(1, 1), (-1, 2), (0, 0)])
def test_workers_that_do_not_exist(index: int, count: int) -> None:
    with pytest.raises(InputError, match=f"worker {index}/{count} does not exist"):
        Worker(index, count)


def test_a_claim_keeps_others_away(storage: Storage) -> None:
    ours = Claims(storage, LEASE)
    assert ours.take(3)
    assert claims_of(storage) == {3: Claim(socket.gethostname(), os.getpid(), 0)}
    others(storage, 4, "elsewhere", 1)
    assert not ours.take(4)
    ours.release(3)
    assert list(claims_of(storage)) == [4]


def test_a_claim_that_stands_still_is_taken_over(storage: Storage) -> None:
    clock = Clock()
    ours = Claims(storage, LEASE, clock)
    others(storage, 0, "elsewhere", 1, beat=1)
    assert not ours.take(0)
    clock.now += LEASE + 1
    others(storage, 0, "elsewhere", 1, beat=2)  # it gets on
    assert not ours.take(0)
    clock.now += LEASE - 1
    assert not ours.take(0)
    clock.now += 2
    assert ours.take(0)
    assert claims_of(storage)[0].process == os.getpid()


def test_a_clock_set_back_takes_nothing_over(storage: Storage) -> None:
    clock = Clock()
    ours = Claims(storage, LEASE, clock)
    others(storage, 0, "elsewhere", 1)
    assert not ours.take(0)
    clock.now -= 10 * LEASE
    assert not ours.take(0)
    assert ours.take(1)


def test_a_process_that_is_gone_holds_nothing(storage: Storage) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    others(storage, 0, socket.gethostname(), process.pid)
    assert Claims(storage, LEASE).take(0)


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b'{"host": "x"}', b"\xff"])
def test_a_claim_that_cannot_be_read_ends_after_a_lease(storage: Storage, data: bytes) -> None:
    clock = Clock()
    ours = Claims(storage, LEASE, clock)
    storage.put("part_done/claim.0", data)
    assert not ours.take(0)
    assert claims_of(storage) == {}
    clock.now += LEASE + 1
    assert ours.take(0)


def test_beats_are_seldom_written(storage: Storage) -> None:
    clock = Clock()
    ours = Claims(storage, LEASE, clock)
    ours.take(0)
    for _ in range(int(LEASE)):
        clock.now += 1
        ours.beat(0)
    assert 10 <= claims_of(storage)[0].beat <= 20


def test_failures(storage: Storage) -> None:
    note_failure(storage, 12, "NaN")
    note_failure(storage, 2, "out of memory")
    assert failures_of(storage) == {2: "out of memory", 12: "NaN"}
    forget_failure(storage, 12)
    forget_failure(storage, 99)
    assert failures_of(storage) == {2: "out of memory"}


@given(st.binary(), st.binary())
def test_what_is_put_is_there_and_what_is_created_stays(first: bytes, second: bytes) -> None:
    storage = storage_of("memory://put")
    storage.delete("a/b")
    assert storage.get("a/b") is None
    assert storage.create("a/b", first)
    assert not storage.create("a/b", second)
    assert storage.get("a/b") == first
    storage.put("a/b", second)
    assert (storage.get("a/b"), storage.size("a/b")) == (second, len(second))
