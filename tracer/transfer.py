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
def _side_stream(device: torch.device, purpose: type) -> torch.cuda.Stream:
    """One for those who leave and one for those who arrive: neither waits for the other."""
    return torch.cuda.Stream(device)


class Arrival:
    """Tensors on their way from pinned memory to a device, beside what the device does.

    Args:
        tensors: by name, on the host.
    """

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self._device = device
        self._there: torch.cuda.Event | None = None
        if device.type != "cuda":
            self._tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
            return
        stream = _side_stream(device, Arrival)
        with torch.cuda.stream(stream):
            self._tensors = {
                name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()
            }
            self._there = stream.record_event()

    def tensors(self) -> dict[str, Tensor]:
        """The tensors; what the device does from now on waits until they are there."""
        if self._there is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(self._there)
            for tensor in self._tensors.values():
                tensor.record_stream(stream)  # it came on another: its memory is taken until then
        return self._tensors


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
        stream = _side_stream(device, Departure)
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
