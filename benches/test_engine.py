"""What does a scan cost, against the plain forward of the same model and the papers' reference?

Ratios are taken within one run: the plain forward is timed beside each of the others.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from densitrace import Threshold, Tracer
from densitrace.tracer.batch import batch_of_lists
from densitrace.tracer.tracing import Settings, Tracing

BUNDLED = Path(__file__).parents[1] / "examples" / "model"
RULE = Threshold(np.geomspace(1e-4, 0.3, 12))
REFERENCE_STRATA = Threshold(np.geomspace(1e-4, 0.3, 15))
# Seconds of the papers' reference for one output position and 15 threshold strata (weights, strata
# and evaluation), and for its plain forward; tests/goldens/README.md has the whole table.
REFERENCE_SECONDS = {16: 0.11 + 0.19 + 0.71, 32: 0.45 + 0.62 + 1.8, 64: 1.4 + 2.6 + 6.4,
                     128: 5.2 + 9.5 + 27}  # fmt: skip


def reference_shaped() -> LlamaForCausalLM:
    """The shape of the model that the papers' reference was timed on."""
    config = LlamaConfig(
        hidden_size=256, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=8,
        intermediate_size=688, vocab_size=4096, max_position_embeddings=1024,
    )  # fmt: skip
    torch.manual_seed(0)
    model: LlamaForCausalLM = LlamaForCausalLM(config).eval()
    return model


def tokens(length: int, batch: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(length)
    drawn: list[list[int]] = torch.randint(4096, (batch, length), generator=generator).tolist()
    return drawn


def seconds(work: Callable[[], object], rounds: int = 5) -> float:
    """Median wall time, after one round to warm up."""
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))


class Work:
    """The three passes over one batch of a model."""

    def __init__(self, model: Any, sequences: list[list[int]], **settings: Any) -> None:
        self.model = model
        self.ids = torch.tensor(sequences)
        self.batch = batch_of_lists(sequences)
        self.tracing = Tracing(Tracer(model)._decoder, Settings(**settings))

    def forward(self) -> object:
        """The plain forward, with the attention that transformers chooses (SDPA)."""
        with torch.inference_mode():
            return self.model(self.ids, use_cache=False).logits

    def sizes(self) -> object:
        return self.tracing.sizes(self.batch, RULE)

    def scan(self) -> object:
        return self.tracing.all_outputs(self.batch, RULE)


def bundled() -> Any:
    return Tracer.from_pretrained(BUNDLED)._decoder.model


def record(benchmark: Any, work: Work, run: Callable[[], object]) -> None:
    """Benchmark one pass, and note it against the plain forward timed beside it."""
    forward = seconds(work.forward)
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    median = benchmark.stats.stats.median
    benchmark.extra_info["tokens/s"] = round(work.ids.numel() / median)
    benchmark.extra_info["x plain forward"] = round(median / forward, 2)


@pytest.mark.parametrize("length", [64, 256, 512])
@pytest.mark.parametrize("part", ["forward", "sizes", "scan"])
def test_bundled_model(benchmark: Any, part: str, length: int) -> None:
    """Plain forward, importance and sizes, and a scan of 12 strata; 1024 tokens a batch."""
    work = Work(bundled(), tokens(length, 1024 // length))
    record(benchmark, work, getattr(work, part))


@pytest.mark.parametrize("importance", ["norm_l2", "cosine", "proximity"])
def test_importances(benchmark: Any, importance: str) -> None:
    """Weights and sizes under the other importances, 4 sequences of 64 tokens."""
    work = Work(bundled(), tokens(64, 4), importance=importance)
    record(benchmark, work, work.sizes)


def test_frozen(benchmark: Any) -> None:
    """A scan of 12 strata with frozen attention."""
    work = Work(bundled(), tokens(256, 4), attention="frozen")
    record(benchmark, work, work.scan)


@pytest.mark.parametrize("length", REFERENCE_SECONDS)
def test_against_the_reference(benchmark: Any, length: int) -> None:
    """All output positions and 15 thresholds at once, on the reference's model shape.

    The reference's seconds are for one output position, on another machine: read the ratio of
    ratios, in which each is divided by the plain forward on its own machine.
    """
    work = Work(reference_shaped(), tokens(length))
    forward = seconds(work.forward)
    benchmark.pedantic(
        lambda: work.tracing.all_outputs(work.batch, REFERENCE_STRATA), rounds=5, warmup_rounds=1
    )
    median = benchmark.stats.stats.median
    theirs = REFERENCE_SECONDS[length]
    benchmark.extra_info["x plain forward"] = round(median / forward, 1)
    benchmark.extra_info["reference s, one position"] = round(theirs, 2)
    benchmark.extra_info["x faster a position"] = round(theirs / (median / length))


@pytest.mark.parametrize("length", REFERENCE_SECONDS)
def test_one_output_against_the_reference(benchmark: Any, length: int) -> None:
    """The reference's own question: one output position, `scope="output"`, 15 thresholds."""
    work = Work(reference_shaped(), tokens(length))
    benchmark.pedantic(
        lambda: work.tracing.one_output(work.batch, REFERENCE_STRATA), rounds=5, warmup_rounds=1
    )
    theirs = REFERENCE_SECONDS[length]
    benchmark.extra_info["x faster"] = round(theirs / benchmark.stats.stats.median)


def peak_bytes() -> int:
    """The most memory that this process has held so far.

    From /proc, as getrusage counts what the parent held at the fork.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    kibibytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(kibibytes)


def added_by(part: str, length: int, threads: int) -> int:
    """Bytes that a pass over 1024 tokens adds to the peak of a process with the model loaded."""
    torch.set_num_threads(threads)
    work = Work(bundled(), tokens(length, 1024 // length))
    before = peak_bytes()
    getattr(work, part)()
    return peak_bytes() - before


@pytest.mark.parametrize("length", [64, 256, 512])
@pytest.mark.parametrize("part", ["forward", "sizes", "scan"])
def test_memory(benchmark: Any, part: str, length: int) -> None:
    """Peak memory that a pass adds; the seconds are those of a new process."""
    command = [sys.executable, __file__, part, str(length), str(torch.get_num_threads())]

    def measure() -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    peak = benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info["peak MiB added"] = round(int(peak) / 2**20)


if __name__ == "__main__":  # the child process of test_memory
    sys.stdout.write(str(added_by(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
