"""The compiled module; its sources are in csrc/."""

import numpy as np
from numpy.typing import NDArray

def instruction_sets() -> list[str]:
    """Instruction sets that `isa` may name here, the fastest first."""

def bottleneck(
    reach: NDArray[np.uint8],
    levels: NDArray[np.uint8],
    result: NDArray[np.uint8],
    threads: int,
    isa: str = "auto",
) -> None:
    """Writes the (max, min) product of uint8 [B, T, T] arrays into `result`.

    Raises:
        ValueError: a shape that does not fit, or an instruction set that is not there.
        TypeError: another dtype, or an array that is not C-contiguous.
    """

def trace_sizes(
    reach: NDArray[np.uint8],
    degrees: NDArray[np.int32],
    result: NDArray[np.int64],
    threads: int,
) -> None:
    """Writes the edges of every trace that enter one node layer, [K, B, T], into `result`.

    Raises:
        ValueError: a shape that does not fit.
        TypeError: another dtype, or an array that is not C-contiguous.
    """
