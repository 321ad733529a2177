"""Constants as tensors on a device, cached: the host waits for every such copy."""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=32)
def on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`values` as a cached tensor [n] on a device: must not be written to."""
    return torch.tensor(values, dtype=dtype, device=device)
