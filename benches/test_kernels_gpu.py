"""How near is each op on a GPU to what the device reaches on work that suits it?

Each op runs on an attention node of a random model of a well-known shape: one row of T tokens,
bfloat16, 12 strata. `x limit` is its time over the minimum time, the longest of three: products at
the rate of a large product, other operations at the rate of the vector units, bytes at the rate of
a large copy. Operations and bytes are those of measuring/costs.py. Causal SDPA on the same shapes
is listed too. Kernel time only: the device waits in an idle kernel until a round is launched.
"""

import gc
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from costs import Costs, moved_bytes
from device_models import SHAPES, device_work, random_model
from device_record import DeviceRecord
from device_timing import Ceilings, ceilings, measure_on
from op_cases import cases, first_blocks
from problems import (
    AttentionProblem,
    PredictionProblem,
    attention_problem_of,
    prediction_problem_of,
)
from timing import Run
from torch.nn.functional import scaled_dot_product_attention as sdpa

from densitrace import kernels
from densitrace.kernels import dispatch

LENGTHS = (512, 2048, 8192)
PLAIN_LENGTHS = (512, 2048)  # for ops served by plain torch, which take minutes beyond
CUDA = "densitrace.kernels.cuda"


def sdpa_of(attention: AttentionProblem, lanes: bool) -> tuple[Run, int]:
    """Causal SDPA of the clean pass or of all lanes, and its operations."""
    pattern = attention.lanes if lanes else attention.edges.pattern
    values = attention.lanes_v if lanes else attention.v
    q, k, v = (tensor.flatten(0, -4) for tensor in (pattern.q, pattern.k, values))
    heads, length, width = q.shape[1:]

    def run() -> object:
        return sdpa(q, k, v, is_causal=True, scale=pattern.scale, enable_gqa=True)

    return run, 2 * len(q) * heads * length * (length + 1) * width


def costs_of(attention: AttentionProblem, prediction: PredictionProblem) -> Costs:
    heads, hidden, width = attention.w_o.shape
    return Costs(
        heads=heads, length=attention.node.total.shape[1], width=width, hidden=hidden,
        strata=len(attention.cuts), vocabulary=len(prediction.unembedding),
    )  # fmt: skip


def note_ops(
    record: DeviceRecord,
    title: str,
    attention: AttentionProblem,
    prediction: PredictionProblem,
    reached: Ceilings,
) -> None:
    """Add a row for each op, and for SDPA on the same shapes."""
    device, costs = attention.v.device, costs_of(attention, prediction)

    def note(
        name: str, by: str, run: Run, operations: int, moved: int, products: bool = True
    ) -> None:
        limit = reached.limit(operations * products, operations * (not products), moved)
        # Launching a short op takes the host longer than running its kernels.
        seconds = measure_on(device, run, {}, launched=True).seconds
        record.add(
            title, name, by=by, ms=1e3 * seconds, TFLOP=operations / 1e12, GB=moved / 1e9,
            TFLOP_a_second=operations / seconds / 1e12, GB_a_second=moved / seconds / 1e9,
            x_limit=seconds / limit,
        )  # fmt: skip

    for name, lanes in (("SDPA", False), ("SDPA of all lanes", True)):
        run, operations = sdpa_of(attention, lanes)
        pattern, values = (
            (attention.lanes, attention.lanes_v)
            if lanes
            else (attention.edges.pattern, attention.v)
        )
        note(name, "torch", run, operations, moved_bytes(pattern.q, pattern.k, values, run()))
    every = cases(attention, prediction)
    for name, case in every.items():
        by = dispatch.serving(case.op, device, "auto", case.edges)
        if by == "reference" and costs.length not in PLAIN_LENGTHS:
            continue
        moved = moved_bytes(*case.arguments, *case.options.values(), case.run())
        operations = costs.operations(case.op, case.arguments)
        products = costs.are_products(case.op)
        note(name, by, case.run, operations, moved, products)
    if device.type == "cuda" and not dispatch.missing("cuda"):
        levels = kernels.edge_levels(attention.edges, attention.cuts).levels
        run = partial(import_module(CUDA).bottleneck, levels, levels, "boolean")
        moved = moved_bytes(levels, levels, run())
        note("bottleneck, boolean products", "cuda", run, costs.bottleneck(), moved, False)
    if dispatch.serving("nucleus_cuts", device) == "cuda" and not dispatch.missing("triton"):
        nucleus = replace(every["nucleus_cuts"], options={"backend": "triton"})
        moved = moved_bytes(*nucleus.arguments, nucleus.run())
        operations = costs.operations(nucleus.op, nucleus.arguments)
        note("nucleus_cuts, without nvcc", "triton", nucleus.run, operations, moved)


# ---- on the GPU ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reached(record: DeviceRecord) -> Ceilings:
    measured = ceilings(torch.device("cuda"))
    record.add(
        "ceilings",
        "measured",
        TFLOP_a_second=measured.products / 1e12,
        vector_TOP_a_second=measured.vector / 1e12,
        GB_a_second=measured.bytes / 1e9,
    )
    return measured


@pytest.fixture(scope="module", params=list(SHAPES))
def model(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    """The first blocks of a shape: the cost of an op does not depend on the others."""
    config = first_blocks(SHAPES[request.param]())
    yield request.param, random_model(config, torch.device("cuda"))
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.gpu
@pytest.mark.parametrize("length", LENGTHS)
def test_ops(model: tuple[str, Any], length: int, reached: Ceilings, record: DeviceRecord) -> None:
    name, decoder = model
    work = device_work(decoder, length, rows=1)
    with torch.inference_mode():
        attention, prediction = attention_problem_of(work), prediction_problem_of(work)
    note_ops(record, f"ops, {name}, {length} tokens", attention, prediction, reached)
