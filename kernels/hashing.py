"""Random numbers that depend on coordinates alone, so that no batch or tiling changes them."""

import torch
from torch import Tensor


def _mix(value: Tensor) -> Tensor:
    """A 32-bit finaliser (xor-shift-multiply) on int64 tensors that hold 32-bit values."""
    mask = 0xFFFFFFFF
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & mask
    value = ((value ^ (value >> 15)) * 0x846CA68B) & mask
    return value ^ (value >> 16)


def hash_uniform(seed: int, stream: int, *coordinates: Tensor) -> Tensor:
    """float32 in [0, 1): a hash of seed, stream and the broadcast integer coordinates, 24 bits."""
    value = torch.tensor(seed & 0xFFFFFFFF, device=coordinates[0].device)
    for item in (torch.tensor(stream, device=value.device), *coordinates):
        value = _mix((value ^ item.long()) + 0x9E3779B9 & 0xFFFFFFFF)
    return (value >> 8).float() * 2.0**-24
