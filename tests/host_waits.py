"""Find ops that would make the host wait if CPU tensors were on a device."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Ops whose result the host reads, and the copy made by every `torch.tensor(number)`.
READS = (
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "lift_fresh",
)  # fmt: skip


class HostWaits(TorchDispatchMode):
    """Counts ops that would make the host wait if their tensors were on a device."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        masks = [index for index in args[1] if index is not None] if name == "index" else []
        if name in READS or any(index.dtype == torch.bool for index in masks):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))
