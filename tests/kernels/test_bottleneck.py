"""The (max, min) product and the trace sizes in C++, against their written-out definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from densitrace import BackendError, _cpu, kernels

# Around the sizes of a tile of nodes, a strip of sources and a block of outputs.
LENGTHS = (1, 2, 63, 64, 65, 111, 128, 129, 257)
INSTRUCTION_SETS = _cpu.instruction_sets()
POISON = 171

Bytes = NDArray[np.uint8]


def product(reach: Bytes, levels: Bytes) -> Bytes:
    """max over i <= j <= t of min(reach[t, j], levels[j, i]): the definition, T^3 at once."""
    length = reach.shape[-1]
    t, j, i = np.ogrid[:length, :length, :length]
    paths = np.minimum(reach[:, :, :, None], levels[:, None, :, :])  # [B, t, j, i]
    best: Bytes = np.where((i <= j) & (j <= t), paths, 0).max(2)
    return best


def counted(reach: Bytes, degrees: NDArray[np.int32]) -> NDArray[np.int64]:
    """Sum over j <= t of degrees[k, j] where reach[t, j] >= K - k, one stratum at a time."""
    strata = len(degrees)
    sums = [
        np.einsum("btj,bj->bt", np.tril(reach) >= strata - k, degrees[k], dtype=np.int64)
        for k in range(strata)
    ]
    return np.stack(sums)


def level_maps(seed: int, batch: int, length: int, strata: int, zeros: float) -> Bytes:
    """Two maps [2, B, T, T] with levels up to `strata`; garbage above the diagonal."""
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, strata + 1, (2, batch, length, length), dtype=np.uint8)
    maps[rng.random(maps.shape) < zeros] = 0
    return maps


def run(reach: Bytes, levels: Bytes, threads: int, isa: str) -> Bytes:
    result = np.full_like(reach, POISON)
    _cpu.bottleneck(reach, levels, result, threads, isa)
    return result


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("length", LENGTHS)
def test_product_is_the_definition(length: int, isa: str) -> None:
    for batch in (1, 3) if length < 200 else (1,):
        reach, levels = level_maps(length, batch, length, strata=255, zeros=0.3)
        np.testing.assert_array_equal(run(reach, levels, 1, isa), product(reach, levels))


@given(
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 3),
    length=st.integers(1, 80),
    strata=st.integers(1, 255),
    zeros=st.sampled_from([0.0, 0.5, 0.99]),
    isa=st.sampled_from(INSTRUCTION_SETS),
)
def test_product_of_any_maps(
    seed: int, batch: int, length: int, strata: int, zeros: float, isa: str
) -> None:
    reach, levels = level_maps(seed, batch, length, strata, zeros)
    np.testing.assert_array_equal(run(reach, levels, 2, isa), product(reach, levels))


def test_long_product_agrees_between_instruction_sets_and_threads() -> None:
    """Long enough to start threads: shorter products run without."""
    reach, levels = level_maps(0, 2, 700, strata=12, zeros=0.9)
    wanted = kernels.bottleneck(
        torch.from_numpy(np.tril(reach)), torch.from_numpy(np.tril(levels)), backend="reference"
    )
    for isa in INSTRUCTION_SETS:
        for threads in (1, 2, 7):
            np.testing.assert_array_equal(run(reach, levels, threads, isa), wanted.numpy())


def test_identity_leaves_the_other_map() -> None:
    own = np.zeros((1, 130, 130), dtype=np.uint8)
    own[0][np.diag_indices(130)] = 255
    other = np.tril(level_maps(3, 1, 130, strata=255, zeros=0.2)[0])
    for isa in INSTRUCTION_SETS:
        np.testing.assert_array_equal(run(own, other, 1, isa), other)
        np.testing.assert_array_equal(run(other, own, 1, isa), other)


def test_fastest_instruction_set_is_the_default() -> None:
    assert INSTRUCTION_SETS[-1] == "portable"
    reach, levels = level_maps(1, 1, 70, strata=12, zeros=0.3)
    result = np.full_like(reach, POISON)
    _cpu.bottleneck(reach, levels, result, 1)
    np.testing.assert_array_equal(result, run(reach, levels, 1, INSTRUCTION_SETS[0]))


@pytest.mark.usefixtures("poisoned")
def test_tensors_of_any_layout() -> None:
    reach, levels = (torch.from_numpy(m) for m in level_maps(5, 2, 65, strata=12, zeros=0.3))
    wanted = product(reach.numpy(), levels.numpy())
    across = [m.transpose(1, 2).contiguous().transpose(1, 2) for m in (reach, levels)]
    assert not across[0].is_contiguous()
    for arguments in ((reach, levels), across):
        result = kernels.bottleneck(*arguments, backend="cpu")
        assert result.is_contiguous()
        np.testing.assert_array_equal(result.numpy(), wanted)


def test_auto_takes_the_cpu_backend_on_the_cpu() -> None:
    serving = kernels.backends("cpu")
    assert (serving["bottleneck"], serving["trace_sizes"]) == ("cpu", "cpu")
    with pytest.raises(BackendError, match="unknown"):
        kernels.bottleneck(*torch.zeros(2, 1, 3, 3, dtype=torch.uint8), backend="fast")


@pytest.mark.parametrize("strata", [1, 12, 16, 17, 255])
@pytest.mark.parametrize("length", [1, 65, 257])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("most", [1, 1000])  # degrees of at most 1 take another code path
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_sizes_are_the_definition(
    length: int, strata: int, threads: int, most: int, isa: str
) -> None:
    rng = np.random.default_rng(length)
    reach = level_maps(length, 2, length, strata, zeros=0.3)[0]
    degrees = rng.integers(0, most + 1, (strata, 2, length), dtype=np.int32)
    result = np.full(degrees.shape, -1, dtype=np.int64)
    _cpu.trace_sizes(reach, degrees, result, threads, isa)
    np.testing.assert_array_equal(result, counted(reach, degrees))


def test_sizes_do_not_overflow() -> None:
    largest = np.iinfo(np.int32).max
    reach = np.full((1, 200, 200), 3, dtype=np.uint8)
    degrees = np.full((3, 1, 200), largest, dtype=np.int32)
    result = np.empty(degrees.shape, dtype=np.int64)
    _cpu.trace_sizes(reach, degrees, result, 1)
    np.testing.assert_array_equal(result[0, 0], np.arange(1, 201) * largest)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_many_nodes_do_not_overflow_a_byte(isa: str) -> None:
    """One output with more nodes than a vector's byte counters can hold."""
    length = 255 * 64 + 70
    reach = np.full((1, length, length), 2, dtype=np.uint8)
    degrees = np.ones((2, 1, length), dtype=np.int32)
    result = np.full(degrees.shape, -1, dtype=np.int64)
    _cpu.trace_sizes(reach, degrees, result, 2, isa)
    np.testing.assert_array_equal(result[:, 0], [np.arange(1, length + 1)] * 2)


