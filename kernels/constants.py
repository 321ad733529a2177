"""Numbers as tensors on a device, copied there once: the host waits for every such copy."""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=32)
def on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values [n] on a device; nobody may write to them."""
    return torch.tensor(values, dtype=dtype, device=device)
