"""Find ops that make the host wait for a device, or would if CPU tensors were on one."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Ops whose result the host reads, and the copy made by every `torch.tensor(number)`. In inference
# mode ops arrive whole: `item` rather than the `_local_scalar_dense` within.
READS = (
    "_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "masked_select",
    "_unique2", "bincount", "lift_fresh",
)  # fmt: skip


COPIES = {"to", "_to_copy", "copy_"}  # if between devices


def waits(name: str, args: tuple[Any, ...], result: Any) -> bool:
    """Whether an op reads values on the host, or copies from pageable memory or to it."""
    if name in READS:
        return True
    match name:
        case "where":
            return len(args) == 1  # as `nonzero`
        case "index" | "index_put" | "index_put_":
            return any(index is not None and index.dtype == torch.bool for index in args[1])
        case "to" | "_to_copy":
            return bool(result.device != args[0].device and result.numel())
        case "copy_":
            return bool(args[0].device != args[1].device and args[0].numel())
    return False


class HostWaits(TorchDispatchMode):
    """Counts ops that make the host wait, or would if their tensors were on a device."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if waits(name, args, result if isinstance(result, Tensor) else None):
            self.found[name] += 1
        return result


@contextmanager
def waits_in(owner: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """What makes the host wait inside a method or function while the context is open."""
    watch, function = HostWaits(), getattr(owner, method)

    def watched(*arguments: Any, **named: Any) -> Any:
        with watch:
            return function(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(owner, method, watched)
        yield watch.found
