"""A call of each Triton op at a head width, and with each kind of edge weight, to compile it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from attention_problem import Problem, Shape, weight_of

from densitrace.kernels import AttentionEdges
from densitrace.kernels import triton as ops
from densitrace.kernels.triton.edge_levels import GROUP

STRATA = 12
WIDE = "wide"  # a dtype: 16 bits, with float32 queries and keys


def torch_dtype(dtype: str) -> torch.dtype:
    """The dtype of values, by its name without `torch.`."""
    found: torch.dtype = getattr(torch, "bfloat16" if dtype == WIDE else dtype)
    return found


def problem(width: int, dtype: str) -> Problem:
    """A problem with every variant of attention on, so that the largest kernels are compiled."""
    shape = Shape(
        batch=1, heads=4, groups=2, length=33, d_k=width, d_v=width, hidden=2 * width, window=20,
        softcap=5.0, sinks=True, segments=True, dtype=torch_dtype(dtype), wide=dtype == WIDE,
    )  # fmt: skip
    return Problem(shape, backend="reference")


def edges_of(given: Problem, kind: str) -> AttentionEdges:
    return given.edges(weight_of(kind, given))


# ---- ops on attention and on predictions -------------------------------------------------------


def attention_stats(width: int, dtype: str) -> object:
    given = problem(width, dtype)
    return ops.attention_stats(given.pattern, given.v, torch.ones(1, 4, 33))


def output_errors(width: int, dtype: str) -> object:
    states = torch.zeros(3, 5, 4 * width, dtype=torch_dtype(dtype))
    table = torch.zeros(101, 4 * width, dtype=torch_dtype(dtype))
    return ops.output_errors(states[0], states[1:], table, table[:, 0], 0.9, 30.0, torch.arange(5))


def source_norms(width: int, dtype: str, folded: bool) -> object:
    """With a projection in the model's dtype, or in float32 with a norm folded in."""
    given = problem(width, dtype)
    matrix = given.w_o if folded else given.w_o.to(torch_dtype(dtype))
    return [ops.source_norms(given.v, matrix, p) for p in (1, 2)]


def row_cuts(width: int, dtype: str) -> object:
    """`width` stands for the number of strata; nodes with fewer and fewer edges."""
    shares, total = torch.linspace(0.001, 0.9, min(width, 255)), torch.ones(1, 33)
    return [
        (ops.nucleus_cuts(None, side, shares, total), ops.fraction_cuts(None, side, shares))
        for side in (torch.ones(edges, 1, 33) for edges in (2999, 999, 2))
    ]


# ---- ops on weighed edges ----------------------------------------------------------------------


def edge_mass(width: int, dtype: str, kind: str = "norm") -> object:
    return ops.edge_mass(edges_of(problem(width, dtype), kind))


def node_cuts(width: int, dtype: str, kind: str = "norm") -> object:
    edges = edges_of(problem(width, dtype), kind)
    masses = torch.linspace(0.1, 0.9, STRATA)
    return ops.nucleus_cuts(edges, torch.ones(999, 1, 33), masses, torch.ones(1, 33))


def edge_levels(width: int, dtype: str, kind: str = "norm") -> object:
    """Two whole groups of strata: the first creates the levels, the second adds to them."""
    return ops.edge_levels(edges_of(problem(width, dtype), kind), torch.zeros(2 * GROUP, 1, 33))


def lane_attention(width: int, dtype: str, live: bool, kind: str = "norm") -> object:
    given = problem(width, dtype)
    q, k, v = (x.expand(STRATA, *x.shape) for x in (given.pattern.q, given.pattern.k, given.v))
    lanes = replace(given.pattern, q=q, k=k) if live else None
    cuts = torch.zeros(STRATA, 1, 33)
    return ops.lane_attention(edges_of(given, kind), cuts, v, lanes, False, given.v.dtype)


Call = Callable[..., object]  # of a width, a dtype and, in WEIGHING, a kind of weight
WEIGHING: dict[str, Call] = {
    "edge_levels": edge_levels,
    "edge_mass": edge_mass,
    "node_cuts": node_cuts,
    "lane_attention_frozen": partial(lane_attention, live=False),
    "lane_attention_live": partial(lane_attention, live=True),
}
CALLS: dict[str, Call] = {
    "attention_stats": attention_stats,
    "output_errors": output_errors,
    "row_cuts": row_cuts,
    "source_norms": partial(source_norms, folded=False),
    "source_norms_split": partial(source_norms, folded=True),
    **WEIGHING,
}
