"""Distribute the parts of a store among workers, through small files in `part_done`.

A worker *claims* a part before it traces it, and rewrites the claim regularly as a heartbeat. It
takes its own share of the parts first, then the others that are left. A claim whose heartbeat
stops, or whose process is gone, is taken over. Claims only save work: a part that two workers
trace comes out the same twice, so correctness depends on no clock, lock or coordinator.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from ..errors import InputError, StoreError
from .processes import Process
from .storage import Storage, writing
from .store import DONE, Store

LEASE_SECONDS = 600.0  # a claim without a heartbeat for longer is taken over
POLL_SECONDS = 1.0  # between checks of parts that others have claimed
BEATS_A_LEASE = 20
DEATHS = 2  # workers lost at a part, from which on it is tried last: it may be what kills them


@dataclass(frozen=True)
class Worker:
    """One of `count` processes that share a scan.

    Example:
        >>> Worker(1, 4)
        Worker(index=1, count=4)

    Raises:
        InputError: an index outside 0..count-1.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise InputError(
                f"worker {self.index}/{self.count} does not exist: the first of {self.count} is "
                f"0/{self.count}"
            )

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> "Worker":
        """Return this process's number under torchrun or in a Slurm array; elsewhere 0 of 1.

        Raises:
            InputError: a variable that they set is missing or cannot be.

        Example:
            >>> Worker.of_environment({"RANK": "1", "WORLD_SIZE": "4"})
            Worker(index=1, count=4)
        """
        if "RANK" in environment and "WORLD_SIZE" in environment:
            return cls(_number(environment, "RANK"), _number(environment, "WORLD_SIZE"))
        if "SLURM_ARRAY_TASK_ID" in environment:
            first = _number(environment, "SLURM_ARRAY_TASK_MIN", "0")
            step = max(1, _number(environment, "SLURM_ARRAY_TASK_STEP", "1"))
            number = (_number(environment, "SLURM_ARRAY_TASK_ID") - first) // step
            return cls(number, _number(environment, "SLURM_ARRAY_TASK_COUNT"))
        return cls()


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    """Read a whole number from the environment; raises InputError if it is none."""
    value = environment.get(name, default)
    try:
        return int(value)
    except ValueError:
        raise InputError(
            f"environment variable {name}={value!r} is not a whole number: set it as torchrun or "
            "Slurm do, or say which worker this is (worker=, --worker I/N)"
        ) from None


@dataclass(frozen=True)
class Claim:
    """A worker's claim to a part, as stored in its file."""

    host: str
    process: int
    beat: int  # heartbeat counter, grows while the worker makes progress
    deaths: int = 0  # earlier workers that lost the part

    def to_bytes(self) -> bytes:
        """Serialise the claim; `of` reads it."""
        return json.dumps(vars(self)).encode()

    @classmethod
    def of(cls, data: bytes) -> "Claim | None":
        """Parse a claim; None if `data` is not a whole one, as after a full disk."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return None

    def alive(self) -> bool:
        """Return whether the owner may still work on the part.

        False if its process is known to be gone, or is this one: it asks only about parts that it
        does not work on.
        """
        owner = Process(self.host, self.process)
        return owner != Process.this() and not owner.gone()


@dataclass
class Claims:
    """This process's claims on the parts of one store."""

    storage: Storage
    lease_seconds: float = LEASE_SECONDS
    clock: Callable[[], float] = time.monotonic  # local: never compared across processes
    _beats: int = 0
    _last_beat: float = 0.0
    _deaths: dict[int, int] = field(default_factory=dict)
    _seen: dict[int, tuple[bytes, float]] = field(default_factory=dict)

    def _own(self, part: int) -> bytes:
        this = Process.this()
        return Claim(this.host, this.number, self._beats, self._deaths.get(part, 0)).to_bytes()

    def take(self, part: int) -> bool:
        """Try to claim a part; return whether it is this worker's now."""
        self._last_beat = self.clock()
        with writing(self.storage.path):
            if self.storage.create(_claim(part), self._own(part)):
                return True
            data = self.storage.get(_claim(part))
            if data is not None:
                if not self._abandoned(part, data):
                    return False
                previous = Claim.of(data)
                self._deaths[part] = 1 + (0 if previous is None else previous.deaths)
                self.storage.delete(_claim(part))
            return self.storage.create(_claim(part), self._own(part))

    def _abandoned(self, part: int, data: bytes) -> bool:
        claim = Claim.of(data)
        if claim is not None and not claim.alive():
            return True
        # Measured from when this process first saw these bytes, with a monotonic clock: the clocks
        # of other hosts, and wall clocks that are set back, do not matter.
        seen = self._seen.get(part)
        if seen is None or seen[0] != data:
            self._seen[part] = data, self.clock()
            return False
        return self.clock() - seen[1] > self.lease_seconds

    def beat(self, part: int) -> None:
        """Send a heartbeat for a part; writes at most `BEATS_A_LEASE` times per lease."""
        if self.clock() - self._last_beat > self.lease_seconds / BEATS_A_LEASE:
            self._beats += 1
            with writing(self.storage.path):
                self.storage.put(_claim(part), self._own(part))
            self._last_beat = self.clock()

    def release(self, part: int) -> None:
        """Give up the claim to a part, done or not."""
        with writing(self.storage.path):
            self.storage.delete(_claim(part))
        self._deaths.pop(part, None)


