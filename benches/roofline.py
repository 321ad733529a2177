"""What does each op of a scan have to do at least, and which ceiling of a GPU would bind it?

    python benches/roofline.py --out benches/results/roofline-DATE   # llama-8b, T = 2048, an H100
    python benches/roofline.py --shapes llama-1b --length 1024 --out build/roofline

Nothing is measured: operations and bytes are counted by measuring/costs.py on meta tensors, and
ceilings come from a data sheet. Operations of matrix products are held against the half-precision
rate of the matrix units; all others (minima, maxima, sums of small integers) against one operation
per lane and cycle of the vector units.
"""

import sys
from dataclasses import asdict, dataclass, replace
from datetime import date
from math import inf
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent / "measuring"))
from costs import Costs, moved_bytes
from device_models import SHAPES
from device_timing import VECTOR_RATE
from ledger import figure, table, write_record
from op_cases import Case, cases
from problems import STRATA, AttentionProblem, PredictionProblem
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from densitrace.kernels import AttentionEdges, NormWeight, Pattern, ProximityWeight
from densitrace.kernels.results import OutputErrors
from densitrace.tracer.nodes import Node

RATE = click.FloatRange(0, inf, min_open=True)  # per second
META = torch.device("meta")
DTYPE = torch.bfloat16
# Calls per block of a live scan under thresholds; a block has an attention and an MLP node layer.
CALLS = {
    "source_norms, L1": 1,
    "attention_stats": 1,
    "edge_levels": 1,
    "lane_attention, live": 1,
    "bottleneck": 1,
    "trace_sizes": 4,
}
ONCE = ("output_errors",)


@dataclass(frozen=True)
class Device:
    """Ceilings of a device by its data sheet."""

    products: float = 989e12  # operations a second in bfloat16, dense: H100 SXM
    vector: float = VECTOR_RATE
    bytes: float = 3.35e12  # per second


@dataclass(frozen=True)
class Row:
    """The work of an op in one call on one sequence."""

    name: str
    operations: int
    bytes: int
    products: bool
    calls: int = 0  # in a whole scan

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.bytes

    def limits(self, device: Device) -> dict[str, float]:
        """Seconds under each ceiling."""
        rate = device.products if self.products else device.vector
        by = "products" if self.products else "vector units"
        return {by: self.operations / rate, "memory": self.bytes / device.bytes}


# ---- inputs on the meta device -------------------------------------------------------------------


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor with a shape and a dtype but no memory."""
    return torch.empty(shape, dtype=dtype, device=META)


def attention_problem(config: Any, length: int, strata: int) -> AttentionProblem:
    """An attention node of one sequence, as `problems.attention_problem_of` returns it."""
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width, hidden = config.head_dim, config.hidden_size
    q, k = empty(1, heads, length, width, dtype=DTYPE), empty(1, groups, length, width, dtype=DTYPE)
    segments = empty(1, length, dtype=torch.int32)
    pattern = Pattern(q, k, width**-0.5, segments=segments, lse=empty(1, heads, length))
    edges = AttentionEdges(pattern, NormWeight(empty(1, heads, length)))
    total, side = empty(1, length), empty(1, 1, length)
    return AttentionProblem(
        node=Node(0, ("res_attn",), edges, side, total),
        edges=edges,
        v=empty(1, groups, length, width, dtype=DTYPE),
        w_o=empty(heads, hidden, width, dtype=DTYPE),
        root=empty(heads, width, width),
        vector=empty(1, length, hidden),
        cuts=empty(strata, 1, length),
        lanes=Pattern(
            empty(strata, 1, heads, length, width, dtype=DTYPE),
            empty(strata, 1, groups, length, width, dtype=DTYPE),
            width**-0.5,
            segments=segments,
        ),
        lanes_v=empty(strata, 1, groups, length, width, dtype=DTYPE),
    )


def prediction_problem(config: Any, length: int, strata: int) -> PredictionProblem:
    """States of a sequence in all lanes."""
    return PredictionProblem(
        hidden=empty(length, config.hidden_size, dtype=DTYPE),
        lanes=empty(strata, length, config.hidden_size, dtype=DTYPE),
        unembedding=empty(config.vocab_size, config.hidden_size, dtype=DTYPE),
        next_ids=empty(length, dtype=torch.int64),
    )


def result(case: Case, attention: AttentionProblem) -> object:
    """An op's result, from its definition in plain torch where that runs on meta tensors."""
    strata, _, length = attention.cuts.shape
    if case.op == "output_errors":
        return OutputErrors.empty(strata, length, META)
    if by_proximity(case):  # its definition takes a million steps to the same shapes
        return replace(case, arguments=(attention.edges, *case.arguments[1:])).run()
    return case.run()


