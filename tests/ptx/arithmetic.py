"""Arithmetic instructions, for many threads at once.

A value is an array with one element per thread, or a scalar shared by all threads; bfloat16, which
NumPy lacks, is held as its bits. Fused multiply-adds round once. Functions that a GPU approximates
are correctly rounded here, up to float64 error.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .program import Instruction

Value = Any  # an array of a NumPy type, or a scalar

_INTEGERS = {
    f"{kind}{8 * size}": np.dtype(f"{'i' if kind == 's' else 'u'}{size}")
    for kind in "bus"
    for size in (1, 2, 4, 8)
}
TYPES: dict[str, np.dtype[Any]] = _INTEGERS | {
    "pred": np.dtype(bool),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "f16x2": np.dtype(np.uint32),
    "bf16x2": np.dtype(np.uint32),
    "u16x2": np.dtype(np.uint32),
}
FLOATS = ("f16", "bf16", "f32", "f64")


def constant(number: int, kind: str) -> Value:
    """A literal of an instruction: an integer, or the bits of a float."""
    if kind == "pred":
        return np.bool_(number != 0)
    dtype = TYPES[kind]
    bits = number & (1 << 8 * dtype.itemsize) - 1
    return np.dtype(f"u{dtype.itemsize}").type(bits).view(dtype)


@dataclass(frozen=True)
class Arithmetic:
    """The types and the function of an instruction."""

    sources: tuple[str, ...]  # types
    result: str
    compute: Callable[..., Value]


# ---- floats ------------------------------------------------------------------------------------


def _flushed(value: Value) -> Value:
    """Flush subnormal numbers to 0."""
    return np.where(np.abs(value) < np.finfo(np.float32).tiny, np.copysign(0, value), value)


def _downwards(exact: Value) -> Value:
    """Round to float32, downwards."""
    near = exact.astype(np.float32)
    return np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)


def _fused(a: Value, b: Value, c: Value, down: bool = False) -> Value:
    """a b + c, rounded once."""
    if a.dtype == np.float32:
        exact = a.astype(np.float64) * b + c
        return _downwards(exact) if down else exact.astype(np.float32)
    assert a.dtype == np.float64 and not down
    high, low = _product(a, b)
    total = high + c
    back = total - high
    rest = (high - (total - back)) + (c - back)
    return np.where(np.isfinite(total), total + (rest + low), total)


def _product(a: Value, b: Value) -> tuple[Value, Value]:
    """The product of two float64, and its rounding error."""

    def halves(x: Value) -> tuple[Value, Value]:
        big = x * 134217729.0
        high = big - (big - x)
        return high, x - high

    (a_high, a_low), (b_high, b_low) = halves(a), halves(b)
    product = a * b
    rest = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, rest


def _to_bfloat16(value: Value) -> Value:
    """Bits of the nearest bfloat16, ties to even."""
    bits = np.asarray(value, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(value), 0x7FFF, rounded).astype(np.uint16)


def from_bfloat16(bits: Value) -> Value:
    """bfloat16 bits as float32."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def _halves(value: Value) -> Value:
    """[..., 2] halves of a 32-bit word, the lower first."""
    return np.ascontiguousarray(value)[..., None].view(np.uint16)


def _by_halves(compute: Callable[..., Value], dtype: type, a: Value, b: Value) -> Value:
    result = compute(_halves(a).view(dtype), _halves(b).view(dtype))
    return np.ascontiguousarray(result).view(np.uint32)[..., 0]


# ---- conversions -------------------------------------------------------------------------------

_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def _saturated(value: Value, dtype: np.dtype[Any]) -> Value:
    """Convert a whole float to an integer, saturating; NaN becomes 0."""
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    exact = np.nan_to_num(value, nan=0.0, posinf=2.0**70, neginf=-(2.0**70)).astype(np.longdouble)
    return np.clip(exact, np.longdouble(least), np.longdouble(most)).astype(dtype)