@pytest.mark.usefixtures("poisoned")
def test_sizes_of_tensors_agree_with_the_reference() -> None:
    reach = torch.from_numpy(level_maps(6, 3, 111, strata=12, zeros=0.6)[0]).tril()
    degrees = torch.randint(0, 50, (111, 3, 12), dtype=torch.int32).permute(2, 1, 0)
    wanted = kernels.trace_sizes(reach, degrees, backend="reference")
    assert torch.equal(kernels.trace_sizes(reach, degrees, backend="cpu"), wanted)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_sizes_leave_out_the_nodes_after_an_output(backend: str) -> None:
    generator = torch.Generator().manual_seed(7)
    reach = torch.randint(0, 4, (2, 40, 40), generator=generator, dtype=torch.uint8)
    degrees = torch.randint(0, 50, (3, 2, 40), generator=generator, dtype=torch.int32)
    wanted = kernels.trace_sizes(reach.tril(), degrees, backend=backend)
    assert torch.equal(kernels.trace_sizes(reach, degrees, backend=backend), wanted)


def test_arguments_are_checked() -> None:
    square = np.zeros((1, 4, 4), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"levels has the wrong shape; wanted \[1, 4, 4\]"):
        _cpu.bottleneck(square, np.zeros((1, 4, 5), dtype=np.uint8), square.copy(), 1)
    with pytest.raises(ValueError, match=r"reach has the wrong shape; wanted \[B, T, T\]"):
        _cpu.bottleneck(square[0], square, square.copy(), 1)
    with pytest.raises(ValueError, match="isa='sse9' is not available"):
        _cpu.bottleneck(square, square, square.copy(), 1, "sse9")
    with pytest.raises(TypeError):  # never converted: the result must be the caller's own array
        _cpu.bottleneck(square, square, square.astype(np.int32), 1)
    with pytest.raises(TypeError):
        _cpu.bottleneck(square.transpose(0, 2, 1), square, square.copy(), 1)
    degrees = np.zeros((2, 1, 5), dtype=np.int32)
    with pytest.raises(ValueError, match=r"degrees has the wrong shape; wanted \[2, 1, 4\]"):
        _cpu.trace_sizes(square, degrees, np.zeros((2, 1, 5), dtype=np.int64), 1)


def test_nothing_to_do() -> None:
    for shape in ((0, 5, 5), (2, 0, 0)):
        empty = np.zeros(shape, dtype=np.uint8)
        _cpu.bottleneck(empty, empty, empty.copy(), 2)
        degrees = np.zeros((3, *shape[:2]), dtype=np.int32)
        _cpu.trace_sizes(empty, degrees, degrees.astype(np.int64), 2)
        reach, nothing = torch.from_numpy(empty), torch.from_numpy(degrees)
        for backend in ("cpu", "reference"):
            product = kernels.bottleneck(reach, reach, backend=backend)
            assert (product.shape, product.dtype) == (shape, torch.uint8)
            sizes = kernels.trace_sizes(reach, nothing, backend=backend)
            assert (sizes.shape, sizes.dtype) == (degrees.shape, torch.int64)
