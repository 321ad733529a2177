"""Addresses of checked tensors, for the compiled module."""

import torch
from torch import Tensor


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
