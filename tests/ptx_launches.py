"""Run our kernels on the simulated PTX machine, as compiled for a GPU."""

import math
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import cuda_host
import torch
from compiled import CSRC, compiled
from ptx import Array, Counts, Entry, Launch, entries, launch

from densitrace.kernels import dispatch

Counted = dict[str, Counts]  # counts of a kernel's launches, by its name


class Addresses:
    """The addresses of tensors on the machine.

    Tensors of different memory are so far apart that no access past the end of one is within
    another, as it may be where they really are.
    """

    APART = 1 << 40
    ALIGNED = 1 << 12  # addresses are what they really are, modulo this

    def __init__(self) -> None:
        self._places: dict[int, int] = {}

    def of(self, tensor: torch.Tensor) -> int:
        """The address of a tensor's first element."""
        return self.array(tensor)[0]

    def array(self, tensor: torch.Tensor) -> Array:
        """What a contiguous tensor occupies."""
        start, _, here = self.storage(tensor)
        offset = int(tensor.storage_offset()) * tensor.element_size()
        return start + offset, tensor.numel() * tensor.element_size(), here + offset

    def storage(self, tensor: torch.Tensor) -> Array:
        """The memory that a tensor is a view of: rows may be padded."""
        storage = tensor.untyped_storage()
        here, apart = storage.data_ptr(), (1 + len(self._places)) * self.APART
        start = self._places.setdefault(here, apart + here % self.ALIGNED)
        return start, storage.nbytes(), here


# ---- CUDA C++ ----------------------------------------------------------------------------------


def cuda_ptx(capability: int) -> dict[str, str]:
    """PTX of each source of csrc/cuda by its name, without the line that names the target."""
    texts = {}
    for source in sorted((CSRC / "cuda").glob("*.cu")):
        command = [*cuda_host.NVCC, "-ptx", f"-arch=sm_{capability}", str(source)]
        ptx = compiled(f"{source.stem}-sm_{capability}.ptx", command)
        texts[source.stem] = re.sub(r"(?m)^\.target .*", "", ptx.read_text(encoding="utf-8"))
    return texts


@cache
def cuda_entries(capability: int) -> list[Entry]:
    """All kernels of csrc/cuda."""
    return [entry for ptx in cuda_ptx(capability).values() for entry in entries(ptx).values()]


def _counts(counted: Counted | None, kernel: str) -> Counts | None:
    return None if counted is None else counted.setdefault(kernel, Counts())


@contextmanager
def cuda_on_machine(capability: int, counted: Counted | None = None) -> Iterator[None]:
    """Launch the kernels of `cuda_host` on the machine, compiled for a compute capability.

    The work they are given is added to `counted`.
    """
    passed: list[torch.Tensor] = []  # kept alive, so that no address is reused
    addresses = Addresses()

    def note(tensor: torch.Tensor) -> int:
        """Record tensors whose address is taken: they are passed to a kernel."""
        passed.append(tensor)
        return addresses.of(tensor)

    def run(kernel: str, arguments: bytes, blocks: tuple[int, int, int], threads: int) -> None:
        name = kernel.split("_GLOBAL__N_1")[1]
        (entry,) = (tensor for tensor in cuda_entries(capability) if name in tensor.name)
        packed = arguments + struct.pack("III", *blocks)
        grid = (math.prod(blocks), 1, 1)
        arrays = map(addresses.array, passed)
        # Mangled: a length, the name of the structure, and its template arguments.
        plain = re.findall(r"^\d+([A-Z][a-z]+(?:[A-Z][a-z]+)*)", name)[0]
        launch(Launch(entry, grid, threads, packed), arrays, _counts(counted, plain))

    cuda_host.built().launch_with(run)
    try:
        with mock.patch.object(torch.Tensor, "data_ptr", note):
            yield
    finally:
        cuda_host.built().launch_with(None)


# ---- Triton ------------------------------------------------------------------------------------


def _packed(entry: Entry, values: list[Any], addresses: Addresses) -> bytes:
    """Pack arguments as parameters; those that the compiler adds are 0."""
    packed = bytearray(entry.parameter_bytes)
    for (start, size), value in zip(entry.parameters, values, strict=False):
        if isinstance(value, torch.Tensor):
            value = addresses.of(value)
        kind = "f" if isinstance(value, float) else {4: "i", 8: "q"}[size]
        struct.pack_into(kind, packed, start, value)
    return bytes(packed)


@contextmanager
def triton_on_machine(
    capability: int, table: str, counted: Counted | None = None
) -> Iterator[None]:
    """Launch the Triton kernels on the machine, compiled for a compute capability.

    Args:
        capability: 80 or 90.
        table: of pinned configurations.
        counted: where to add the work they are given.
    """
    from triton_device import Launched, device  # here: Triton is not needed for CUDA's

    from densitrace.kernels import triton
    from densitrace.kernels.triton import configs

    def run(launched: Launched) -> None:
        kernel, values = launched.kernel, launched.arguments()
        (entry,) = entries(kernel.asm["ptx"]).values()
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        threads, shared = 32 * kernel.metadata.num_warps, kernel.metadata.shared
        addresses = Addresses()
        packed = _packed(entry, values, addresses)
        what = Launch(entry, launched.grid, threads, packed, shared)
        launch(what, map(addresses.storage, tensors), _counts(counted, entry.name))

    with (
        device(capability, run),
        mock.patch.object(configs, "table_for", return_value=table),
        mock.patch.object(triton, "DEVICES", ("cpu",)),
    ):
        yield


# ---- both --------------------------------------------------------------------------------------


@contextmanager
def kernels_on_machine(
    capability: int, table: str, counted: Counted | None = None
) -> Iterator[None]:
    """Serve ops on CPU tensors as on a GPU: see `triton_on_machine`."""
    with (
        mock.patch.object(dispatch, "BACKENDS", (*dispatch.BACKENDS, cuda_host.NAME)),
        mock.patch.dict(dispatch.PREFERENCE, {"cpu": (cuda_host.NAME, "triton", "reference")}),
        triton_on_machine(capability, table, counted),
        cuda_on_machine(capability, counted),
    ):
        yield