def _convert(modifiers: tuple[str, ...], value: Value, other: Value | None = None) -> Value:
    *how, to, _ = modifiers
    if other is not None:  # two values, the first into the upper half
        narrow = (
            _to_bfloat16 if to == "bf16x2" else (lambda x: x.astype(np.float16).view(np.uint16))
        )
        return narrow(value).astype(np.uint32) << 16 | narrow(other).astype(np.uint32)
    if modifiers[-1] == "bf16":
        value = from_bfloat16(value)
    whole = next((_TO_INTEGER[each] for each in how if each in _TO_INTEGER), None)
    if whole is not None and value.dtype.kind == "f":
        value = whole(value)
    if to == "bf16":
        return _to_bfloat16(value)
    if to == "tf32":
        return (value.view(np.uint32) + 0x1000 & ~np.uint32(0x1FFF)).view(np.float32)
    dtype = TYPES[to]
    if value.dtype.kind == "f" and dtype.kind in "iu":
        return _saturated(value, dtype)
    value = value.astype(dtype)
    if "sat" in how:
        value = np.where(np.isnan(value), 0, np.clip(value, 0, 1)).astype(dtype)
    return value


# ---- integers ----------------------------------------------------------------------------------


def _wide(kind: str) -> str:
    return f"{kind[0]}{2 * int(kind[1:])}"


def _divided(a: Value, b: Value) -> Value:
    """Divide towards zero; all ones if b is 0."""
    safe = np.where(b == 0, np.ones_like(b), b)
    below = a // safe
    inexact = (below * safe != a) & ((a < 0) != (safe < 0))
    ones = np.bitwise_not(np.zeros_like(below))
    return np.where(b == 0, ones, below + inexact.astype(a.dtype)).astype(a.dtype)


def _remainder(a: Value, b: Value) -> Value:
    return (a - b * _divided(a, b)).astype(a.dtype)


def _high_half(a: Value, b: Value) -> Value:
    wide = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
    return (a.astype(wide) * b.astype(wide) >> 8 * a.dtype.itemsize).astype(a.dtype)


def _shifted(left: bool, a: Value, by: Value) -> Value:
    width = 8 * a.dtype.itemsize
    few = np.minimum(by, width - 1).astype(a.dtype)
    if not left and a.dtype.kind == "i":
        return a >> few
    return np.where(by >= width, 0, a << few if left else a >> few).astype(a.dtype)


def _funnel(left: bool, wrap: bool, low: Value, high: Value, by: Value) -> Value:
    both = high.astype(np.uint64) << 32 | low
    by = (by & 31 if wrap else np.minimum(by, 32)).astype(np.uint64)
    return ((both << by) >> 32 if left else both >> by).astype(np.uint32)


def _field(a: Value, start: Value, length: Value) -> Value:
    """A bit field of a number, sign-extended for signed types."""
    start, length = (np.minimum(x & 255, 64).astype(np.int64) for x in (start, length))
    wide = a.astype(np.int64)
    mask = (np.int64(1) << np.minimum(length, 62)) - 1
    result = wide >> np.minimum(start, 63) & mask
    if a.dtype.kind == "i":
        top = np.minimum(start + length - 1, 8 * a.dtype.itemsize - 1)
        negative = (wide >> top & 1) * (length > 0)
        result = np.where(negative == 1, result | ~mask, result)
    return result.astype(a.dtype)


def _inserted(a: Value, into: Value, start: Value, length: Value) -> Value:
    start, length = np.minimum(start & 255, 64), np.minimum(length & 255, 64)
    ones = np.uint64(2**64 - 1)
    mask = _shifted(True, ~_shifted(True, ones, length), start)
    return (into & ~mask | _shifted(True, a.astype(np.uint64), start) & mask).astype(into.dtype)


def _permuted(a: Value, b: Value, selectors: Value) -> Value:
    """Select bytes of two words; a selector's highest bit replicates the byte's sign."""
    both = np.asarray(b).astype(np.uint64) << 32 | a
    result = np.zeros(np.broadcast(both, selectors).shape, np.uint64)
    for place in range(4):
        selector = np.asarray(selectors).astype(np.uint64) >> 4 * place & 15
        byte = both >> 8 * (selector & 7) & 255
        byte = np.where(selector & 8, (byte >> 7) * 255, byte)
        result |= byte << 8 * place
    return result.astype(np.uint32)


