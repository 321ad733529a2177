"""Constants as tensors on a device, cached: the host waits for every such copy."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch
from torch import Tensor

_used: ContextVar[list[Tensor] | None] = ContextVar("used", default=None)


def on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`values` as a cached tensor [n] on a device: must not be written to."""
    constant = _cached(values, dtype, device)
    if (used := _used.get()) is not None:
        used.append(constant)
    return constant


@lru_cache(maxsize=32)
def _cached(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


@contextmanager
def used() -> Iterator[list[Tensor]]:
    """Collect the constants used in this thread while the context is open.

    Whoever holds the addresses of constants, as a CUDA graph does, keeps the list: the cache alone
    would free their memory.
    """
    constants: list[Tensor] = []
    token = _used.set(constants)
    try:
        yield constants
    finally:
        _used.reset(token)
