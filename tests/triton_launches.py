"""A call of each Triton op at a head width: what `triton_compiler` compiles."""

from collections.abc import Callable

import torch
from attention_problem import Problem, Shape

from densitrace.kernels import triton as ops


def problem(width: int, dtype: torch.dtype) -> Problem:
    """Every variant of attention switched on, so that the largest kernels are compiled."""
    shape = Shape(
        batch=1, heads=4, groups=2, length=33, d_k=width, d_v=width, hidden=2 * width, window=20,
        softcap=5.0, sinks=True, segments=True, dtype=dtype,
    )  # fmt: skip
    return Problem(shape, backend="reference")


def attention_stats(width: int, dtype: torch.dtype) -> object:
    given = problem(width, dtype)
    return ops.attention_stats(given.pattern, given.v, torch.ones(1, 4, 33))


def output_errors(width: int, dtype: torch.dtype) -> object:
    states = torch.zeros(3, 5, 4 * width, dtype=dtype)
    table = torch.zeros(101, 4 * width, dtype=dtype)
    return ops.output_errors(states[0], states[1:], table, table[:, 0], 0.9, 30.0, torch.arange(5))


CALLS: dict[str, Callable[[int, torch.dtype], object]] = {
    "attention_stats": attention_stats,
    "output_errors": output_errors,
}
