"""What does each GPU kernel of a scan ask of a GPU: instructions, products, bytes?

    python benches/count_kernels.py --out benches/results/counts-DATE

Counts, no timing. Each op runs once, as compiled for a GPU, on the simulated machine of tests/ptx:
one block of a model with random weights in bfloat16, its heads as wide as those of an 8B Llama. The
page gives the minimum number of multiprocessor cycles for each kind of work, and which kind
dominates. Instructions are PTX instructions: the assembler removes some (mostly moves) and expands
others (mostly divisions).
"""

import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import click
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent / "measuring"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from ledger import figure, table, table_row, write_record
from op_cases import BLOCKS, Case, cases
from problems import Work, attention_problem_of, prediction_problem_of, random_tokens, thresholds
from ptx import Counts
from ptx_launches import Counted, kernels_on_machine

from densitrace.kernels import ProximityWeight

TABLES = {80: "default", 90: "sm_90"}
# Per cycle of one multiprocessor, H100 architecture.
ISSUED = 4  # warp instructions
PRODUCTS = {"bf16": 4096, "f16": 4096, "tf32": 2048}  # operations
BYTES = 64  # from L2: all global memory counts as if L1 never hit


def model() -> LlamaForCausalLM:
    """A model with an 8B Llama's head width and query/key grouping, but fewer heads."""
    config = LlamaConfig(
        hidden_size=1024, num_hidden_layers=BLOCKS, num_attention_heads=8, num_key_value_heads=2,
        head_dim=128, intermediate_size=1024, vocab_size=4096, max_position_embeddings=4096,
    )  # fmt: skip
    torch.manual_seed(0)
    decoder: LlamaForCausalLM = LlamaForCausalLM(config).bfloat16().eval()
    return decoder


def counted(case: Case, capability: int) -> Counted:
    """Counts of the op's kernels; empty if plain torch serves it."""
    counts: Counted = {}
    with kernels_on_machine(capability, TABLES[capability], counts):
        case.run()
    return counts


def cycles(counts: Counts) -> dict[str, float]:
    """Multiprocessor cycles by kind of work."""
    return {
        "instructions": sum(counts.issued.values()) / ISSUED,
        "products": sum(n / PRODUCTS[kind] for kind, n in counts.multiplied.items()),
        "shared memory": counts.turns,
        "global memory": counts.sectors * 32 / BYTES,
    }


def row(name: str, kernel: str, needed: int | None, counts: Counts) -> list[str]:
    """One table row of the page."""
    spent = cycles(counts)
    dominant = max(spent, key=lambda kind: spent[kind])
    share = needed / sum(counts.multiplied.values()) if needed and counts.multiplied else ""
    commonest = ", ".join(f"{instruction} {n / sum(counts.issued.values()):.0%}"
                      for instruction, n in counts.issued.most_common(5))  # fmt: skip
    return [
        name, f"`{kernel}`", *(figure(spent[kind] / 1e3) for kind in spent), dominant,
        figure(share), figure(counts.turns / counts.least if counts.least else ""), commonest,
    ]  # fmt: skip


HEAD = [
    "op", "kernel", "instructions", "products", "shared memory", "global memory", "most",
    "products needed / done", "turns / fewest", "commonest instructions",
]  # fmt: skip


@click.command(context_settings={"show_default": True})
@click.option("--capability", type=click.Choice(["80", "90"]), default="90")
@click.option("--length", type=click.IntRange(min=1), default=512)
@click.option("--op", "only", multiple=True, help="Names as in the page; all by default.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="without suffix")
def main(capability: str, length: int, only: tuple[str, ...], out: Path) -> None:
    """Count, and write OUT.json and OUT.md."""
    work = Work(model(), random_tokens(length), thresholds())
    attention = attention_problem_of(work)
    attention = replace(attention, w_o=attention.w_o.bfloat16())  # the dtype it has on a GPU
    every = cases(attention, prediction_problem_of(work))
    rows: list[dict[str, Any]] = []
    lines = [
        f"# What GPU kernels ask for, {date.today()}",
        "",
        f"`python benches/count_kernels.py --capability {capability} --length {length}`: one "
        "block, 8 heads of 128 (2 groups), hidden size 1,024, bfloat16, 12 strata, one sequence. "
        "**Counted, not timed**: thousands of cycles that one multiprocessor takes at least for "
        f"each kind of work, at {ISSUED} instructions of a warp, {PRODUCTS['bf16']:,} operations "
        f"of products in 16 bits, a turn of shared memory and {BYTES} bytes of global memory a "
        "cycle.",
        "",
    ]
    cells: list[list[str]] = []
    for name, case in every.items():
        if only and name not in only:
            continue
        needed = work.costs.operations(case.op, case.arguments)
        for kernel, counts in counted(case, int(capability)).items():
            weight = None if case.edges is None else case.edges.weight
            elsewhere = isinstance(weight, ProximityWeight)  # cuBLAS does some of its products
            products = needed if work.costs.are_products(case.op) and not elsewhere else None
            cells.append(row(name, kernel, products, counts))
            rows.append({"op": name, "kernel": kernel, "needed": needed, **vars(counts)})
            sys.stdout.write(table_row(cells[-1]) + "\n")
            sys.stdout.flush()
        # Written after every op, so that an interrupted run keeps its results.
        record = {"date": str(date.today()), "capability": capability, "length": length}
        write_record(out, record | {"rows": rows}, "\n".join([*lines, *table(HEAD, cells), ""]))


if __name__ == "__main__":
    main()
