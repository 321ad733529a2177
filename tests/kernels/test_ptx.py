"""Compiled GPU code of the kernels, run on a simulated machine: see tests/ptx."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cuda_host
import numpy as np
import pytest
import torch
from attention_problem import OTHER_KINDS, VARIANTS, Problem, Shape
from bench_files import module_at
from ptx_launches import Addresses, Counted, cuda_on_machine, cuda_ptx
from without_interpreter import lines_of

from densitrace.kernels import reference

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs the CUDA compiler")

on_gpu = module_at(Path(__file__).with_name("test_gpu.py"))


DIFFERS = ["bottleneck"]  # sources with instructions of one generation alone


@pytest.fixture
def cuda(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, poisoned: None
) -> Iterator[str]:
    """A backend whose launches run on the machine, as compiled for one of two GPU generations."""
    cuda_host.switch_on(monkeypatch)
    with cuda_on_machine(request.param):
        yield cuda_host.NAME


def test_neighbours_in_memory_are_apart_on_the_machine() -> None:
    memory, addresses = np.zeros(8, np.float32), Addresses()
    first, second = (torch.from_numpy(half) for half in np.split(memory, 2))
    assert abs(addresses.of(second) - addresses.of(first)) > 1 << 39
    assert addresses.of(first[1:]) == addresses.of(first) + 4
    assert addresses.of(second) % 256 == second.data_ptr() % 256
    assert addresses.array(first[1:]) == (addresses.of(first[1:]), 12, first[1:].data_ptr())


def test_one_program_serves_both_generations() -> None:
    """So what runs on the machine as one of them has it would run alike on the other."""
    older, newer = cuda_ptx(80), cuda_ptx(90)
    assert older.keys() == newer.keys()
    assert [name for name in older if older[name] != newer[name]] == DIFFERS


@pytest.mark.parametrize(
    ("cuda", "op"),
    [*((90, op) for op in on_gpu.CUDA_OPS), *((80, op) for op in DIFFERS)],
    indirect=["cuda"],
)
@pytest.mark.parametrize("shape", ["one token", "all", "bfloat16", "long"])
def test_cuda_kernels(shape: str, op: str, cuda: str) -> None:
    on_gpu.CHECKS[op](Problem(VARIANTS[shape], backend=cuda))


@pytest.mark.parametrize("cuda", [80, 90], indirect=True)
@pytest.mark.parametrize("method", ["packed", "boolean"])
@pytest.mark.parametrize("length", [33, 132])  # rows at any address, or aligned to words
def test_methods_of_the_max_min_product(length: int, method: str, cuda: str) -> None:
    """Several tiles, and many levels under one method."""
    levels, size = 256 if method == "packed" else 4, (2, length, length)
    # Apart in memory, so that nothing beyond the end of one is in the other.
    maps = [torch.randint(0, levels, size, dtype=torch.uint8) for _ in range(2)]
    expected = reference.bottleneck(*(one.tril() for one in maps))
    assert torch.equal(cuda_host.ops.bottleneck(*maps, method), expected)


@pytest.mark.parametrize("cuda", [90], indirect=True)
@pytest.mark.parametrize("length", [129, 130])  # rows at any address, or two weights at once
def test_blocks_that_lie_wholly_below_the_diagonal(length: int, cuda: str) -> None:
    shape = Shape(batch=1, heads=1, groups=1, length=length, window=length)
    problem = Problem(shape, backend=cuda)
    problem.segments = torch.zeros(1, length, dtype=torch.int32)
    problem.pattern = replace(problem.pattern, segments=problem.segments)
    on_gpu.check_collect_edges(problem)
    on_gpu.check_proximity(problem)


@pytest.mark.parametrize("cuda", [90], indirect=True)
@pytest.mark.parametrize("method", ["packed", "boolean"])
def test_maps_at_any_address(method: str, cuda: str) -> None:
    """Whose rows would be aligned to words if their map were."""
    memory = torch.randint(0, 4, (2, 1 + 128 * 128), dtype=torch.uint8)
    odd, other = memory[0, 1:].view(1, 128, 128), memory[1, 1:].view(1, 128, 128).clone()
    for maps in ((odd, other), (other, odd)):
        expected = reference.bottleneck(*(one.tril() for one in maps))
        assert torch.equal(cuda_host.ops.bottleneck(*maps, method), expected)


def test_launches_beyond_the_highest_level_read_no_map(monkeypatch: pytest.MonkeyPatch) -> None:
    reach = torch.ones(1, 33, 33, dtype=torch.uint8).tril()
    planes, read = cuda_host.extension.plane_words(1, 33), []
    for levels in (255, 100):  # whose planes are held at once: one launch, or three
        monkeypatch.setattr(cuda_host.budgets, "PLANE_WORDS", levels * planes)
        counted: Counted = {}
        with cuda_on_machine(90, counted):
            assert torch.equal(cuda_host.ops.bottleneck(reach, reach, "boolean"), reach)
        read.append(counted["Planes"].sectors)
    warps = 2 * 8 * 2  # of a launch: each reads the highest level
    assert read[1] == read[0] + 2 * warps


@pytest.mark.parametrize(("table", "capability"), [("default", "80"), ("sm_90", "90")])
def test_triton_kernels_and_goldens(table: str, capability: str) -> None:
    held = {line.split()[0] for line in lines_of("machine_checks.py", table, capability)}
    others = {*OTHER_KINDS, "few_strata", "agreement", "goldens"}
    assert held == {*on_gpu.TRITON_OPS, *others}
