"""The CUDA kernels, built for the host, against their definitions and among themselves."""

from collections.abc import Iterator

import cuda_host
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from densitrace.kernels import reference

pytestmark = pytest.mark.usefixtures("poisoned")
ops = cuda_host.ops

METHODS = ["packed", "boolean"]


@pytest.fixture(params=[False, True], ids=["forwards", "backwards"])
def order(request: pytest.FixtureRequest) -> Iterator[None]:
    """Threads and blocks take turns in both orders: a result that differs has a race."""
    ops._cuda.go_backwards(request.param)
    yield
    ops._cuda.go_backwards(False)


# ---- bottlenecks and sizes -------------------------------------------------------------------


def level_maps(
    seed: int, batch: int, length: int, strata: int, zeros: float
) -> tuple[Tensor, Tensor]:
    """Two maps, uint8 [B, T, T] each; above the diagonal there is garbage."""
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, strata + 1, (2, batch, length, length), dtype=np.uint8)
    maps[rng.random(maps.shape) < zeros] = 0
    reach, levels = torch.from_numpy(maps)
    return reach, levels


def assert_product(reach: Tensor, levels: Tensor, method: str) -> None:
    expected = reference.bottleneck(reach.tril(), levels.tril())
    assert torch.equal(ops.bottleneck(reach, levels, method), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [1, 2, 31, 33, 63, 64, 65, 129, 193])
@pytest.mark.usefixtures("order")
def test_product_is_the_definition(length: int, method: str) -> None:
    strata = 255 if method == "packed" else 5  # a product a level
    assert_product(*level_maps(length, 2, length, strata, zeros=0.3), method)


def test_boolean_product_of_all_levels_there_are() -> None:
    assert_product(*level_maps(0, 1, 33, strata=255, zeros=0.5), "boolean")


@given(
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 3),
    length=st.integers(1, 80),
    strata=st.integers(1, 12),
    zeros=st.sampled_from([0.0, 0.5, 0.99]),
    method=st.sampled_from(METHODS),
)
def test_product_of_any_maps(
    seed: int, batch: int, length: int, strata: int, zeros: float, method: str
) -> None:
    assert_product(*level_maps(seed, batch, length, strata, zeros), method)


@pytest.mark.parametrize("method", METHODS)
def test_tensors_of_any_layout(method: str) -> None:
    reach, levels = level_maps(5, 2, 65, strata=12, zeros=0.3)
    across = [m.transpose(1, 2).contiguous().transpose(1, 2) for m in (reach, levels)]
    result = ops.bottleneck(*across, method)
    assert result.is_contiguous()
    assert torch.equal(result, ops.bottleneck(reach, levels, method))


@pytest.mark.parametrize("strata", [1, 12, 255])
@pytest.mark.parametrize("length", [1, 8, 65, 257])
@pytest.mark.usefixtures("order")
def test_sizes_are_the_definition(length: int, strata: int) -> None:
    reach = level_maps(length, 2, length, strata, zeros=0.3)[0]
    drawn = torch.randint(0, 1000, (length, 2, strata), dtype=torch.int32)
    degrees = drawn.permute(2, 1, 0)
    expected = reference.trace_sizes(reach, degrees)
    assert torch.equal(ops.trace_sizes(reach, degrees), expected)


def test_sizes_do_not_overflow() -> None:
    largest = torch.iinfo(torch.int32).max
    reach = torch.full((1, 200, 200), 3, dtype=torch.uint8)
    degrees = torch.full((3, 1, 200), largest, dtype=torch.int32)
    assert torch.equal(ops.trace_sizes(reach, degrees)[0, 0], torch.arange(1, 201) * largest)


@pytest.mark.parametrize("shape", [(0, 5, 5), (2, 0, 0)])
def test_nothing_to_do(shape: tuple[int, ...]) -> None:
    empty = torch.zeros(shape, dtype=torch.uint8)
    for method in METHODS:
        assert ops.bottleneck(empty, empty, method).shape == shape
    assert ops.trace_sizes(empty, torch.zeros(3, *shape[:2], dtype=torch.int32)).shape[0] == 3


def test_what_a_kernel_would_believe_is_checked() -> None:
    square = torch.zeros(1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"levels has shape \[1, 5, 5\]; wanted \[1, 4, 4\]"):
        ops.bottleneck(square, torch.zeros(1, 5, 5, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"levels is not a contiguous tensor of torch\.uint8"):
        ops.bottleneck(square, square.int())
    with pytest.raises(ValueError, match="neither packed nor boolean"):
        ops.bottleneck(square, square, "fast")
    with pytest.raises(ValueError, match="tensors are on meta"):
        ops.bottleneck(square.to("meta"), square.to("meta"))
