"""The checks of test_gpu.py cover every served op and pass without a GPU."""

from pathlib import Path

import cuda_host
import pytest
from attention_problem import OTHER_KINDS, Problem, Shape
from bench_files import module_at

from densitrace.kernels import dispatch

on_gpu = module_at(Path(__file__).with_name("test_gpu.py"))
SHAPES = {"odd": Shape(length=9), "all": Shape(length=7, window=4, softcap=2.0, sinks=True)}
# CUDA ops are replaced by the reference: this tests the check itself.
BACKENDS = dict.fromkeys(on_gpu.CUDA_OPS, "reference") | dict.fromkeys(on_gpu.TRITON_OPS, "triton")


def test_every_op_that_is_served_has_a_check() -> None:
    served = {parameters.values[1] for parameters in on_gpu.SERVED}
    assert served == {*on_gpu.TRITON_OPS, *on_gpu.CUDA_OPS} == on_gpu.CHECKS.keys()


@pytest.mark.parametrize("shape", list(SHAPES.values()), ids=list(SHAPES))
@pytest.mark.parametrize("op", list(on_gpu.CHECKS))
def test_checks_hold(op: str, shape: Shape) -> None:
    """Without a GPU."""
    on_gpu.CHECKS[op](Problem(shape, backend=BACKENDS[op]))


@pytest.mark.parametrize("kind", OTHER_KINDS)
@pytest.mark.parametrize("shape", list(SHAPES.values()), ids=list(SHAPES))
def test_checks_of_kinds_hold(kind: str, shape: Shape) -> None:
    on_gpu.check_kind(kind, Problem(shape, backend="triton"))


@pytest.mark.parametrize("shape", list(on_gpu.WIDE.values()), ids=list(on_gpu.WIDE))
@pytest.mark.parametrize("op", on_gpu.CUDA_OPS)
def test_checks_of_wide_heads_hold(op: str, shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CUDA kernels, built for the host: the definition's own rounding decides nothing."""
    cuda_host.switch_on(monkeypatch)
    monkeypatch.setitem(dispatch.PREFERENCE, "cpu", (cuda_host.NAME, "reference"))
    on_gpu.CHECKS[op](Problem(shape, backend=cuda_host.NAME))
