"""Copies of results to the host, with tensors on a CPU that say they are on a device."""

import weakref
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from densitrace.tracer import transfer
from densitrace.tracer.transfer import Departure


class OnDevice(torch.Tensor):
    """A tensor on a CPU that counts as a device's."""

    device = torch.device("cuda", 0)


class Stream:
    """A stream, and its only event, that note when the host waits."""

    def __init__(self) -> None:
        self.waits = 0

    def wait_stream(self, other: object) -> None:
        """Nothing runs beside the host."""

    def record_event(self) -> "Stream":
        return self

    def synchronize(self) -> None:
        self.waits += 1


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    made, empty_like = Stream(), torch.empty_like

    def not_pinned(tensor: torch.Tensor, **_: Any) -> torch.Tensor:
        return empty_like(tensor.as_subclass(torch.Tensor))

    monkeypatch.setattr(transfer, "_side_stream", lambda device, purpose: made)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: made)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch, "empty_like", not_pinned)
    return made


def test_results_stay_on_the_device_until_they_are_copied(stream: Stream) -> None:
    """Whatever torch's allocator does: no memory is reused under a copy, and none is kept after."""
    leaving = torch.arange(3.0).as_subclass(OnDevice)
    kept = weakref.ref(leaving)
    departure = Departure({"x": leaving, "host": torch.ones(2)})
    del leaving
    assert kept() is not None and stream.waits == 0
    arrays = departure.arrays()
    assert kept() is None and stream.waits == 1
    np.testing.assert_array_equal(arrays["x"], [0, 1, 2])
    np.testing.assert_array_equal(arrays["host"], [1, 1])
    assert departure.arrays().keys() == arrays.keys()
