"""Ops in C++ on tensors in main memory: thin calls into `densitrace._cpu`.

The number of threads is torch's, so that `torch.set_num_threads` governs these ops too.
"""

import torch
from torch import Tensor

from .. import _cpu


def bottleneck(reach: Tensor, levels: Tensor) -> Tensor:
    result = torch.empty_like(reach, memory_format=torch.contiguous_format)
    _cpu.bottleneck(
        reach.contiguous().numpy(),
        levels.contiguous().numpy(),
        result.numpy(),
        torch.get_num_threads(),
    )
    return result


def trace_sizes(reach: Tensor, degrees: Tensor) -> Tensor:
    result = torch.empty(degrees.shape, dtype=torch.int64)
    _cpu.trace_sizes(
        reach.contiguous().numpy(),
        degrees.contiguous().numpy(),
        result.numpy(),
        torch.get_num_threads(),
    )
    return result
