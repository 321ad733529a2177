"""Launch kernels: run all blocks, some at a time."""

import math
from collections.abc import Iterable

import numpy as np

from .counts import Counts
from .machine import Launch, Machine
from .memory import Array, GlobalMemory, PtxError
from .steps import steps

TOGETHER = 4096  # threads that run at a time (at least one block)
MOST_BLOCKS = (2**31 - 1, 65535, 65535)


def launch(what: Launch, arrays: Iterable[Array], counts: Counts | None = None) -> None:
    """Run a kernel.

    Args:
        what: the launch.
        arrays: the memory that it may access, as `GlobalMemory` takes it.
        counts: where to add the kernel's counts.

    Raises:
        PtxError: the kernel does something that faults on a GPU or has an undefined result.
    """
    if what.entry.threads not in (0, what.threads):
        raise PtxError(f"{what.entry.threads} threads are wanted, not {what.threads}")
    if len(what.arguments) != what.entry.parameter_bytes:
        raise PtxError(f"{what.entry.parameter_bytes} bytes of arguments are wanted")
    if any(count > most for count, most in zip(what.grid, MOST_BLOCKS, strict=True)):
        raise PtxError(f"a grid of {what.grid} blocks is too large")
    memory, does = GlobalMemory(arrays, watched=counts is None), steps(what.entry)
    count, together = math.prod(what.grid), max(1, TOGETHER // what.threads)
    with np.errstate(all="ignore"):
        for first in range(0, count, together):
            blocks = np.arange(first, min(count, first + together))
            Machine(what, does, blocks, memory, counts).run()
    memory.write_back()
