"""Copies between host and device that overlap with computation."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without blocking the host."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@cache
def _side_stream(device: torch.device, purpose: str) -> torch.cuda.Stream:
    """One stream per device and direction, so that copies out do not wait for copies in."""
    return torch.cuda.Stream(device)


def copied_to_device(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copy host tensors to a device on a side stream; blocks the calling thread, not the device.

    On a GPU the copies belong to the side stream: call `marked_used` before using them.
    """
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in tensors.items()}
    stream = _side_stream(device, "arrivals")
    with torch.cuda.stream(stream):
        copies = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
    stream.synchronize()
    return copies


def marked_used(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Mark tensors as used by the current stream, so their memory is not reused early."""
    for tensor in tensors.values():
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return tensors


class Departure:
    """An asynchronous copy of tensors from a device to the host.

    The copies run on a side stream into pinned buffers, while the device goes on with other work.
    Tensors on a CPU are used as they are. Those on a device are kept until `arrays` has waited for
    their copies. `record_stream` would not do: once the capture of a CUDA graph has failed, torch
    frees no tensor that was marked by it.

    Args:
        tensors: by name; must not be written to any more.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._leaving = self._host = dict(tensors)
        self._copied: list[torch.cuda.Event] = []
        for device in {tensor.device for tensor in tensors.values()}:
            if device.type == "cuda":
                self._leave(device)

    def _leave(self, device: torch.device) -> None:
        stream = _side_stream(device, "departures")
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            copies = {
                name: torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(
                    tensor, non_blocking=True
                )
                for name, tensor in self._leaving.items()
                if tensor.device == device
            }
            self._copied.append(stream.record_event())
        self._host = self._host | copies

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Wait for the copies and return the tensors as arrays."""
        for event in self._copied:
            event.synchronize()
        self._leaving = {}
        return {name: tensor.numpy(force=True) for name, tensor in self._host.items()}