def by_proximity(case: Case) -> bool:
    """Whether the op weighs edges by proximity."""
    return case.edges is not None and isinstance(case.edges.weight, ProximityWeight)


# ---- rows ----------------------------------------------------------------------------------------


def op_rows(config: Any, length: int, strata: int) -> list[Row]:
    """A row for every op except `collect_edges`, whose bytes depend on how much it keeps."""
    costs = Costs(
        heads=config.num_attention_heads, length=length, width=config.head_dim,
        hidden=config.hidden_size, strata=strata, vocabulary=config.vocab_size,
    )  # fmt: skip
    attention = attention_problem(config, length, strata)
    rows = []
    for name, case in cases(attention, prediction_problem(config, length, strata)).items():
        if case.op == "collect_edges":
            continue
        moved = moved_bytes(*case.arguments, *case.options.values(), result(case, attention))
        calls = config.num_hidden_layers * CALLS.get(name, 0) + (name in ONCE)
        products = costs.are_products(case.op)
        operations = costs.operations(case.op, case.arguments)
        rows.append(Row(name, operations, moved, products, calls))
    return rows


def linear_row(config: Any, length: int, strata: int) -> Row:
    """The linear layers of all blocks and lanes, if no row were dropped."""
    with META:
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPE)
    layers = [m for m in model.base_model.modules() if isinstance(m, nn.Linear)]
    weights = sum(layer.weight.numel() for layer in layers)
    ends = sum(layer.in_features + layer.out_features for layer in layers)
    tokens = (strata + 1) * length
    moved = DTYPE.itemsize * (weights + tokens * ends)
    return Row("linear layers of all lanes", 2 * weights * tokens, moved, True, 1)


HEADER = (
    "op", "GOP", "MB", "op/byte", "bound by", "limit, ms", "calls of a scan", "share of its limit",
)  # fmt: skip


def page(rows: list[Row], device: Device) -> str:
    """The table in Markdown."""
    whole = sum(row.calls * max(row.limits(device).values()) for row in rows)
    cells = []
    for row in rows:
        limits = row.limits(device)
        by = max(limits, key=lambda name: limits[name])
        share = f"{row.calls * limits[by] / whole:.1%}" if row.calls else ""
        cells.append([
            row.name, figure(row.operations / 1e9), figure(row.bytes / 1e6),
            figure(row.intensity), by, figure(1e3 * limits[by]), figure(row.calls), share,
        ])  # fmt: skip
    cells.append(["a scan", "", "", "", "", figure(1e3 * whole), "", "100%"])
    return "\n".join(table(HEADER, cells))


@click.command(context_settings={"show_default": True})
@click.option("--shapes", type=click.Choice(tuple(SHAPES)), default="llama-8b")
@click.option("--length", type=click.IntRange(min=1), default=2048)
@click.option("--strata", type=click.IntRange(1, 255), default=STRATA)
@click.option("--products", type=RATE, default=Device.products, help="Of matrix products.")
@click.option("--vector", type=RATE, default=Device.vector, help="Of any other operations.")
@click.option("--bytes", "moved", type=RATE, default=Device.bytes, help="Of main memory.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="without suffix")
def main(
    shapes: str, length: int, strata: int, products: float, vector: float, moved: float, out: Path
) -> None:
    """Count, and write OUT.json and OUT.md."""
    device, config = Device(products, vector, moved), SHAPES[shapes]()
    rows = [linear_row(config, length, strata), *op_rows(config, length, strata)]
    lines = [
        f"# A scan on paper, {date.today()}",
        "",
        f"`python benches/roofline.py --shapes {shapes} --length {length} --strata {strata}`: one "
        "sequence in bfloat16. **Counted, not measured.** Ceilings, of a data sheet: products "
        f"{figure(products / 1e12)} and other operations {figure(vector / 1e12)} TFLOP/s, memory "
        f"{figure(moved / 1e12)} TB/s; products bind beyond {figure(products / moved)} operations "
        f"a byte, vector units beyond {figure(vector / moved)}.",
        "",
        page(rows, device),
        "",
    ]
    about = {"shapes": shapes, "length": length, "strata": strata, "ceilings": asdict(device)}
    record = {"date": str(date.today()), **about, "rows": [asdict(row) for row in rows]}
    write_record(out, record, "\n".join(lines))


if __name__ == "__main__":
    main()
