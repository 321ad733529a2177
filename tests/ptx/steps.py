"""Execution of instructions: arithmetic, memory, and warp-wide operations."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import matrices
from .arithmetic import TYPES, arithmetic
from .counts import WARP
from .machine import TURNS, Machine, Step, Who
from .memory import Places, PtxError, put, words
from .program import Entry, Instruction, Operand, Vector

# ---- memory ------------------------------------------------------------------------------------


def _space(it: Instruction) -> str:
    """The memory space of an instruction."""
    spaces = (each.split("_")[0] for each in it.modifiers)
    return next((each for each in spaces if each in ("param", "shared", "global")), "global")


def _locate(
    machine: Machine, space: str, at: Operand, who: Who, size: int, changes: bool = False
) -> Places:
    """Offsets of the bytes that a memory operand refers to; `changes`: see Counts."""
    addresses = machine.each(at, "u32" if space == "shared" else "u64", who)
    if machine.counts is not None:
        machine.counts.access(space, who, addresses, size, changes)
    if space == "shared":
        return machine.shared.locate(who, addresses, size)
    return machine.memory.locate(addresses, size)


def _note(machine: Machine, kind: str, who: Who, at: Places, size: int) -> None:
    """Look for races in global memory."""
    if machine.memory.races is not None:
        machine.memory.races.note(kind, at, size, machine.moments(who), who // WARP)


def _listed(operand: Operand) -> Vector:
    return operand if isinstance(operand, tuple) else (operand,)


def load(machine: Machine, it: Instruction, who: Who) -> None:
    """ld"""
    target, source = it.operands
    vector, size, space = _listed(target), TYPES[it.type].itemsize, _space(it)
    if space == "param":
        at = machine.each(source, "u64", who).astype(np.int64)
        values = machine.bank[at[:, None] + np.arange(size * len(vector))].view(f"u{size}")
    else:
        at = _locate(machine, space, source, who, size * len(vector))
        if space == "shared":
            machine.shared.reads(who, at, size * len(vector))
        else:
            _note(machine, "reads", who, at, size * len(vector))
        data = machine.shared.data if space == "shared" else machine.memory.data
        values = words(data, at, size, len(vector))
    for i, register in enumerate(vector):
        machine.set(register, it.type, who, values[:, i].view(TYPES[it.type]))


def store(machine: Machine, it: Instruction, who: Who) -> None:
    """st"""
    target, source = it.operands
    space, kind = _space(it), f"u{8 * TYPES[it.type].itemsize}"
    values = np.stack([machine.each(one, kind, who) for one in _listed(source)], -1)
    at = _locate(machine, space, target, who, values[0].nbytes)
    if space == "shared":
        machine.shared.writes(who, at, values)
    else:
        # Numbers that are there already may be written at any time.
        new = (words(machine.memory.data, at, values.itemsize, values.shape[1]) != values).any(1)
        _note(machine, "writes", who[new], at[new], values[0].nbytes)
        put(machine.memory.data, at, values)


def combine(machine: Machine, it: Instruction, who: Who) -> None:
    """atom, red: several threads at one place go one after another, in a random order."""
    *target, address, source = it.operands
    ways = {"add": np.add, "min": np.minimum}
    way = next((ways[name] for name in it.modifiers if name in ways), None)
    if way is None:
        raise PtxError("only additions and minima are known")
    space, dtype = _space(it), TYPES[it.type]
    # Lanes that add a constant are served together: that is counting.
    changes = not isinstance(source, int)
    at = _locate(machine, space, address, who, dtype.itemsize, changes)
    if space == "shared":
        machine.shared.combines(who, at, dtype.itemsize)
    else:
        _note(machine, "combines", who, at, dtype.itemsize)
    numbers = (machine.shared.data if space == "shared" else machine.memory.data).view(dtype)
    mine = machine.each(source, it.type, who)
    order = np.random.default_rng(machine.pc).permutation(len(who))
    if not target:
        way.at(numbers, at[order] // dtype.itemsize, mine[order])
        return
    before = np.empty(len(who), dtype)
    for i in order:
        place = at[i] // dtype.itemsize
        before[i] = numbers[place]
        numbers[place] = way(numbers[place], mine[i])
    machine.set(target[0], it.type, who, before)


def copy_ahead(machine: Machine, it: Instruction, who: Who) -> None:
    """cp.async"""
    if "commit_group" in it.modifiers or "wait_all" in it.modifiers:
        machine.shared.commits(who)
    if "wait_all" in it.modifiers:
        machine.shared.waits(who, but=0)
    if "wait_group" in it.modifiers:
        machine.shared.waits(who, but=int(machine.get(it.operands[0], "u32", who)))
    if len(it.operands) < 3:
        return
    target, source, size, *optional = it.operands
    assert isinstance(size, int)
    wanted = machine.each(optional[0] if optional else size, "u32", who)
    to = _locate(machine, "shared", target, who, size)
    copied = np.zeros((len(who), size), np.uint8)  # zeros beyond the wanted bytes
    for count in np.unique(wanted[wanted > 0]):
        those = wanted == count
        at = _locate(machine, "global", source, who[those], size if count == size else 1)
        if count < size:  # only these bytes need to exist
            _locate(machine, "global", source, who[those], int(count))
        _note(machine, "reads", who[those], at, int(count))
        copied[those, :count] = words(machine.memory.data, at, 1, int(count))
    machine.shared.begins(who, to, copied)


# ---- warps -------------------------------------------------------------------------------------


def shuffle(machine: Machine, it: Instruction, who: Who) -> None:
    """shfl.sync"""
    target, source, by, clamp, mask = it.operands
    result, within = target if isinstance(target, tuple) else (target, None)
    lane = who % WARP
    step, bounds = (machine.get(x, "u32", who).astype(np.int64) for x in (by, clamp))
    segment, last = bounds >> 8 & 31, bounds & 31
    bottom = lane & segment
    top = bottom | last & ~segment
    match it.modifiers[1]:
        case "up":
            other, inside = lane - step, lane - step >= top
        case "down":
            other, inside = lane + step, lane + step <= top
        case "bfly":
            other, inside = lane ^ step, lane ^ step <= top
        case _:
            other = bottom | step & ~segment
            inside = other <= top
    other = who - lane + np.where(inside, other, lane)
    here = np.zeros(machine.count, bool)
    here[who] = True
    members = machine.each(mask, "u32", who)[:, None] >> np.arange(WARP, dtype=np.uint32) & 1 == 1
    if (members & ~here[(who - lane)[:, None] + np.arange(WARP)]).any():
        raise PtxError("threads wait for others of their warp that are elsewhere")
    if not members[np.arange(len(who)), other % WARP].all():
        raise PtxError("a thread reads from one that takes no part")
    machine.set(result, "b32", who, machine.each(source, "b32", machine.everyone)[other])
    machine.set(within, "pred", who, inside)


_JOIN = {"add": np.add, "min": np.minimum, "max": np.maximum, "or": np.bitwise_or,
         "and": np.bitwise_and}  # fmt: skip


def reduce(machine: Machine, it: Instruction, who: Who) -> None:
    """redux.sync"""
    target, source, mask = it.operands
    warps = machine.warps(who)
    if (machine.get(mask, "u32", who) != 0xFFFFFFFF).any():
        raise PtxError("a reduction of a part of a warp is not known")
    values = machine.each(source, it.type, who).reshape(warps.shape)
    result = _JOIN[it.modifiers[1]].reduce(values, axis=1, dtype=values.dtype)
    machine.set(target, it.type, who, np.repeat(result, WARP))


def _words(machine: Machine, operand: Operand, who: Who) -> NDArray[np.uint32]:
    """[warp, lane, register]"""
    held = [machine.each(one, "b32", who) for one in _listed(operand)]
    return np.stack(held, -1).reshape(*machine.warps(who).shape, len(held))


def _keep(machine: Machine, operand: Operand, who: Who, kind: str, values: NDArray[Any]) -> None:
    """Set an operand from values [warp, lane, register]."""
    values = values.reshape(len(who), -1).astype(TYPES[kind])
    for i, register in enumerate(_listed(operand)):
        machine.set(register, kind, who, values[:, i])


def multiply(machine: Machine, it: Instruction, who: Who) -> None:
    """mma.sync"""
    target, a, b, c = it.operands
    _, _, shape, rows, columns, sums, kind, *_ = it.modifiers
    inner = {"b1": 256, "bf16": 16, "f16": 16, "tf32": 8}[kind]
    if (shape, rows, columns) != (f"m16n8k{inner}", "row", "col"):
        raise PtxError("a product of this kind is not known")
    left = matrices.left(_words(machine, a, who), kind)
    product = left @ matrices.right(_words(machine, b, who), kind)
    before = _words(machine, c, who).view(TYPES[sums])
    _keep(machine, target, who, sums, before + matrices.held_sums(product))
    if machine.counts is not None:
        machine.counts.multiplied[kind] += product.size * inner * 2


def load_matrices(machine: Machine, it: Instruction, who: Who) -> None:
    """ldmatrix"""
    target, source = it.operands
    count = len(_listed(target))
    readers = machine.warps(who)[:, : 8 * count].ravel()
    at = _locate(machine, "shared", source, readers, 16)
    machine.shared.reads(readers, at, 16)
    rows = words(machine.shared.data, at, 2, 8).reshape(-1, count, 8, 8)
    _keep(machine, target, who, "b32", matrices.spread(rows, "trans" in it.modifiers))


def store_matrices(machine: Machine, it: Instruction, who: Who) -> None:
    """stmatrix"""
    target, source = it.operands
    rows = matrices.gathered(_words(machine, source, who), "trans" in it.modifiers)
    writers = machine.warps(who)[:, : 8 * rows.shape[1]].ravel()
    at = _locate(machine, "shared", target, writers, 16)
    machine.shared.writes(writers, at, rows.reshape(-1, 8))


def multiply_group(machine: Machine, it: Instruction, who: Who) -> None:
    """wgmma: four warps, 64 rows; executed synchronously, so waits have nothing to do."""
    if it.modifiers[0] != "mma_async":
        return
    target, a, b, scale, *flags = it.operands
    groups = machine.warps(who).reshape(-1, 4 * WARP)
    kind, columns = it.modifiers[5], 2 * len(_listed(target))
    if kind not in ("bf16", "f16") or flags[:2] != [1, 1]:
        raise PtxError("a product of this kind is not known")
    right = _described(machine, b, groups, columns, flags[-1] == 1, kind)
    if isinstance(a, tuple):
        left = matrices.left(_words(machine, a, who), kind).reshape(len(groups), 64, 16)
    else:
        left = _described(machine, a, groups, 64, flags[2] == 1, kind)
    product = left @ right.swapaxes(1, 2)
    before = _words(machine, target, who).view(np.float32)
    kept = machine.each(scale, "pred", who).reshape(-1, WARP, 1)
    sums = matrices.held_sums(product.reshape(-1, 16, columns)) + np.where(kept, before, 0)
    _keep(machine, target, who, "f32", sums)
    if machine.counts is not None:
        machine.counts.multiplied[kind] += product.size * 16 * 2


def _described(
    machine: Machine, operand: Operand, groups: Who, rows: int, across: bool, kind: str
) -> NDArray[Any]:
    """float64 [group, rows, 16] from shared memory."""
    descriptors = machine.each(operand, "u64", groups.ravel()).reshape(groups.shape)
    if (descriptors != descriptors[:, :1]).any():
        raise PtxError("the threads of four warps describe different matrices")
    at = np.stack([matrices.described(int(one), rows, across).ravel() for one in descriptors[:, 0]])
    # Any thread may be the reader.
    readers = groups[:, np.arange(at.shape[1]) % groups.shape[1]].ravel()
    place = machine.shared.locate(readers, at.ravel(), 2)
    machine.shared.reads(readers, place, 2)
    bits = words(machine.shared.data, place, 2, 1)[:, 0].astype(np.uint32)
    return matrices.numbers(bits, kind)[:, 0].reshape(len(groups), rows, 16)


# ---- all of them -------------------------------------------------------------------------------

_FENCES = ("membar", "fence")
_OTHERS: dict[str, Callable[[Machine, Instruction, Who], None]] = {
    "ld": load, "st": store, "atom": combine, "red": combine, "cp": copy_ahead, "shfl": shuffle,
    "redux": reduce, "mma": multiply, "ldmatrix": load_matrices, "stmatrix": store_matrices,
    "wgmma": multiply_group,
}  # fmt: skip


def steps(entry: Entry) -> list[Step]:
    """A function for each instruction of an entry; it applies to threads whose guard holds."""
    return [_step(it) for it in entry.instructions]


def _step(it: Instruction) -> Step:
    does = _does(it)
    if it.guard is None:
        return does

    def guarded(machine: Machine, who: Who) -> None:
        those = machine.guarded(it, who)
        if len(those):
            does(machine, those)

    return guarded


def _does(it: Instruction) -> Step:
    if it.name in _FENCES or it.name in TURNS:  # handled by the machine
        return lambda machine, who: None
    if it.name in _OTHERS:
        other = _OTHERS[it.name]
        return lambda machine, who: other(machine, it, who)
    target, *sources = it.operands
    if it.name == "mov":
        (source,) = sources
        return lambda machine, who: machine.set(
            target, it.type, who, machine.get(source, it.type, who)
        )
    operation = arithmetic(it)
    if operation is None:
        raise PtxError(f"{it.text}: not known")
    typed = list(zip(sources, operation.sources, strict=True))

    def compute(machine: Machine, who: Who) -> None:
        value = operation.compute(*(machine.get(source, kind, who) for source, kind in typed))
        if isinstance(target, tuple) and operation.result == "pred":  # and its complement
            machine.set(target[0], "pred", who, value)
            machine.set(target[1], "pred", who, ~value)
        else:
            machine.set(target, operation.result, who, value)

    return compute
