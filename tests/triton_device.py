"""A simulated CUDA device for Triton: its own launch code runs, up to the call of the driver.

A launch that Triton would refuse on a GPU is refused here, and kernels are specialised and compiled
as for that GPU.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # per block: CUDA C++ programming guide
MOST_THREADS = 1024  # per block


@dataclass(frozen=True)
class Launched:
    """A launch as it would reach the device."""

    kernel: CompiledKernel
    grid: tuple[int, int, int]
    values: tuple[Any, ...]  # of all parameters, including compile-time ones

    def arguments(self) -> list[Any]:
        """Values of the parameters that the compiled kernel takes."""
        kinds = self.kernel.src.signature.values()
        return [
            value for value, kind in zip(self.values, kinds, strict=True) if kind != "constexpr"
        ]


class Driver:
    """The part of a driver's interface that Triton uses to launch a kernel."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.sent: list[tuple[tuple[int, int, int], tuple[Any, ...]]] = []
        self.utils = self

    def get_current_device(self) -> int:
        """The device number: Triton caches compiled kernels by it, so one per generation."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_device_properties(self, device: int) -> Mapping[str, int]:
        return {"max_shared_mem": SHARED_BYTES[self.capability]}

    def load_binary(
        self, name: str, binary: bytes, shared: int, device: int
    ) -> tuple[int, int, int, int, int]:
        """Handles of module and function, registers, spilled bytes, and maximum threads."""
        return 1, 1, 0, 0, MOST_THREADS

    def unload_module(self, module: int) -> None:
        """Nothing to unload."""

    def launcher_cls(self, source: object, metadata: object) -> Callable[..., None]:
        """The function that a compiled kernel calls with its grid and arguments."""

        def launch(
            x: int, y: int, z: int, stream: int, function: int, packed: object, about: object,
            enter: object, leave: object, *values: Any,
        ) -> None:  # fmt: skip
            self.sent.append(((x, y, z), values))

        return launch


@cache  # a compiled kernel keeps the launcher of its first launch
def _driver(capability: int) -> Driver:
    return Driver(capability)


@contextmanager
def device(capability: int, launched: Callable[[Launched], None]) -> Iterator[None]:
    """Pass launches to `launched` instead of a device; CPU tensors count as the device's.

    Args:
        capability: 80 or 90.
        launched: called with each launch.
    """
    fake, run = _driver(capability), JITFunction.run

    def noted(self: JITFunction, *args: Any, **kwargs: Any) -> CompiledKernel:
        kernel = run(self, *args, **kwargs)
        launched(Launched(kernel, *fake.sent.pop()))
        return kernel

    with (
        mock.patch.object(driver, "_active", fake),
        mock.patch.object(JITFunction, "run", noted),
    ):
        yield
