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
from densitrace.tracer.place import Folder, Place, place_of

LEASE = 100.0


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Folder(tmp_path) if request.param == "folder" else place_of(f"memory://{tmp_path}")


def others(place: Place, part: int, host: str, process: int, beat: int = 0) -> None:
    """Another process claims a part."""
    place.put(f"part_done/claim.{part}", Claim(host, process, beat).to_bytes())


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Worker(0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, Worker(1, 4)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_STEP": "2",
          "SLURM_ARRAY_TASK_COUNT": "5"}, Worker(2, 5)),
    ],
)  # fmt: skip
def test_numbering(environment: dict[str, str], expected: Worker) -> None:
    assert Worker.of_environment(environment) == expected


@pytest.mark.parametrize(("index", "count"), [(1, 1), (-1, 2), (0, 0)])
def test_workers_that_do_not_exist(index: int, count: int) -> None:
    with pytest.raises(InputError, match=f"worker {index}/{count} does not exist"):
        Worker(index, count)


def test_a_claim_keeps_others_away(place: Place) -> None:
    ours = Claims(place, LEASE)
    assert ours.take(3)
    assert claims_of(place) == {3: Claim(socket.gethostname(), os.getpid(), 0)}
    others(place, 4, "elsewhere", 1)
    assert not ours.take(4)
    ours.release(3)
    assert list(claims_of(place)) == [4]


def test_a_claim_that_stands_still_is_taken_over(place: Place) -> None:
    clock = Clock()
    ours = Claims(place, LEASE, clock)
    others(place, 0, "elsewhere", 1, beat=1)
    assert not ours.take(0)
    clock.now += LEASE + 1
    others(place, 0, "elsewhere", 1, beat=2)  # it gets on
    assert not ours.take(0)
    clock.now += LEASE - 1
    assert not ours.take(0)
    clock.now += 2
    assert ours.take(0)
    assert claims_of(place)[0].process == os.getpid()


def test_a_clock_set_back_takes_nothing_over(place: Place) -> None:
    clock = Clock()
    ours = Claims(place, LEASE, clock)
    others(place, 0, "elsewhere", 1)
    assert not ours.take(0)
    clock.now -= 10 * LEASE
    assert not ours.take(0)
    assert ours.take(1)


def test_a_process_that_is_gone_holds_nothing(place: Place) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    others(place, 0, socket.gethostname(), process.pid)
    assert Claims(place, LEASE).take(0)


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b'{"host": "x"}', b"\xff"])
def test_a_claim_that_cannot_be_read_ends_after_a_lease(place: Place, data: bytes) -> None:
    clock = Clock()
    ours = Claims(place, LEASE, clock)
    place.put("part_done/claim.0", data)
    assert not ours.take(0)
    assert claims_of(place) == {}
    clock.now += LEASE + 1
    assert ours.take(0)


def test_beats_are_seldom_written(place: Place) -> None:
    clock = Clock()
    ours = Claims(place, LEASE, clock)
    ours.take(0)
    for _ in range(int(LEASE)):
        clock.now += 1
        ours.beat(0)
    assert 10 <= claims_of(place)[0].beat <= 20


def test_failures(place: Place) -> None:
    note_failure(place, 12, "NaN")
    note_failure(place, 2, "out of memory")
    assert failures_of(place) == {2: "out of memory", 12: "NaN"}
    forget_failure(place, 12)
    forget_failure(place, 99)
    assert failures_of(place) == {2: "out of memory"}


@given(st.binary(), st.binary())
def test_what_is_put_is_there_and_what_is_created_stays(first: bytes, second: bytes) -> None:
    place = place_of("memory://put")
    place.delete("a/b")
    assert place.get("a/b") is None
    assert place.create("a/b", first)
    assert not place.create("a/b", second)
    assert place.get("a/b") == first
    place.put("a/b", second)
    assert (place.get("a/b"), place.size("a/b")) == (second, len(second))
