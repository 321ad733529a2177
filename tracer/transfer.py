"""Tensors between host and device, such that neither waits for the other without need."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; the host goes on while it is copied there."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@cache
def _side_stream(device: torch.device, purpose: str) -> torch.cuda.Stream:
    """What leaves does not wait for what arrives."""
    return torch.cuda.Stream(device)


def arrived(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Tensors of the host on a device, copied beside what it does; this thread waits for them.

    On a GPU they are those of another stream than the one that uses them: see `taken`.
    """
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in tensors.items()}
    stream = _side_stream(device, "arrivals")
    with torch.cuda.stream(stream):
        there = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
    stream.synchronize()
    return there


def taken(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What arrived, with its memory kept until what the device is told from now on is done."""
    for tensor in tensors.values():
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return tensors


class Departure:
    """Tensors on their way from a device to the host, beside what the device does next.

    They go into pinned buffers on a stream of their own. Tensors on a CPU are there already.

    Args:
        tensors: by name; nothing may write to them any more.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._host = dict(tensors)
        self._left: list[torch.cuda.Event] = []
        for device in {tensor.device for tensor in tensors.values()}:
            if device.type == "cuda":
                self._leave(device)

    def _leave(self, device: torch.device) -> None:
        stream = _side_stream(device, "departures")
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for name, tensor in self._host.items():
                if tensor.device == device:
                    host = torch.empty_like(tensor, device="cpu", pin_memory=True)
                    self._host[name] = host.copy_(tensor, non_blocking=True)
                    tensor.record_stream(stream)  # its memory is taken until the copy is done
            self._left.append(stream.record_event())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The tensors as arrays, once they have arrived."""
        for event in self._left:
            event.synchronize()
        return {name: tensor.numpy(force=True) for name, tensor in self._host.items()}
