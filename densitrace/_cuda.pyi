"""The compiled module for NVIDIA GPUs; its sources are in csrc/cuda.

Tensors come as the addresses of contiguous arrays in the memory of `device`, whose shapes and types
`kernels/cuda.py` has checked; an op queues its kernels on a stream and waits for nothing.
RuntimeError says what the CUDA runtime reports.
"""

DEVICE: str  # the type of the devices whose memory the addresses are of

def bottleneck(
    reach: int,
    levels: int,
    most: int,
    result: int,
    batch: int,
    length: int,
    method: str,
    device: int,
    stream: int,
) -> None:
    """Writes the (max, min) product of uint8 [B, T, T] arrays into `result`.

    `method` is packed or boolean; for the latter `most` is a uint8 [1], the highest level.
    """

def trace_sizes(
    reach: int,
    degrees: int,
    result: int,
    strata: int,
    batch: int,
    length: int,
    device: int,
    stream: int,
) -> None:
    """Writes the edges of every trace that enter one node layer, int64 [K, B, T]."""
