"""Matrix products of warps, and the layout of their operands in registers and memory.

Source: PTX ISA, chapters "Warp level matrix multiply-accumulate" and "Asynchronous warpgroup level
matrix multiply-accumulate instructions". Sums are computed in float64 and rounded once.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arithmetic import from_bfloat16

Array = NDArray[Any]

LANE = np.arange(32)
ROW, COLUMN = LANE // 4, LANE % 4  # groupID and threadID_in_group


def _fragment(per_word: int) -> tuple[Array, Array]:
    """(row, k) of each number [lane, register, number] of a left operand of 16 rows."""
    register, number = np.arange(4)[:, None], np.arange(per_word)
    row = ROW[:, None, None] + register % 2 * 8
    k = COLUMN[:, None, None] * per_word + register // 2 * 4 * per_word + number
    return np.broadcast_arrays(row, k)  # type: ignore[return-value]


def numbers(word: Array, kind: str) -> Array:
    """Unpack 32-bit registers [...] to float64 [..., numbers]."""
    match kind:
        case "tf32":
            found: Array = (word & ~np.uint32(0x1FFF)).view(np.float32)[..., None]
        case "b1":
            found = word[..., None] >> np.arange(32, dtype=np.uint32) & 1
        case "bf16":
            found = from_bfloat16(np.ascontiguousarray(word)[..., None].view(np.uint16))
        case _:
            found = np.ascontiguousarray(word)[..., None].view(np.float16)
    exact: Array = found.astype(np.float64)
    return exact


def left(words: Array, kind: str) -> Array:
    """float64 [warp, 16, k] from registers [warp, lane, 4]."""
    held = numbers(words, kind)
    row, k = _fragment(held.shape[-1])
    matrix = np.empty((len(words), 16, 8 * held.shape[-1]))
    matrix[:, row, k] = held
    return matrix


def right(words: Array, kind: str) -> Array:
    """float64 [warp, k, 8] from registers [warp, lane, 2]."""
    held = numbers(words, kind)
    row, k = (each[:, ::2] for each in _fragment(held.shape[-1]))
    matrix = np.empty((len(words), 8 * held.shape[-1], 8))
    matrix[:, k, row] = held
    return matrix


def held_sums(matrix: Array) -> Array:
    """Sums [warp, 16, columns] as lanes hold them: [warp, lane, 4 per column block]."""
    register = np.arange(matrix.shape[-1] // 2)
    row = ROW[:, None] + register % 4 // 2 * 8
    column = register // 4 * 8 + COLUMN[:, None] * 2 + register % 2
    return matrix[:, row, column]


def placed_sums(held: Array) -> Array:
    """The reverse of `held_sums`: [warp, 16, columns]."""
    count = held.shape[-1]
    place = held_sums(np.arange(16 * count * 2).reshape(1, 16, 2 * count))[0]
    matrix = np.empty((len(held), 32 * count), held.dtype)
    matrix[:, place] = held
    return matrix.reshape(len(held), 16, 2 * count)


# ---- ldmatrix, stmatrix ------------------------------------------------------------------------


def spread(rows: Array, transposed: bool) -> Array:
    """Registers [warp, lane, matrix] from 16-bit rows [warp, matrix, 8, 8]."""
    if transposed:
        rows = rows.swapaxes(-1, -2)
    low, high = (rows[:, :, ROW, 2 * COLUMN + i].astype(np.uint32) for i in (0, 1))
    return (high << 16 | low).swapaxes(1, 2)


def gathered(words: Array, transposed: bool) -> Array:
    """Rows [warp, matrix, 8, 8] from registers [warp, lane, matrix]: the reverse of `spread`."""
    rows = np.empty((len(words), words.shape[-1], 8, 8), np.uint16)
    held = words.swapaxes(1, 2)
    rows[:, :, ROW, 2 * COLUMN], rows[:, :, ROW, 2 * COLUMN + 1] = held & 0xFFFF, held >> 16
    return np.ascontiguousarray(rows.swapaxes(-1, -2)) if transposed else rows


# ---- operands in shared memory -----------------------------------------------------------------

_SPANS = {0: 16, 1: 128, 2: 64, 3: 32}  # bytes of a row by swizzle mode


def described(descriptor: int, rows: int, across: bool) -> Array:
    """Addresses [rows, 16] of the 16-bit numbers of a matrix descriptor.

    Args:
        rows: rows of the left operand, or columns of the right one.
        across: column-major: numbers of a column are adjacent.
    """
    start = (descriptor & 0x3FFF) << 4
    leading = (descriptor >> 16 & 0x3FFF) << 4
    stride = (descriptor >> 32 & 0x3FFF) << 4
    swizzle = descriptor >> 62
    assert not descriptor >> 49 & 7, "a base offset"
    span = _SPANS[swizzle]
    row, k = np.arange(rows)[:, None], np.arange(16)[None, :]
    if across:
        wide = span // 2
        by = (stride, leading) if swizzle == 0 else (leading, stride)
        at = row % wide * 2 + row // wide * by[0] + k % 8 * span + k // 8 * by[1]
    elif swizzle == 0:
        at = row % 8 * 16 + row // 8 * stride + k % 8 * 2 + k // 8 * leading
    else:
        at = row % 8 * span + row // 8 * stride + k * 2
    at = at + start
    bits = span // 16 - 1  # 7, 3, 1: 16-byte units are permuted by 128-byte row
    return at ^ (at >> 7 & bits) << 4
