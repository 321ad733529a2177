"""How much memory of a GPU do passes over large models take at their peak?

    python benches/estimate_memory.py --out benches/results/memory-DATE

Estimated: the host code of the engine and of the model runs on torch's `meta` device, no kernel is
launched, and the bytes of all tensors are added up. What cuBLAS and the allocator need besides is
not among them. Predictions are counted as if the candidates decided no nucleus, the worst case.
Models and rows are those of test_engine_gpu.py, which measures the same on a GPU.
"""

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent / "measuring"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from device_models import BATCH_TOKENS, MEMORY_LIMIT, SHAPES
from ledger import figure, table, write_record
from meta_device import Allocated, Flash, served_as_a_gpu
from problems import STRATA, Work

from densitrace import Threshold
from densitrace.tracer.models import Decoder, architecture_of

CASES = {  # lengths by shape
    "llama-1b": (512, 2048, 8192, 32768),
    "llama-8b": (512, 2048, 8192),
    "qwen3-8b": (512, 2048, 8192),
}
# transformers looks for packed rows by reading numbers, which tensors on `meta` do not have.
PACKED_ROWS = "transformers.masking_utils.find_packed_sequence_indices"
HEADER = ["model", "T", "rows", "pass", "GiB", "x forward of its rows", "without level maps"]


@dataclass(frozen=True)
class Peak:
    """The peak of one pass, in bytes, and that of the plain forward of as many rows."""

    part: str
    bytes: int
    forward: int
    maps: int  # bytes of level maps
    largest: int  # bytes of its largest tensor

    @property
    def ratio(self) -> float:
        return self.bytes / self.forward

    @property
    def without_maps(self) -> float:
        return (self.bytes - self.maps) / self.forward


def peaks(config: Any, length: int, rows: int, strata: int = STRATA) -> list[Peak]:
    """Peaks of the passes of a scan over one batch; see `note_memory` of test_engine_gpu.py."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    model.eval()
    weights = [*model.parameters(), *model.buffers()]
    rule = Threshold(np.geomspace(1e-6, 1e-2, strata).tolist())

    def work(**settings: Any) -> Work:
        """With nothing cached."""
        decoder = Decoder(model, architecture_of(config))
        return Work(decoder, [[0] * length] * rows, rule, **settings)

    def measured(run: Callable[[], object]) -> Allocated:
        gc.collect()
        allocated = Allocated(weights)
        with Flash(), mock.patch(PACKED_ROWS, return_value=None), allocated:
            run()
        return allocated

    maps = config.num_hidden_layers * rows * length**2
    with served_as_a_gpu():
        alone = measured(work().without_unembedding).peak
        lanes = measured(work().forward_of_all_lanes).peak
        found = []
        for part, run, forward in (
            ("importance and cuts", work().clean_lane, alone),
            ("scan, live", work().scan, lanes),
            ("scan, frozen", work(attention="frozen").scan, lanes),
        ):
            of_part = measured(run)
            found.append(Peak(part, of_part.peak, forward, maps, of_part.largest))
    return found


@click.command(context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), required=True, help="without suffix")
def main(out: Path) -> None:
    """Estimate, and write OUT.json and OUT.md."""
    cells, records = [], []
    for shape, lengths in CASES.items():
        for length in lengths:
            rows = max(1, BATCH_TOKENS // length)
            for peak in peaks(SHAPES[shape](), length, rows):
                cells.append([
                    shape, figure(length), str(rows), peak.part, figure(peak.bytes / 2**30),
                    figure(peak.ratio), figure(peak.without_maps),
                ])  # fmt: skip
                records.append({"model": shape, "length": length, "rows": rows, **vars(peak)})
                click.echo(" ".join(cells[-1]))
    lines = [
        f"# Memory of a GPU on paper, {date.today()}",
        "",
        f"`python benches/estimate_memory.py`: {STRATA} strata, bfloat16. **Added up, not "
        "measured**: bytes of all tensors at the peak, without the weights of the model. Wanted: "
        f"at most {MEMORY_LIMIT} without level maps.",
        "",
        *table(HEADER, cells),
        "",
    ]
    write_record(out, {"date": str(date.today()), "rows": records}, "\n".join(lines))


if __name__ == "__main__":
    main()
