"""Random numbers that depend on coordinates alone, not on the batch or the tiling."""

from torch import Tensor

Number = int | Tensor

LOW_BITS = 0xFFFFFFFF  # the low 32 bits, all that the hash takes of a number


def _mix(value: Number) -> Number:
    """A 32-bit finaliser (xor-shift-multiply); tensors hold their 32-bit values in int64."""
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & LOW_BITS
    value = ((value ^ (value >> 15)) * 0x846CA68B) & LOW_BITS
    return value ^ (value >> 16)


def _absorb(value: Number, item: Number) -> Number:
    """Mix one more integer into a hash; a tensor if either is one."""
    return _mix((value ^ item) + 0x9E3779B9 & LOW_BITS)


def hash_uniform(seed: int, stream: int, *coordinates: Tensor) -> Tensor:
    """Hash seed, stream and integer coordinates to float32 in [0, 1), with 24 random bits.

    Args:
        seed: any integer; its low 32 bits count.
        stream: separates uses of one seed.
        coordinates: integer tensors, broadcast against each other; at least one.

    Example:
        >>> hash_uniform(0, 0, torch.arange(2)[:, None], torch.arange(3)).shape
        torch.Size([2, 3])
    """
    # Seed and stream stay Python integers until they meet a tensor: no copy to the device.
    value = _absorb(seed, stream)
    for coordinate in coordinates:
        value = _absorb(value, coordinate.long())
    assert isinstance(value, Tensor)
    return (value >> 8).float() * 2.0**-24
