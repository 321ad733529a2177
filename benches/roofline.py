"""What a scan has to do at least on a GPU, op by op, counted and not measured.

    python benches/roofline.py --shape llama-8b --length 2048 --out benches/results/roofline-DATE

Operations and bytes are those of measuring/costs.py: of one block and one sequence, then of all
blocks. The ceilings are a device's data sheet, given as options; `bound` says which of the two an
op meets first, and `ms` how long it takes at that ceiling. `benches/gpu.sh` measures the same
ops beside the ceilings that a device reaches.
"""

import sys
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).parent / "measuring"))
from costs import Costs
from device_models import SHAPES
from ledger import figure, write_record
from problems import STRATA
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

F32 = I32 = 4
I64 = 8


@dataclass(frozen=True)
class Traffic:
    """Bytes that an op's tensors hold, each once, of one sequence in a block.

    The ops keep sums, norms and cuts in float32 whatever the model's dtype; `item` is that dtype's
    size, of queries, keys, values, states and the unembedding.
    """

    costs: Costs
    groups: int  # key/value heads
    item: int

    @property
    def pattern(self) -> int:
        """Queries, keys, the log-sum-exps of their scores and the documents of a row."""
        c = self.costs
        return c.length * ((c.heads + self.groups) * c.width * self.item + c.heads * F32 + I32)

    @property
    def values(self) -> int:
        """Of one lane."""
        return self.groups * self.costs.length * self.costs.width * self.item

    @property
    def per_head(self) -> int:
        """A float32 of each head and token: source norms, log-sum-exps."""
        return self.costs.heads * self.costs.length * F32

    @property
    def per_stratum(self) -> int:
        """A float32 of each stratum and token: cuts; degrees take as many bytes."""
        return self.costs.strata * self.costs.length * F32

    def of(self, op: str) -> int:
        """Of one call of an op."""
        c = self.costs
        output = c.heads * c.length * c.width * F32
        edges = self.pattern + self.per_head
        match op:
            case "source_norms":
                return self.values + c.heads * c.hidden * c.width * F32 + self.per_head
            case "attention_stats":
                mass = c.length * F32
                return edges + self.values + output + self.per_head + mass
            case "edge_levels":
                return edges + 2 * self.per_stratum + c.length**2
            case "lane_attention, frozen":
                return edges + self.per_stratum + c.strata * (self.values + output)
            case "lane_attention, live":
                lanes = (c.heads + self.groups) * c.length * c.width * self.item
                return self.of("lane_attention, frozen") + c.strata * lanes
            case "bottleneck":
                return 3 * c.length**2
            case "trace_sizes":
                return c.length**2 + c.strata * c.length * (I32 + I64)
            case "output_errors":
                states = ((c.strata + 1) * c.length + c.vocabulary) * c.hidden * self.item
                return states + 6 * self.per_stratum + c.length * (I64 + 2 * F32)
        raise KeyError(op)


def operations(op: str, costs: Costs) -> int:
    """Of one call of an op on one sequence."""
    name, _, kind = op.partition(", ")
    match name:
        case "lane_attention":
            return costs.lane_attention(live=kind == "live")
        case "attention_stats":
            return 2 * costs.product
        case "edge_levels":
            return costs.product
        case "source_norms":
            return costs.source_norms(1)
    return int(getattr(costs, name)())


@dataclass(frozen=True)
class Row:
    """Work of a scan, all its calls together."""

    name: str
    calls: int
    operations: int
    bytes: int


# How often each is called: in every block, and the unembedding at the end.
IN_BLOCKS = (
    "source_norms", "attention_stats", "edge_levels", "lane_attention, live",
    "lane_attention, frozen", "bottleneck", "trace_sizes",
)  # fmt: skip
KINDS = 4  # of edges, each with degrees of its own for `trace_sizes`


def rows(config: Any, length: int, strata: int, item: int) -> list[Row]:
    """The plain forward of one sequence, and every op of its scan."""
    blocks, heads = config.num_hidden_layers, config.num_attention_heads
    costs = Costs(heads, length, config.head_dim, config.hidden_size, strata, config.vocab_size)
    traffic = Traffic(costs, config.num_key_value_heads, item)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    table = config.vocab_size * config.hidden_size
    matrices = sum(p.numel() for p in model.base_model.parameters() if p.ndim == 2) - table
    found = [
        Row(
            "plain forward",
            1,
            2 * length * (matrices + table) + 2 * blocks * costs.product,
            item * (matrices + table),
        ),
        Row(
            f"linear layers of {strata} lanes",
            1,
            2 * length * matrices * strata,
            item * matrices,
        ),
    ]
    for op in (*IN_BLOCKS, "output_errors"):
        calls = {"output_errors": 1, "trace_sizes": KINDS * blocks}.get(op, blocks)
        found.append(Row(op, calls, calls * operations(op, costs), calls * traffic.of(op)))
    return found


def table(found: list[Row], tflops: float, gigabytes: float) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "| | calls | TFLOP | GB | operations a byte | bound by | ms | x plain forward |",
        "| --- |" + " --- |" * 7,
    ]
    forward = 0.0
    for row in found:
        by_product, by_copy = row.operations / tflops / 1e9, row.bytes / gigabytes / 1e6
        milliseconds = max(by_product, by_copy)
        forward = forward or milliseconds
        cells = [
            row.name, f"{row.calls}", figure(row.operations / 1e12), figure(row.bytes / 1e9),
            figure(row.operations / row.bytes), "products" if by_product > by_copy else "memory",
            figure(milliseconds), figure(milliseconds / forward),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


@click.command(context_settings={"show_default": True})
@click.option("--shape", type=click.Choice(tuple(SHAPES)), default="llama-8b")
@click.option("--length", type=click.IntRange(min=1), default=2048, help="Tokens of the sequence.")
@click.option("--strata", type=click.IntRange(1, 255), default=STRATA)
@click.option("--tflops", default=989.0, help="Products in bfloat16: an H100's data sheet.")
@click.option("--gigabytes", default=3350.0, help="Of memory a second: the same.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="without suffix")
def main(shape: str, length: int, strata: int, tflops: float, gigabytes: float, out: Path) -> None:
    """Count, and write OUT.json and OUT.md."""
    found = rows(SHAPES[shape](), length, strata, item=2)
    lines = [
        f"# A scan on paper, {date.today()}",
        "",
        f"`python benches/roofline.py --shape {shape} --length {length} --strata {strata}`: "
        f"operations and bytes of one sequence in bfloat16, counted; the ceilings are {tflops:g} "
        f"TFLOP/s and {gigabytes:g} GB/s, of a data sheet. Nothing here was measured.",
        "",
        *table(found, tflops, gigabytes),
    ]
    record = {"date": str(date.today()), "shape": shape, "length": length, "strata": strata}
    record |= {"TFLOP/s": tflops, "GB/s": gigabytes, "rows": [asdict(row) for row in found]}
    write_record(out, record, "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
