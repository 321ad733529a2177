"""Random numbers that depend on coordinates alone, so that no batch or tiling changes them."""

from typing import TypeVar

from torch import Tensor

Number = TypeVar("Number", int, Tensor)


def _mix(value: Number) -> Number:
    """A 32-bit finaliser (xor-shift-multiply) on 32-bit values, in int64 where they are tensors."""
    mask = 0xFFFFFFFF
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & mask
    value = ((value ^ (value >> 15)) * 0x846CA68B) & mask
    return value ^ (value >> 16)


def hash_uniform(seed: int, stream: int, *coordinates: Tensor) -> Tensor:
    """float32 in [0, 1): a hash of seed, stream and the broadcast integer coordinates, 24 bits."""
    # Numbers stay the host's until they meet a tensor: none is copied to a device.
    start = _mix((seed & 0xFFFFFFFF ^ stream) + 0x9E3779B9 & 0xFFFFFFFF)
    first, *others = coordinates
    value = _mix((first.long() ^ start) + 0x9E3779B9 & 0xFFFFFFFF)
    for item in others:
        value = _mix((value ^ item.long()) + 0x9E3779B9 & 0xFFFFFFFF)
    return (value >> 8).float() * 2.0**-24
