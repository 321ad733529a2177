"""Ops in CUDA C++ on tensors of a GPU: thin calls into `densitrace._cuda`.

Each is queued on torch's current stream of the tensors' device.
"""

import torch
from torch import Tensor

from .. import _cuda

METHOD = "packed"  # of the (max, min) product; csrc/cuda/bottleneck.cu says what there is


def _where(device: torch.device) -> tuple[int, int]:
    """A device and torch's stream on it, as the compiled module takes them."""
    if device.type != _cuda.DEVICE:
        raise ValueError(f"tensors are on {device}; backend='cuda' wants them on a GPU")
    if device.type != "cuda":
        return 0, 0
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream


def _address(name: str, tensor: Tensor, dtype: torch.dtype, *shape: int) -> int:
    """Of a contiguous tensor: a kernel believes what it is told."""
    if tensor.dtype != dtype or not tensor.is_contiguous():
        raise TypeError(f"{name} is not a contiguous tensor of {dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; wanted {list(shape)}")
    return tensor.data_ptr()


def bottleneck(reach: Tensor, levels: Tensor, method: str = "") -> Tensor:
    batch, length, _ = reach.shape
    result = torch.empty_like(reach, memory_format=torch.contiguous_format)
    if not result.numel():
        return result
    shape = (batch, length, length)
    reach, levels = reach.contiguous(), levels.contiguous()
    # On the device: the host need not know how many levels there are.
    most = levels.amax()
    _cuda.bottleneck(
        _address("reach", reach, torch.uint8, *shape),
        _address("levels", levels, torch.uint8, *shape),
        most.data_ptr(),
        result.data_ptr(),
        batch,
        length,
        method or METHOD,
        *_where(reach.device),
    )
    return result


def trace_sizes(reach: Tensor, degrees: Tensor) -> Tensor:
    strata, batch, length = degrees.shape
    result = torch.empty(degrees.shape, dtype=torch.int64, device=degrees.device)
    reach, degrees = reach.contiguous(), degrees.contiguous()
    _cuda.trace_sizes(
        _address("reach", reach, torch.uint8, batch, length, length),
        _address("degrees", degrees, torch.int32, strata, batch, length),
        result.data_ptr(),
        strata,
        batch,
        length,
        *_where(reach.device),
    )
    return result
