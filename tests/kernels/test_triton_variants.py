"""Triton's attention ops against plain torch, in dtypes and head sizes that test_ops lacks.

The tolerance is 1e-5 of a result's largest entry, also for 16-bit queries, keys and values: both
sides read these as float32, and the interpreter does not round attention weights to the values'
dtype as tensor cores do (`Problem.product_ratio` is their bound; test_gpu checks it). What remains
is the order of float32 sums of at most 256 terms: at 2^-24 a step, sums of terms of either sign err
by about sqrt(256) 2^-24 = 1e-6 of their size.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from attention_problem import VARIANTS, Problem, Shape, close, gap_cuts
from torch import Tensor

from densitrace import kernels
from densitrace.kernels import AttentionEdges, NormWeight, triton

pytestmark = pytest.mark.usefixtures("poisoned")

FULL = Shape(
    batch=1, heads=2, groups=1, length=9, d_k=40, d_v=24, window=6, softcap=5.0, sinks=True,
    segments=True, scattered=True,
)  # fmt: skip
SHAPES = {
    "float16, unequal": replace(FULL, dtype=torch.float16),
    "bfloat16, unequal": replace(FULL, dtype=torch.bfloat16),
    "bfloat16, wide queries": replace(FULL, dtype=torch.bfloat16, wide=True),
    "heads of 64": replace(FULL, d_k=64, d_v=64),
    "heads of 128, bfloat16": replace(FULL, d_k=128, d_v=128, dtype=torch.bfloat16),
    "heads of 256": replace(FULL, d_k=256, d_v=256),
    "heads of 256, float16": replace(FULL, d_k=256, d_v=256, dtype=torch.float16),
    "heads of 128 and 32, plain": Shape(batch=1, length=9, d_k=128, d_v=32),
}
SHARES = (0.2, 0.6, 0.97)


def edges_of(problem: Problem) -> AttentionEdges:
    """Norm edges computed in plain torch only."""
    problem.pattern = replace(problem.pattern, scale=problem.shape.d_k**-0.5)  # as in models
    norms = kernels.source_norms(problem.v, problem.w_o, 1, backend="reference")
    lse = kernels.attention_stats(problem.pattern, problem.v, None, backend="reference").lse
    return AttentionEdges(replace(problem.pattern, lse=lse), NormWeight(norms, problem.target))


def cuts_of(edges: AttentionEdges) -> Tensor:
    weights = kernels.edge_weights(edges, backend="reference").nan_to_num(0)
    return gap_cuts(weights.double().numpy(), (0.9, 0.6, 0.2))


def side_of(problem: Problem) -> Tensor:
    return problem.normal(2, problem.shape.batch, problem.shape.length).abs()


def source_norms(problem: Problem, backend: str) -> Iterable[Tensor]:
    return [kernels.source_norms(problem.v, problem.w_o, p, backend=backend) for p in (1, 2)]


def attention_stats(problem: Problem, backend: str) -> Iterable[Tensor]:
    pattern = replace(edges_of(problem).pattern, lse=None)
    source = problem.normal(problem.shape.batch, problem.shape.heads, problem.shape.length).abs()
    actual = kernels.attention_stats(pattern, problem.v, source, backend=backend)
    return actual.output, actual.lse, actual.mass


def edge_mass(problem: Problem, backend: str) -> Iterable[Tensor]:
    return [kernels.edge_mass(edges_of(problem), backend=backend)]


def edge_levels(problem: Problem, backend: str) -> Iterable[Tensor]:
    edges = edges_of(problem)
    actual = kernels.edge_levels(edges, cuts_of(edges), backend=backend)
    return actual.levels, actual.degrees


def nucleus_cuts(problem: Problem, backend: str) -> Iterable[Tensor]:
    edges, side = edges_of(problem), side_of(problem)
    total = kernels.edge_mass(edges, backend="reference") + side.sum(0)
    return [kernels.nucleus_cuts(edges, side, SHARES, total, backend=backend)]


def fraction_cuts(problem: Problem, backend: str) -> Iterable[Tensor]:
    edges = edges_of(problem)
    return [kernels.fraction_cuts(edges, side_of(problem), SHARES, backend=backend)]


def lane_attention(problem: Problem, backend: str) -> Iterable[Tensor]:
    edges, lanes = edges_of(problem), [Problem(problem.shape, seed) for seed in (1, 2, 3)]
    q, k = (torch.stack([getattr(lane.pattern, name) for lane in lanes]) for name in "qk")
    own = replace(edges.pattern, q=q, k=k, lse=None)
    values = torch.stack([lane.v for lane in lanes])
    return [
        kernels.lane_attention(edges, cuts_of(edges), values, of, invert=invert, backend=backend)
        for of in (own, None)
        for invert in (False, True)
    ]


OPS: dict[str, Callable[[Problem, str], Iterable[Tensor]]] = {
    "source_norms": source_norms,
    "attention_stats": attention_stats,
    "edge_mass": edge_mass,
    "edge_levels": edge_levels,
    "nucleus_cuts": nucleus_cuts,
    "fraction_cuts": fraction_cuts,
    "lane_attention": lane_attention,
}


def test_all_attention_ops_are_covered() -> None:
    """Output errors involve no attention: test_triton covers them."""
    assert OPS.keys() | {"output_errors"} == set(triton.__all__)


@pytest.mark.parametrize(
    ("op", "shape"),
    [pytest.param(op, shape, id=f"{op}, {name}") for name, shape in SHAPES.items() for op in OPS]
    # test_ops requests masses only of backends that also give every weight.
    + [pytest.param("edge_mass", shape, id=f"edge_mass, {n}") for n, shape in VARIANTS.items()],
)
def test_op(op: str, shape: Shape) -> None:
    """Integers must be equal."""
    ratio = Problem(shape).norm_ratio if op == "source_norms" else 1e-5
    actual, expected = (OPS[op](Problem(shape), backend) for backend in ("triton", "reference"))
    for ours, theirs in zip(actual, expected, strict=True):
        if theirs.is_floating_point():
            close(op, ours, theirs.double().numpy(), ratio)
        else:
            assert torch.equal(ours, theirs)


class Grids:
    """Stands in for a kernel and records the grids it would be launched on."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        self.seen.append(grid)
        return lambda **_: None