def _table(number: Value, *inputs: Value) -> Value:
    """Combine the bits of three inputs by a truth table of eight rows."""
    result = np.zeros_like(inputs[0] | inputs[1] | inputs[2])
    for row in range(8):
        if int(number) >> row & 1:
            wanted = [x if row >> 2 - i & 1 else ~x for i, x in enumerate(inputs)]
            result |= wanted[0] & wanted[1] & wanted[2]
    return result


# ---- comparisons -------------------------------------------------------------------------------

_COMPARE: dict[str, Callable[..., Value]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
    "gt": operator.gt, "ge": operator.ge, "lo": operator.lt, "ls": operator.le,
    "hi": operator.gt, "hs": operator.ge,
}  # fmt: skip
_JOIN: dict[str, Callable[..., Value]] = {
    "and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor,
}  # fmt: skip


def compared(how: str, a: Value, b: Value) -> Value:
    """Compare numbers; float comparisons ending in u also hold for NaN."""
    if how in ("num", "nan"):
        either = np.isnan(a) | np.isnan(b)
        return either if how == "nan" else ~either
    if how in _COMPARE:
        result = _COMPARE[how](a, b)
        # ne does not hold if one is NaN; that is neu.
        return (
            result & ~(np.isnan(a) | np.isnan(b)) if how == "ne" and a.dtype.kind == "f" else result
        )
    return _COMPARE[how[:-1]](a, b) | np.isnan(a) | np.isnan(b)


def _setp(modifiers: tuple[str, ...], a: Value, b: Value, also: Value | None = None) -> Value:
    result = compared(modifiers[0], a, b)
    return result if also is None else _JOIN[modifiers[1]](result, also)


def _larger(a: Value, b: Value, nan: bool = False) -> Value:
    return np.maximum(a, b) if nan or a.dtype.kind != "f" else np.fmax(a, b)


def _smaller(a: Value, b: Value, nan: bool = False) -> Value:
    return np.minimum(a, b) if nan or a.dtype.kind != "f" else np.fmin(a, b)


def _with_joint_sign(pick: Callable[[Value, Value], Value], a: Value, b: Value) -> Value:
    """The smaller or larger magnitude, with the product of the signs."""
    return np.copysign(pick(np.abs(a), np.abs(b)), np.where(np.signbit(a) ^ np.signbit(b), -1, 1))


# ---- the table ---------------------------------------------------------------------------------

_BITWISE = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
_PLAIN = {"add": operator.add, "sub": operator.sub}
_ONE: dict[str, Callable[[Value], Value]] = {
    "abs": np.abs, "neg": np.negative, "popc": np.bitwise_count, "ex2": np.exp2, "lg2": np.log2,
    "sqrt": np.sqrt, "rcp": np.reciprocal, "rsqrt": lambda x: 1 / np.sqrt(x), "tanh": np.tanh,
    "sin": np.sin, "cos": np.cos,
}  # fmt: skip


def _approximate(function: Callable[[Value], Value], value: Value) -> Value:
    """Compute a float32 function in float64."""
    return function(value.astype(np.float64)).astype(np.float32)


def arithmetic(it: Instruction) -> Arithmetic | None:
    """The arithmetic of an instruction; None if it does more than compute."""
    plain = _arithmetic(it)
    if plain is None or "ftz" not in it.modifiers or "f32" not in it.modifiers:
        return plain

    def flushing(*values: Value) -> Value:
        inputs = (_flushed(x) if x.dtype == np.float32 else x for x in values)
        result = plain.compute(*inputs)
        return _flushed(result) if result.dtype == np.float32 else result

    return Arithmetic(plain.sources, plain.result, flushing)


