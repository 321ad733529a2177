"""Compiled GPU code of the kernels, run on a simulated machine: see tests/ptx."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import cuda_host
import pytest
import torch
from attention_problem import VARIANTS, Problem
from bench_files import module_at
from ptx_launches import cuda_on_machine
from without_interpreter import lines_of

from densitrace.kernels import reference

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs the CUDA compiler")

on_gpu = module_at(Path(__file__).with_name("test_gpu.py"))


@pytest.fixture(params=[80, 90])
def cuda(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, poisoned: None
) -> Iterator[str]:
    """A backend whose launches run on the machine, as compiled for one of two GPU generations."""
    cuda_host.switch_on(monkeypatch)
    with cuda_on_machine(request.param):
        yield cuda_host.NAME


@pytest.mark.parametrize("op", on_gpu.CUDA_OPS)
@pytest.mark.parametrize("shape", ["one token", "all", "bfloat16", "long"])
def test_cuda_kernels(shape: str, op: str, cuda: str) -> None:
    on_gpu.CHECKS[op](Problem(VARIANTS[shape], backend=cuda))


@pytest.mark.parametrize("method", ["packed", "boolean"])
@pytest.mark.parametrize("length", [33, 132])  # rows at any address, or aligned to words
def test_ways_of_the_max_min_product(length: int, method: str, cuda: str) -> None:
    """Several tiles, and many levels under one method."""
    levels = 256 if method == "packed" else 4
    maps = torch.randint(0, levels, (2, 2, length, length), dtype=torch.uint8)
    expected = reference.bottleneck(*maps.tril())
    assert torch.equal(cuda_host.ops.bottleneck(*maps, method), expected)


@pytest.mark.parametrize(("table", "capability"), [("default", "80"), ("sm_90", "90")])
def test_triton_kernels_and_goldens(table: str, capability: str) -> None:
    held = {line.split()[0] for line in lines_of("machine_checks.py", table, capability)}
    assert held == {*on_gpu.TRITON_OPS, "goldens"}
