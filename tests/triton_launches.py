"""A call of each Triton op at a head width, for `triton_compiler`."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from attention_problem import Problem, Shape

from densitrace.kernels import triton as ops
from densitrace.kernels.triton.edge_levels import GROUP


def problem(width: int, dtype: torch.dtype) -> Problem:
    """A problem with every variant of attention on, so that the largest kernels are compiled."""
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


def edge_mass(width: int, dtype: torch.dtype) -> object:
    return ops.edge_mass(problem(width, dtype).norm_edges())


STRATA = 12


def source_norms(width: int, dtype: torch.dtype, folded: bool) -> object:
    """With a projection in the model's dtype, or in float32 with a norm folded in."""
    given = problem(width, dtype)
    matrix = given.w_o if folded else given.w_o.to(dtype)
    return [ops.source_norms(given.v, matrix, p) for p in (1, 2)]


def node_cuts(width: int, dtype: torch.dtype) -> object:
    edges = problem(width, dtype).norm_edges()
    masses = torch.linspace(0.1, 0.9, STRATA)
    return ops.nucleus_cuts(edges, torch.ones(999, 1, 33), masses, torch.ones(1, 33))


def row_cuts(width: int, dtype: torch.dtype) -> object:
    """`width` stands for the number of strata; nodes with fewer and fewer edges."""
    shares, total = torch.linspace(0.001, 0.9, min(width, 255)), torch.ones(1, 33)
    return [
        (ops.nucleus_cuts(None, side, shares, total), ops.fraction_cuts(None, side, shares))
        for side in (torch.ones(edges, 1, 33) for edges in (2999, 999, 2))
    ]


def edge_levels(width: int, dtype: torch.dtype) -> object:
    """Two whole groups of strata: the first creates the levels, the second adds to them."""
    return ops.edge_levels(problem(width, dtype).norm_edges(), torch.zeros(2 * GROUP, 1, 33))


def lane_attention(width: int, dtype: torch.dtype, live: bool) -> object:
    given = problem(width, dtype)
    q, k, v = (x.expand(STRATA, *x.shape) for x in (given.pattern.q, given.pattern.k, given.v))
    lanes = replace(given.pattern, q=q, k=k) if live else None
    cuts = torch.zeros(STRATA, 1, 33)
    return ops.lane_attention(given.norm_edges(), cuts, v, lanes, False, dtype)


CALLS: dict[str, Callable[[int, torch.dtype], object]] = {
    "attention_stats": attention_stats,
    "output_errors": output_errors,
    "edge_levels": edge_levels,
    "edge_mass": edge_mass,
    "node_cuts": node_cuts,
    "row_cuts": row_cuts,
    "source_norms": partial(source_norms, folded=False),
    "source_norms_split": partial(source_norms, folded=True),
    "lane_attention_frozen": partial(lane_attention, live=False),
    "lane_attention_live": partial(lane_attention, live=True),
}
