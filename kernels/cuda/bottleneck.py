"""Which nodes reach which outputs, and how many edges that is: csrc/cuda/bottleneck.cu."""

import torch
from torch import Tensor

from ... import _cuda
from . import budgets
from .arguments import address
from .device import device_and_stream


def bottleneck(reach: Tensor, levels: Tensor, method: str = "packed") -> Tensor:
    """By `method` "packed" or "boolean", which csrc/cuda/bottleneck.cu describes."""
    batch, length, _ = reach.shape
    result = torch.empty_like(reach, memory_format=torch.contiguous_format)
    if not result.numel():
        return result
    shape, device = (batch, length, length), reach.device
    reach, levels = reach.contiguous(), levels.contiguous()
    maps = (
        address("reach", reach, torch.uint8, *shape, on=device),
        address("levels", levels, torch.uint8, *shape, on=device),
    )
    into = (result.data_ptr(), batch, length, *device_and_stream(device))
    match method:
        case "packed":
            _cuda.bottleneck(*maps, *into)
        case "boolean":
            # The highest level stays on the device: the host does not wait for it.
            highest = levels.amax()
            words = _cuda.plane_words(batch, length)
            capacity = max(1, min(255, budgets.PLANE_WORDS // words))
            planes = torch.empty(capacity * words, dtype=torch.int32, device=device)
            _cuda.bottleneck_boolean(*maps, highest.data_ptr(), planes.data_ptr(), capacity, *into)
        case other:
            raise ValueError(f"method={other!r} is neither packed nor boolean")
    return result


def trace_sizes(reach: Tensor, degrees: Tensor) -> Tensor:
    strata, batch, length = degrees.shape
    device = degrees.device
    result = torch.empty(degrees.shape, dtype=torch.int64, device=device)
    reach, degrees = reach.contiguous(), degrees.contiguous()
    _cuda.trace_sizes(
        address("reach", reach, torch.uint8, batch, length, length, on=device),
        address("degrees", degrees, torch.int32, strata, batch, length, on=device),
        result.data_ptr(),
        strata,
        batch,
        length,
        *device_and_stream(device),
    )
    return result