def _arithmetic(it: Instruction) -> Arithmetic | None:
    kind, how = (it.modifiers[-1], it.modifiers[:-1]) if it.modifiers else ("", ())
    two, three = (kind, kind), (kind, kind, kind)
    match it.name:
        case "add" | "sub":
            return Arithmetic(two, kind, _PLAIN[it.name])
        case "and" | "or" | "xor":
            return Arithmetic(two, kind, _BITWISE[it.name])
        case "not":
            invert = np.logical_not if kind == "pred" else np.bitwise_not
            return Arithmetic((kind,), kind, invert)
        case "min" | "max" if kind == "f16x2":
            floats = np.fmin if it.name == "min" else np.fmax
            return Arithmetic(two, kind, partial(_by_halves, floats, np.float16))
        case "min" | "max" if kind == "u16x2":
            whole = np.minimum if it.name == "min" else np.maximum
            return Arithmetic(two, kind, partial(_by_halves, whole, np.uint16))
        case "min" | "max":
            pick = partial(_smaller if it.name == "min" else _larger, nan="NaN" in how)
            if "xorsign" in how:
                return Arithmetic(two, kind, partial(_with_joint_sign, pick))
            if "relu" in how:
                return Arithmetic(two, kind, lambda a, b: np.maximum(pick(a, b), 0))
            return Arithmetic(two, kind, pick)
        case "mul" | "mad" if "wide" in how:
            wide = _wide(kind)
            dtype = TYPES[wide]
            if it.name == "mul":
                return Arithmetic(two, wide, lambda a, b: a.astype(dtype) * b)
            return Arithmetic((*two, wide), wide, lambda a, b, c: a.astype(dtype) * b + c)
        case "mul" | "mad" if "hi" in how:
            if it.name == "mul":
                return Arithmetic(two, kind, _high_half)
            return Arithmetic(three, kind, lambda a, b, c: _high_half(a, b) + c)
        case "mul":
            return Arithmetic(two, kind, operator.mul)
        case "mad":
            return Arithmetic(three, kind, lambda a, b, c: a * b + c)
        case "fma":
            return Arithmetic(three, kind, partial(_fused, down="rm" in how))
        case "div":
            divide = np.true_divide if kind in FLOATS else _divided
            return Arithmetic(two, kind, divide)
        case "rem":
            return Arithmetic(two, kind, _remainder)
        case "copysign":
            return Arithmetic(two, kind, lambda sign, size: np.copysign(size, sign))
        case name if name in _ONE:
            approximate = {"ex2", "lg2", "rcp", "rsqrt", "sqrt", "tanh", "sin", "cos"}
            one: Callable[[Value], Value] = _ONE[name]
            if name in approximate and kind == "f32":
                one = partial(_approximate, one)
            return Arithmetic((kind,), "u32" if name == "popc" else kind, one)
        case "shl" | "shr":
            return Arithmetic((kind, "u32"), kind, partial(_shifted, it.name == "shl"))
        case "shf":
            turn = partial(_funnel, "l" in how, "wrap" in how)
            return Arithmetic(("u32", "u32", "u32"), "u32", turn)
        case "bfe":
            return Arithmetic((kind, "u32", "u32"), kind, _field)
        case "bfi":
            return Arithmetic((kind, kind, "u32", "u32"), kind, _inserted)
        case "prmt":
            return Arithmetic(("u32", "u32", "u32"), "u32", _permuted)
        case "lop3":
            return Arithmetic((*three, "u32"), kind, lambda a, b, c, n: _table(n, a, b, c))
        case "setp":
            also = ("pred",) if len(it.operands) == 4 else ()
            return Arithmetic((*two, *also), "pred", partial(_setp, it.modifiers))
        case "selp":
            return Arithmetic((*two, "pred"), kind, lambda a, b, p: np.where(p, a, b))
        case "cvt":
            to = "f32" if how[-1] == "tf32" else how[-1]
            return Arithmetic((kind,) * (len(it.operands) - 1), to, partial(_convert, it.modifiers))
        case "cvta":  # there is one address space
            return Arithmetic((kind,), kind, lambda a: a)
    return None
