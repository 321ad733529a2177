"""How fast is the (max, min) product: in C++, as a loop in plain torch, as boolean products.

`bottleneck` serves all strata at once. The alternative of METHOD §4 is one boolean reachability
product per stratum, here a float32 matrix product, the fastest that torch has on a CPU. Operations
are counted the same way for all: a min and a max for each of the T (T + 1) (T + 2) / 6 paths i <= j
<= t, whatever else a provider does.
"""

from collections.abc import Callable

import pytest
import torch
from problems import STRATA
from pytest_benchmark.fixture import BenchmarkFixture
from timing import measure
from torch import Tensor

from densitrace import _cpu, kernels

LENGTHS = (256, 1024, 2048)


def level_maps(length: int) -> tuple[Tensor, Tensor]:
    """reach and levels, uint8 [1, T, T], each level of 0 .. K equally likely."""
    generator = torch.Generator().manual_seed(length)
    maps = torch.randint(0, STRATA + 1, (2, 1, length, length), generator=generator)
    reach, levels = maps.to(torch.uint8).tril()
    return reach, levels


def by_boolean_products(reach: Tensor, levels: Tensor) -> Tensor:
    """One reachability product per stratum; as strata nest, their sum is the bottleneck."""
    result = torch.zeros_like(reach)
    for level in range(1, STRATA + 1):
        paths = (reach >= level).float() @ (levels >= level).float()
        result += paths > 0
    return result


def by_torch_loop(reach: Tensor, levels: Tensor) -> Tensor:
    return kernels.bottleneck(reach, levels, backend="reference")


def on_cpu(isa: str) -> Callable[[Tensor, Tensor], Tensor]:
    def bottleneck(reach: Tensor, levels: Tensor) -> Tensor:
        result = torch.empty_like(reach)
        arrays = (reach.numpy(), levels.numpy(), result.numpy())
        _cpu.bottleneck(*arrays, torch.get_num_threads(), isa)
        return result

    return bottleneck


PROVIDERS = {f"cpu-{isa}": on_cpu(isa) for isa in _cpu.instruction_sets()} | {
    "torch-loop": by_torch_loop,
    "boolean-products": by_boolean_products,
}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_bottleneck(benchmark: BenchmarkFixture, provider: str, length: int) -> None:
    benchmark.group = f"bottleneck T={length}"
    maps = level_maps(length)
    product = PROVIDERS[provider]
    assert torch.equal(product(*maps), kernels.bottleneck(*maps))
    loop = {"torch loop": lambda: by_torch_loop(*maps)}
    timed = measure(benchmark, lambda: product(*maps), loop, "torch loop")
    if timed is not None:
        operations = length * (length + 1) * (length + 2) // 3
        benchmark.extra_info["Gop/s"] = operations / timed.seconds / 1e9