@pytest.mark.parametrize("op", OPS)
def test_grids_have_room(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever grows with the batch is on the first axis: the others are limited to 65,535."""
    edges = kernels.AttentionEdges(
        kernels.Pattern(
            torch.ones(70_000, 2, 1, 1), torch.ones(70_000, 1, 1, 1), 1.0,
            lse=torch.zeros(70_000, 2, 1),
        ),
        NormWeight(torch.ones(70_000, 2, 1)),
    )  # fmt: skip
    value, side, grids = edges.pattern.k, torch.ones(1, 70_000, 1), Grids()
    calls: dict[str, Callable[[], object]] = {
        "source_norms": lambda: triton.source_norms(value, torch.ones(2, 1, 1), 1),
        "attention_stats": lambda: triton.attention_stats(edges.pattern, value, None),
        "edge_mass": lambda: triton.edge_mass(edges),
        "edge_levels": lambda: triton.edge_levels(edges, side),
        "nucleus_cuts": lambda: triton.nucleus_cuts(edges, side, side[:, 0, 0], side[0]),
        "fraction_cuts": lambda: triton.fraction_cuts(edges, side, side[:, 0, 0]),
        "lane_attention": lambda: triton.lane_attention(edges, side, value[None], None, False),
    }
    name = "node_cuts" if op.endswith("_cuts") else op
    module = import_module(f"densitrace.kernels.triton.{name}")  # the op shadows its module
    for kernel in [kernel for kernel in vars(module) if kernel.endswith("_kernel")]:
        monkeypatch.setattr(module, kernel, grids)
    calls[op]()
    assert grids.seen
    assert all(size < 1 << 16 for grid in grids.seen for size in grid[1:])