def claims_of(storage: Storage) -> dict[int, Claim]:
    """Return the claims in a store, by part."""
    claims = {}
    for name in storage.files(DONE):
        kind, _, number = name.partition(".")
        data = storage.get(f"{DONE}/{name}") if kind == "claim" else None
        claim = None if data is None else Claim.of(data)
        if claim is not None:
            claims[int(number)] = claim
    return claims


# In the folder of `part_done`: Zarr would misread a foreign file at the level of the arrays.
def _claim(part: int) -> str:
    return f"{DONE}/claim.{part}"


def _failure(part: int) -> str:
    return f"{DONE}/failed.{part}"


# ---- parts that fail -----------------------------------------------------------------------------


def note_failure(storage: Storage, part: int, reason: str) -> None:
    """Record why a part could not be traced."""
    with writing(storage.path):
        storage.put(_failure(part), reason.encode())


def forget_failure(storage: Storage, part: int) -> None:
    """Remove the record of a failure: the part was traced after all."""
    with writing(storage.path):
        storage.delete(_failure(part))


def failures_of(storage: Storage) -> dict[int, str]:
    """Return the reasons of recorded failures, by part in order."""
    failures = {}
    for name in storage.files(DONE):
        kind, _, number = name.partition(".")
        data = storage.get(f"{DONE}/{name}") if kind == "failed" else None
        if data is not None:
            failures[int(number)] = data.decode(errors="replace")
    return dict(sorted(failures.items()))


# ---- the order of parts --------------------------------------------------------------------------


def parts_for(
    store: Store, worker: Worker, claims: Claims, skip: set[int], stop: Callable[[], bool]
) -> Iterator[int]:
    """Yield parts for this worker to trace, each claimed, until all parts are done.

    Parts at which several workers died come last, so that they do not hold up the others. While
    other workers have claimed all that is left, waits to take over parts that they abandon.

    Args:
        store: whose parts.
        worker: determines which parts are tried first.
        claims: of this process on the store.
        skip: parts not to take; those yielded are added, as they may be waiting to be written.
        stop: called before every part; True ends the iteration.
    """
    while not stop():
        left = set(range(store.n_parts)) - set(store.done_parts()) - skip
        deadly = {
            part for part, claim in claims_of(store.storage).items() if claim.deaths >= DEATHS
        }
        order = sorted(
            left, key=lambda part: (part in deadly, (part - worker.index) % worker.count, part)
        )
        taken = next(filter(claims.take, order), None)
        if taken is not None:
            if store.is_done(taken):  # finished since `left` was computed
                claims.release(taken)
            else:
                skip.add(taken)
                yield taken
        elif left:
            time.sleep(POLL_SECONDS)
        else:
            break
    for part in claims_of(store.storage):
        if store.is_done(part):  # its worker died before releasing the claim
            with suppress(StoreError):  # a complete store may be on a read-only disk
                claims.release(part)
