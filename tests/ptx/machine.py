"""Threads that run an entry: some blocks of a launch, instruction by instruction.

Groups of threads at different instructions take turns, those furthest behind first, so that they
reconverge. Blocks do not take turns: all blocks of a machine advance together.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arithmetic import TYPES, Value, constant
from .counts import WARP, Counts
from .memory import GARBAGE, GlobalMemory, PtxError, SharedMemory
from .program import Address, Entry, Instruction, Label, Operand, Register, Special

TURNS = ("bra", "ret", "exit", "bar", "barrier")  # instructions that may change control flow

Who = NDArray[np.int64]  # thread indices, ascending
Step = Callable[["Machine", Who], None]


@dataclass(frozen=True)
class Launch:
    """A kernel with its launch parameters."""

    entry: Entry
    grid: tuple[int, int, int]  # blocks along x, y, z
    threads: int  # per block
    arguments: bytes  # packed as the entry's parameters
    shared_bytes: int = 0  # in addition to the entry's own


class Machine:
    """Runs some blocks of a launch.

    Args:
        what: the launch.
        steps: the function of each instruction.
        blocks: the blocks that run here.
        memory: global memory, shared by all machines of the launch.
        counts: where to count, if wanted.
    """

    def __init__(
        self,
        what: Launch,
        steps: list[Step],
        blocks: NDArray[np.int64],
        memory: GlobalMemory,
        counts: Counts | None = None,
    ) -> None:
        self.what, self.entry, self.steps = what, what.entry, steps
        self.memory, self.counts = memory, counts
        self.count = len(blocks) * what.threads
        self.everyone = np.arange(self.count)
        self.bank = np.frombuffer(what.arguments, np.uint8)
        size = self.entry.shared_bytes + what.shared_bytes
        self.shared = SharedMemory(len(blocks), what.threads, size)
        self.pc = 0
        self._block = np.repeat(blocks, what.threads)
        self._registers: dict[str, NDArray[Any]] = {}
        # Per block: number of threads still running, and the groups waiting at its barrier.
        self._running = np.full(len(blocks), what.threads)
        self._halted: list[list[Who]] = [[] for _ in blocks]

    # ---- control ---------------------------------------------------------------------------

    def run(self) -> None:
        """Run until all threads have returned."""
        places: dict[int, Who] = {0: self.everyone}
        while places:
            self.pc = min(places)
            who = places.pop(self.pc)
            for at, those in self._go_on(who, min(places, default=len(self.steps))):
                here = places.get(at)
                places[at] = those if here is None else np.sort(np.concatenate([here, those]))

    def _go_on(self, who: Who, until: int) -> Iterator[tuple[int, Who]]:
        """Run threads up to `until` or a control-flow instruction; yields where they continue."""
        while True:
            it = self.entry.instructions[self.pc]
            try:
                if self.counts is not None:
                    self.counts.issue(it, who)
                if it.name in TURNS:
                    yield from self._turn(it, who)
                    return
                self.steps[self.pc](self, who)
            except PtxError as error:
                raise PtxError(f"{error}\n  at {it.text}") from None
            self.pc += 1
            if self.pc >= until:
                yield self.pc, who
                return

    def _turn(self, it: Instruction, who: Who) -> Iterator[tuple[int, Who]]:
        """Execute a control-flow instruction; yields where the threads continue."""
        those = self.guarded(it, who)
        if len(those) < len(who):
            yield self.pc + 1, np.setdiff1d(who, those, assume_unique=True)
        if not len(those):
            return
        if it.name == "bra":
            (target,) = (each for each in it.operands if isinstance(each, Label))
            yield self.entry.labels[target.name], those
        elif it.name in ("ret", "exit"):
            np.subtract.at(self._running, those // self.what.threads, 1)
            yield from self._released(self.pc)
        elif "warp" in it.modifiers:
            self.shared.meets(self.warps(those)[:, 0])
            yield self.pc + 1, those
        else:
            if it.operands[:1] != (0,):
                raise PtxError("only one barrier is known")
            self.warps(those)
            for block in np.unique(those // self.what.threads):
                self._halted[block].append(those[those // self.what.threads == block])
            yield from self._released(self.pc + 1)

    def _released(self, after: int) -> Iterator[tuple[int, Who]]:
        """Threads of blocks whose running threads have all reached the barrier."""
        for block, halted in enumerate(self._halted):
            if halted and sum(map(len, halted)) == self._running[block]:
                self.shared.passes(block)
                self._halted[block] = []
                yield after, np.sort(np.concatenate(halted))

    def guarded(self, it: Instruction, who: Who) -> Who:
        """Threads whose guard holds."""
        return who if it.guard is None else who[self._held(it.guard)[who] != it.unless]

    def warps(self, who: Who) -> Who:
        """Threads as [warp, lane]; raises PtxError if a warp is incomplete."""
        lanes = who[: len(who) // WARP * WARP].reshape(-1, WARP)
        if lanes.size < len(who) or (lanes != lanes[:, :1] // WARP * WARP + np.arange(WARP)).any():
            raise PtxError("the threads of a warp are not together")
        return lanes

    def moments(self, who: Who) -> NDArray[np.int64]:
        """When threads run: their block, and how many barriers it has passed."""
        return self._block[who] << 32 | self.shared.epochs[who // self.what.threads]

    # ---- registers -------------------------------------------------------------------------

    def _held(self, register: Register) -> NDArray[Any]:
        """A register of all threads."""
        values = self._registers.get(register.name)
        if values is None:
            dtype = np.dtype(f"u{register.bytes}") if register.bytes else np.dtype(bool)
            values = np.zeros(self.count, dtype)
            values.view(np.uint8)[:] = GARBAGE if register.bytes else 0
            self._registers[register.name] = values
        return values

    def get(self, operand: Operand, kind: str, who: Who) -> Value:
        """An operand's value for some threads; a scalar if all share it."""
        dtype = TYPES[kind]
        match operand:
            case Register():
                value = self._held(operand)
                if len(who) != self.count:
                    value = value[who]
                if value.dtype.itemsize != dtype.itemsize:
                    value = value.astype(f"u{dtype.itemsize}")
                return value.view(dtype)
            case int():
                return constant(operand, kind)
            case Special():
                return self._special(operand.name, who).astype(dtype)
            case tuple():  # values packed side by side into one
                part = f"u{8 * dtype.itemsize // len(operand)}"
                return np.stack([self.each(one, part, who) for one in operand], -1).view(dtype)[
                    :, 0
                ]
            case Address():
                offset = constant(operand.offset, kind)
                return self.get(operand.base, kind, who) + offset
        raise PtxError(f"{operand} has no value")

    def each(self, operand: Operand, kind: str, who: Who) -> NDArray[Any]:
        """An operand's value for each of some threads [n]."""
        return np.broadcast_to(self.get(operand, kind, who), len(who))

    def set(self, operand: Operand, kind: str, who: Who, value: Value) -> None:
        """Set an operand for some threads: [n] values, or one for all."""
        dtype = TYPES[kind]
        match operand:
            case None:
                return
            case Register():
                own = self._held(operand)
                value = np.asarray(value, dtype)
                if own.dtype.itemsize != dtype.itemsize:  # a wider register sign-extends
                    wide = f"{'i' if dtype.kind == 'i' else 'u'}{own.dtype.itemsize}"
                    value = value.astype(wide)
                own[slice(None) if len(who) == self.count else who] = value.view(own.dtype)
            case tuple():
                part = f"u{8 * dtype.itemsize // len(operand)}"
                every = np.ascontiguousarray(np.broadcast_to(value, len(who)))
                parts = every[:, None].view(TYPES[part])
                for i, one in enumerate(operand):
                    self.set(one, part, who, parts[:, i])
            case _:
                raise PtxError(f"{operand} takes no value")

    def _special(self, name: str, who: Who) -> Value:
        which, _, axis = name.partition(".")
        along = "xyz".index(axis) if axis else 0
        match which:
            case "%tid":
                return who % self.what.threads * (along == 0)
            case "%ntid":
                return np.int64(self.what.threads if along == 0 else 1)
            case "%ctaid":
                return np.unravel_index(self._block[who], self.what.grid, "F")[along]
            case "%nctaid":
                return np.int64(self.what.grid[along])
            case "%laneid":
                return who % WARP
        raise PtxError(f"{name} is not known")
