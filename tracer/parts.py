"""Who does which part of a store: workers agree on it through small files beside what is done.

A worker *claims* a part before it traces it, and tells by rewriting the claim that it gets on. It
goes through its own share of the parts first, then through what others left. A claim that stands
still, or whose process is gone, is taken over. Claims only save work: a part that two workers trace
is the same twice, so no clock, no lock and no coordinator has to be right.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from ..errors import InputError
from .place import Place, writing
from .processes import Process
from .store import DONE, Store

LEASE_SECONDS = 600.0  # a claim that stands still for longer is taken over
POLL_SECONDS = 1.0  # between looks at parts that others have claimed
BEATS_A_LEASE = 20
DEATHS = 2  # of workers at a part: it comes after all others then, as it may be what kills them


@dataclass(frozen=True)
class Worker:
    """One of `count` processes that share a scan.

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
        """As torchrun or a Slurm array numbers this process; alone elsewhere.

        Example:
            >>> Worker.of_environment({"RANK": "1", "WORLD_SIZE": "4"})
            Worker(index=1, count=4)
        """
        if "RANK" in environment and "WORLD_SIZE" in environment:
            return cls(int(environment["RANK"]), int(environment["WORLD_SIZE"]))
        if "SLURM_ARRAY_TASK_ID" in environment:
            first = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
            step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
            number = (int(environment["SLURM_ARRAY_TASK_ID"]) - first) // step
            return cls(number, int(environment["SLURM_ARRAY_TASK_COUNT"]))
        return cls()


@dataclass(frozen=True)
class Claim:
    """A worker's word that it is at a part."""

    host: str
    process: int
    beat: int  # grows while the worker gets on
    deaths: int = 0  # of workers that had claimed the part before

    def to_bytes(self) -> bytes:
        """As `of` reads it."""
        return json.dumps(vars(self)).encode()

    @classmethod
    def of(cls, data: bytes) -> "Claim | None":
        """The claim that was written; None where it is none, as after a disk that was full."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return None

    def alive(self) -> bool:
        """False where its process is known to be gone, or to be this one, which has left it."""
        owner = Process(self.host, self.process)
        return owner != Process.this() and not owner.gone()


@dataclass
class Claims:
    """This process's claims on the parts of one store."""

    place: Place
    lease: float = LEASE_SECONDS
    clock: Callable[[], float] = time.monotonic  # of this process alone
    _beats: int = 0
    _last_beat: float = 0.0
    _deaths: dict[int, int] = field(default_factory=dict)
    _seen: dict[int, tuple[bytes, float]] = field(default_factory=dict)

    def _own(self, part: int) -> bytes:
        this = Process.this()
        return Claim(this.host, this.number, self._beats, self._deaths.get(part, 0)).to_bytes()

    def take(self, part: int) -> bool:
        """Whether the part is this worker's now."""
        self._last_beat = self.clock()
        with writing(self.place.path):
            if self.place.create(_claim(part), self._own(part)):
                return True
            data = self.place.get(_claim(part))
            if data is not None:
                if not self._abandoned(part, data):
                    return False
                left = Claim.of(data)
                self._deaths[part] = 1 + (0 if left is None else left.deaths)
                self.place.delete(_claim(part))
            return self.place.create(_claim(part), self._own(part))

    def _abandoned(self, part: int, data: bytes) -> bool:
        claim = Claim.of(data)
        if claim is not None and not claim.alive():
            return True
        # How long it has stood still is measured from where this process first saw it so: clocks
        # of others, or one that is set back, say nothing.
        seen = self._seen.get(part)
        if seen is None or seen[0] != data:
            self._seen[part] = data, self.clock()
            return False
        return self.clock() - seen[1] > self.lease

    def beat(self, part: int) -> None:
        """Tell that the worker gets on with a part; rarely writes."""
        if self.clock() - self._last_beat > self.lease / BEATS_A_LEASE:
            self._beats += 1
            with writing(self.place.path):
                self.place.put(_claim(part), self._own(part))
            self._last_beat = self.clock()

    def release(self, part: int) -> None:
        """Leave a part, done or not."""
        with writing(self.place.path):
            self.place.delete(_claim(part))
        self._deaths.pop(part, None)


def claims_of(place: Place) -> dict[int, Claim]:
    """Who is at which part."""
    found = {}
    for name in place.files(DONE):
        kind, _, number = name.partition(".")
        data = place.get(f"{DONE}/{name}") if kind == "claim" else None
        claim = None if data is None else Claim.of(data)
        if claim is not None:
            found[int(number)] = claim
    return found


# Beside the bytes of parts that are done: Zarr takes a file among arrays for something of its own.
def _claim(part: int) -> str:
    return f"{DONE}/claim.{part}"


def _failure(part: int) -> str:
    return f"{DONE}/failed.{part}"


# ---- parts that fail -----------------------------------------------------------------------------


def note_failure(place: Place, part: int, reason: str) -> None:
    """Leave word that a part could not be traced."""
    with writing(place.path):
        place.put(_failure(part), reason.encode())


def forget_failure(place: Place, part: int) -> None:
    """It could, after all."""
    with writing(place.path):
        place.delete(_failure(part))


def failures_of(place: Place) -> dict[int, str]:
    """Why parts could not be traced, by part."""
    found = {}
    for name in place.files(DONE):
        kind, _, number = name.partition(".")
        data = place.get(f"{DONE}/{name}") if kind == "failed" else None
        if data is not None:
            found[int(number)] = data.decode(errors="replace")
    return dict(sorted(found.items()))


# ---- whose turn it is ----------------------------------------------------------------------------


def parts_for(
    store: Store, worker: Worker, claims: Claims, skip: set[int], stop: Callable[[], bool]
) -> Iterator[int]:
    """The parts that this worker gets to trace, each claimed, until all are done.

    Those at which several workers died come last, so that they do not keep the others from being
    done. Where others are at all that is left it waits for them, to take over what they leave.

    Args:
        skip: parts not to take: those taken already, which may be waiting to be written.
        stop: asked before every part.
    """
    while not stop():
        left = set(range(store.n_parts)) - set(store.done_parts()) - skip
        deadly = {part for part, claim in claims_of(store.place).items() if claim.deaths >= DEATHS}
        order = sorted(
            left, key=lambda part: (part in deadly, (part - worker.index) % worker.count, part)
        )
        taken = next(filter(claims.take, order), None)
        if taken is not None:
            if store.is_done(taken):  # since it was looked at
                claims.release(taken)
            else:
                skip.add(taken)
                yield taken
        elif left:
            time.sleep(POLL_SECONDS)
        else:
            break
    for part in claims_of(store.place):
        if store.is_done(part):  # by a worker that died before it released it
            claims.release(part)
