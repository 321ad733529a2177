"""`meta` in the role of a GPU: the host code of passes runs there, and nothing is computed.

Kernels are not launched, only their arguments are checked; `Allocated` adds up the memory.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import cuda_host
import pytest
import torch
from torch import Tensor
from torch.fx.experimental import _config as meta_config
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import KernelInterface

from densitrace.kernels import dispatch
from densitrace.kernels.triton import configs

Launches = Counter[str]


class Extension:
    """Stands in for `densitrace._cuda`: counts calls, makes nothing."""

    DEVICE = "meta"

    def __init__(self, launches: Launches) -> None:
        self.launches = launches

    @property
    def Weights(self) -> "Extension":
        return self

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*_: Any) -> int:
            self.launches[name] += 1
            return 1

        return call


@contextmanager
def served_as_a_gpu() -> Iterator[Launches]:
    """Serve ops on `meta` as on a GPU; counts the kernels that would be launched."""
    counted = Launches()

    def kernel(self: Any, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*values: Any, **named: Any) -> None:
            assert all(0 < blocks < 1 << 31 for blocks in grid)
            for value in (*values, *named.values()):
                assert not isinstance(value, Tensor) or value.is_meta
            counted[self.__name__] += 1

        return launch

    config: Any = meta_config  # restores itself: monkeypatch would delete the entry
    with pytest.MonkeyPatch.context() as patch, config.patch(meta_nonzero_assume_all_nonzero=True):
        cuda_host.switch_on(patch)
        patch.setattr(cuda_host, "built", lambda: Extension(counted))
        patch.setitem(dispatch.PREFERENCE, "meta", (cuda_host.NAME, "triton", "reference"))
        patch.setattr(configs, "table_for", lambda _: "sm_90")
        patch.setattr(KernelInterface, "__getitem__", kernel)
        yield counted


class Allocated(TorchDispatchMode):
    """Adds up the bytes of tensors that are made on `meta` while it is on.

    Each is rounded up to 512 bytes, as torch's allocator for GPUs does.
    """

    def __init__(self, before: Iterable[Tensor]) -> None:
        """Tensors made `before`, of which views may be taken, do not count."""
        TorchDispatchMode.__init__(self)
        self.now = self.peak = 0
        self.largest = 0  # bytes of one tensor
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in before}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._sizes:
            return
        size = -(-storage.nbytes() // 512) * 512
        self._sizes[storage._cdata] = size
        weakref.finalize(storage, self._forget, storage._cdata)
        self.now += size
        self.peak = max(self.peak, self.now)
        self.largest = max(self.largest, size)

    def _forget(self, address: int) -> None:
        self.now -= self._sizes.pop(address)


class Flash(TorchFunctionMode):
    """torch's SDPA as on a GPU: of what it makes, only the output is of the size of its input."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, _, value = args[:3]
        return query.new_empty(*query.shape[:-1], value.shape[-1])
