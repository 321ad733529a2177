"""What the compiled module is given: addresses of checked tensors, a device and its stream."""

import torch
from torch import Tensor

from ... import _cuda


def device_and_stream(device: torch.device) -> tuple[int, int]:
    """A device's index and the address of torch's current stream, for the compiled module."""
    if device.type != _cuda.DEVICE:
        raise ValueError(f"tensors are on {device}; backend='cuda' wants them on a GPU")
    if device.type != "cuda":
        return 0, 0
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream


def address(name: str, tensor: Tensor, dtype: torch.dtype, *shape: int, on: torch.device) -> int:
    """Check dtype, layout, shape and device of a tensor, which no kernel does; its address."""
    if tensor.dtype != dtype or not tensor.is_contiguous():
        raise TypeError(f"{name} is not a contiguous tensor of {dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; wanted {list(shape)}")
    if tensor.device != on:
        raise ValueError(f"{name} is on {tensor.device}; wanted on {on}, as the others are")
    return tensor.data_ptr()


def floats(tensor: Tensor) -> Tensor:
    return tensor.float().contiguous()
