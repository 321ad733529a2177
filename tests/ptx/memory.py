"""The memories of a launch; they raise on accesses that fault on a GPU or race."""

import ctypes
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .counts import WARP

Places = NDArray[np.int64]
GARBAGE = 0xA5  # initial contents of memory
ANY, SEVERAL = -1, -2  # special thread numbers: any thread; several threads of different warps


class PtxError(AssertionError):
    """A kernel does something invalid."""


def words(data: NDArray[np.uint8], at: Places, size: int, count: int) -> NDArray[Any]:
    """Read `count` consecutive numbers of `size` bytes from each place: [n, count]."""
    numbers: NDArray[Any] = data.view(f"u{size}")
    result: NDArray[Any] = numbers[at[:, None] // size + np.arange(count)]
    return result


def put(data: NDArray[np.uint8], at: Places, values: NDArray[Any]) -> None:
    """Write numbers [n, count] from each place on; of several at one place the last remains."""
    size = values.dtype.itemsize
    data.view(f"u{size}")[at[:, None] // size + np.arange(values.shape[1])] = values


def aligned(addresses: NDArray[Any], size: int) -> None:
    """Raise PtxError unless addresses are multiples of `size`."""
    if (np.bitwise_and(addresses, size - 1) != 0).any():
        raise PtxError(f"an access of {size} bytes is not aligned")


class Races:
    """Finds races in global memory: who last read, wrote and combined each byte, and when.

    Two accesses of a byte conflict unless both read it or both combine (atomically). If other
    warps of a block make them, a barrier must be between; other blocks may not make them at all.

    Args:
        size: bytes.
    """

    CONFLICTS: ClassVar = {
        "reads": ("writes", "combines"),
        "writes": ("reads", "writes", "combines"),
        "combines": ("reads", "writes"),
    }
    MANY = 1 << 62  # a moment in several blocks

    def __init__(self, size: int) -> None:
        # Of the last access: its moment (see Machine.moments), or -1; and its warp, or SEVERAL.
        self._last = {kind: np.full((2, size), -1, np.int64) for kind in self.CONFLICTS}

    def note(self, kind: str, at: Places, size: int, moments: Places, warps: Places) -> None:
        """Threads access `size` bytes from each place on.

        Raises:
            PtxError: and earlier accesses conflict with these.
        """
        place = (at[:, None] + np.arange(size)).ravel()
        moment, warp = np.repeat(moments, size), np.repeat(warps, size)
        for other in self.CONFLICTS[kind]:
            then, by = self._last[other][:, place]
            raced = (then >= 0) & ((then >> 32 != moment >> 32) | (then == moment) & (by != warp))
            if raced.any():
                where = "block" if (then >> 32 != moment >> 32)[raced][0] else "warp"
                raise PtxError(f"a thread {kind} global memory that another {where} {other}")
        last = self._last[kind]
        then, by = last[:, place]
        elsewhere = (then >= 0) & (then >> 32 != moment >> 32)
        last[0, place] = np.where(elsewhere, self.MANY, moment)
        last[1, place] = np.where((then == moment) & (by != warp), SEVERAL, warp)
        # Of several at once the last is noted now: a second look finds the others.
        then, by = last[:, place]
        last[0, place[then >> 32 != moment >> 32]] = self.MANY
        last[1, place[by != warp]] = SEVERAL


Array = tuple[int, int, int]  # address on the device, bytes, address in memory


class GlobalMemory:
    """A copy of the arrays that a launch may use; written back at the end.

    Args:
        arrays: those that overlap on the device do so in memory.
        watched: whether races are found.
    """

    STEP = 256  # addresses keep their alignment up to this

    def __init__(self, arrays: Iterable[Array], watched: bool = True) -> None:
        merged: list[list[int]] = []
        for start, size, here in sorted(arrays):
            if merged and start < merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], start + size)
            elif size:
                merged.append([start, start + size, here])
        self.starts, self.ends, self.here = np.array(merged or [[0, 0, 0]], np.int64).T
        places, end = [], self.STEP
        for start, stop in zip(self.starts, self.ends, strict=True):
            place = end + (start - end) % self.STEP
            places.append(place)
            end = place + stop - start + self.STEP
        self.places = np.array(places, np.int64)
        self.data = np.full(-(-end // 16) * 16, GARBAGE, np.uint8)
        for view, place in self._views():
            self.data[place : place + len(view)] = view
        self.races = Races(len(self.data)) if watched else None

    def _views(self) -> Iterable[tuple[NDArray[np.uint8], int]]:
        """The arrays, and the offsets of their copies."""
        sizes = self.ends - self.starts
        for here, size, place in zip(self.here, sizes, self.places, strict=True):
            if size:
                yield _bytes_at(int(here), int(size)), int(place)

    def write_back(self) -> None:
        """Copy the results back to the arrays."""
        for view, place in self._views():
            view[:] = self.data[place : place + len(view)]

    def locate(self, addresses: NDArray[np.uint64], size: int) -> Places:
        """Offsets of `size` bytes at addresses."""
        aligned(addresses, size)
        at = addresses.astype(np.int64)
        which = np.searchsorted(self.starts, at, "right") - 1
        outside = (which < 0) | (at + size > self.ends[which])
        if outside.any():
            first = at[outside][0]
            near = self.starts[max(0, which[outside][0])]
            raise PtxError(
                f"{outside.sum()} accesses outside all arrays, at {near:#x} + {first - near}"
            )
        offsets: Places = at - self.starts[which] + self.places[which]
        return offsets


def _bytes_at(address: int, size: int) -> NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


class SharedMemory:
    """Shared memory of blocks, with a race detector: who last wrote and read each byte, and when.

    Between two barriers a byte changed by one thread may not be accessed by another, except by
    threads of its warp after a warp barrier; and a byte that an asynchronous copy is still writing
    may not be accessed at all.

    Args:
        blocks: number of blocks.
        threads: threads per block.
        size: bytes per block.
    """

    def __init__(self, blocks: int, threads: int, size: int) -> None:
        self.size, self.threads = -(-max(size, 1) // 16) * 16, threads
        total = blocks * self.size
        self.data = np.full(total, GARBAGE, np.uint8)
        self.written = np.zeros(total, bool)
        self.epochs = np.ones(blocks, np.int64)  # incremented at each barrier
        self._met = np.zeros(blocks * threads // WARP + 1, np.int64)  # barriers of each warp
        # (epoch, thread, warp barriers so far) of the last access; for several threads see
        # `_readers`
        self._writes = np.zeros((3, total), np.int64)
        self._reads = np.zeros((3, total), np.int64)
        self._arrives = np.zeros((2, total), np.int64)  # (thread, group) of the copy in flight
        self._begun = np.zeros(blocks * threads, np.int64)  # committed copy groups per thread
        self._done = np.ones(blocks * threads, np.int64)

    def locate(self, thread: NDArray[np.int64], addresses: NDArray[Any], size: int) -> Places:
        """Offsets of `size` bytes in the shared memory of the threads' blocks."""
        aligned(addresses, size)
        at = addresses.astype(np.int64)
        if (at + size > self.size).any():
            raise PtxError(f"shared memory of {self.size} bytes is read or written at {at.max()}")
        return thread // self.threads * self.size + at

    def reads(self, thread: NDArray[np.int64], at: Places, size: int) -> None:
        """Threads read `size` bytes from each place on."""
        place, who, epoch = self._each(thread, at, size)
        if not self.written[place].all():
            raise PtxError("shared memory is read that nobody wrote")
        self._landed(place)
        self._check(self._writes, place, who, epoch, "reads what another thread writes")
        before = np.where(self._reads[0, place] == epoch, self._reads[1, place], who)
        self._reads[:, place] = epoch, self._readers(before, who), self._met[who // WARP]
        # Of several simultaneous readers only the last is recorded: a second look finds the others.
        others = self._readers(self._reads[1, place], who)
        for chosen in (others < SEVERAL, others == SEVERAL):
            self._reads[1, place[chosen]] = others[chosen]

    def writes(self, thread: NDArray[np.int64], at: Places, values: NDArray[Any]) -> None:
        """Threads write numbers [n, count] from each place on; several may write the same value."""
        size = values[0].nbytes
        place, who, epoch = self._each(thread, at, size)
        self._landed(place)
        other = self.data[place] != np.ascontiguousarray(values).view(np.uint8).ravel()
        for last, what in ((self._writes, "writes"), (self._reads, "reads")):
            changed = (place[other], who[other], epoch[other])
            self._check(last, *changed, f"writes what another thread {what}")
        put(self.data, at, values)
        if (words(self.data, at, values.itemsize, values.shape[1]) != values).any():
            raise PtxError("threads write different numbers to a place at once")
        self._writes[:, place] = epoch, who, self._met[who // WARP]
        self.written[place] = True

    def combines(self, thread: NDArray[np.int64], at: Places, size: int) -> None:
        """Threads add to numbers or lower them, in any order.

        There must be no other access between two barriers.
        """
        place, _, epoch = self._each(thread, at, size)
        everyone = np.full_like(place, ANY)
        if not self.written[place].all():
            raise PtxError("what nobody wrote is added to in shared memory")
        self._check(self._writes, place, everyone, epoch, "adds to what another thread writes")
        self._check(self._reads, place, everyone, epoch, "adds to what another thread reads")
        self._writes[0, place], self._writes[1, place] = epoch, ANY

    def begins(self, thread: NDArray[np.int64], at: Places, values: NDArray[np.uint8]) -> None:
        """Threads begin to copy bytes [n, count] asynchronously."""
        self.writes(thread, at, values)
        place, who, _ = self._each(thread, at, values.shape[1])
        self._arrives[0, place], self._arrives[1, place] = who, self._begun[who] + 1

    def commits(self, thread: NDArray[np.int64]) -> None:
        """Close the current copy group of the threads."""
        self._begun[thread] += 1

    def waits(self, thread: NDArray[np.int64], but: int) -> None:
        """Threads wait for all copy groups except the last `but`."""
        done = self._begun[thread] - but + 1
        self._done[thread] = np.maximum(self._done[thread], done)

    def meets(self, thread: NDArray[np.int64]) -> None:
        """The warps of these threads pass a warp barrier."""
        self._met[thread // WARP] += 1

    def passes(self, block: int) -> None:
        """All threads of a block pass a barrier."""
        self.epochs[block] += 1

    @staticmethod
    def _warp_of(reader: Places) -> Places:
        """Warp of a thread, or of several in one warp; -1 for several warps or no thread."""
        several = np.where(reader < SEVERAL, SEVERAL - 1 - reader, -1)
        return np.where(reader >= 0, reader // WARP, several)

    def _readers(self, one: Places, other: Places) -> Places:
        """Merge two readers: a thread, several of one warp (below `SEVERAL`), or `SEVERAL`."""
        warp = self._warp_of(one)
        both = np.where(warp == other // WARP, SEVERAL - 1 - warp, SEVERAL)
        return np.where(one == other, other, both)

    def _each(self, thread: Places, at: Places, size: int) -> tuple[Places, Places, Places]:
        """Single bytes, with the thread and the epoch of each."""
        place = (at[:, None] + np.arange(size)).ravel()
        who = np.repeat(thread, size)
        return place, who, self.epochs[who // self.threads]

    def _landed(self, place: Places) -> None:
        owner, group = self._arrives[:, place]
        if (group >= self._done[owner]).any():
            raise PtxError("shared memory is touched that a copy is on its way to")

    def _check(
        self, last: NDArray[np.int64], place: Places, who: Places, epoch: Places, what: str
    ) -> None:
        epochs, threads, met = last[:, place]
        warp = self._warp_of(threads)
        apart = (warp < 0) | (warp != self._warp_of(who)) | (met == self._met[warp])
        raced = (epochs == epoch) & (threads != who) & apart
        if raced.any():
            first = int(np.flatnonzero(raced)[0])
            byte = int(place[first]) % self.size
            raise PtxError(
                f"a thread {what}, with no barrier between: byte {byte} of shared memory, threads "
                f"{who[first] % self.threads} and {threads[first] % self.threads}"
            )
