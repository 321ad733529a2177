"""What does a whole scan cost on a device, its store included, and who waits for whom?

    python benches/scan_gpu.py store --shapes llama-1b --tokens 1000000 --out build/gpu/scan-1b
    python benches/scan_gpu.py modes --shapes llama-1b --length 1024 --out build/gpu/modes
    python benches/scan_gpu.py modes --shapes bundled-8b --length 1024 --out build/gpu/modes-trained
    python benches/scan_gpu.py bundled --out build/gpu/scan-bundled

`store` scans made-up text with a randomly initialised model; nothing is downloaded. `modes`
compares the cost of the importances, `bundled` the stores that two devices make of the sample
corpus. All of them also run on a CPU, with `--shapes tiny`. `store` and `bundled` need zarr.
"""

import json
import logging
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

sys.path.insert(0, str(Path(__file__).parent / "measuring"))
from device_models import BATCH_TOKENS, SHAPES, device_work, random_model, tiny_llama
from device_record import DeviceRecord, Figures
from device_timing import measure_on
from enlarged import LIKE_8B, Enlargement, enlarged
from problems import EXAMPLES, STRATA, Work, thresholds
from problems import corpus as sample_tokens
from timing import seconds

import densitrace
from densitrace import AutoStrata, Tracer, kernels
from densitrace.tracer import layout
from densitrace.tracer.nodes import IMPORTANCES, Node

if TYPE_CHECKING:
    from densitrace import Store

SAMPLE = EXAMPLES / "corpus/scan.jsonl"
DOCUMENT_WORDS = (5.5, 1.0)  # mean and standard deviation of log length: median 245
KEPT = ("part", "tokens", "padding", "seconds", "device_seconds", "write_seconds", "bytes")
COPIES = ("Memcpy", "Memset")  # device work other than kernels

Part = dict[str, Any]


MODELS = {**SHAPES, "tiny": tiny_llama}
TRAINED = {"bundled": Enlargement(), "bundled-8b": LIKE_8B}


def model_of(shapes: str, device: str, dtype: str) -> PreTrainedModel:
    """A model with random weights, or the bundled one, tiled up."""
    where, numbers = torch.device(device), getattr(torch, dtype)
    if shapes in MODELS:
        return random_model(MODELS[shapes](), where, numbers)
    small = LlamaForCausalLM.from_pretrained(EXAMPLES / "model")
    return enlarged(small, TRAINED[shapes], where, numbers)


# ---- the corpus ----------------------------------------------------------------------------------


def tokenizer() -> PreTrainedTokenizerBase:
    """The bundled model's, with 4,096 tokens: no model here has a smaller vocabulary."""
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(EXAMPLES / "model")
    return loaded


def made_up_texts() -> Iterator[str]:
    """Words of the sample corpus in random order, in documents of log-normal length."""
    drawn = random.Random(0)
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    words = [word for line in lines for word in json.loads(line)["text"].split()]
    while True:
        yield " ".join(drawn.choices(words, k=1 + int(drawn.lognormvariate(*DOCUMENT_WORDS))))


def write_corpus(path: Path, tokens: int) -> None:
    """Write made-up documents of `tokens` tokens in total."""
    tokens_of, left = tokenizer(), tokens
    with path.open("w", encoding="utf-8") as file:
        for text in made_up_texts():
            ids = tokens_of.encode(text)[:left]
            file.write(json.dumps({"text": tokens_of.decode(ids)}) + "\n")
            left -= len(ids)
            if not left:
                return


# ---- a scan, observed ----------------------------------------------------------------------------


class PartLog(logging.Handler):
    """Keeps a scan's log entries of finished parts, and reports each at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        logging.Handler.__init__(self)
        self.parts: list[Part] = []
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Keep an entry if it is of a finished part."""
        if record.getMessage() == "part done":
            part = {name: getattr(record, name) for name in KEPT}
            self.parts.append(part)
            self.say(f"part {part['part']}: {part['tokens']} tokens, {part['seconds']:.2f} s")


@contextmanager
def parts_logged(say: Callable[[str], None] = lambda _: None) -> Iterator[list[Part]]:
    """The log entries of parts that finish while the context is open."""
    log, kept = logging.getLogger("densitrace.tracer.run"), PartLog(say)
    level = log.level
    log.addHandler(kept)
    log.setLevel(logging.INFO)
    try:
        yield kept.parts
    finally:
        log.removeHandler(kept)
        log.setLevel(level)


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals.

    Example:
        >>> covered([(1, 3), (0, 2), (5, 6)])
        4
    """
    total, reached = 0.0, -np.inf
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def kernel_seconds(run: Callable[[], object]) -> float:
    """Seconds during which at least one kernel ran."""
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as profile:
        run()
    return 1e-6 * covered(
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type.name == "CUDA" and not event.name.startswith(COPIES)
    )


def part_figures(parts: Sequence[Part]) -> Figures:
    """Combined figures of some parts."""
    tokens, spent = sum(part["tokens"] for part in parts), sum(part["seconds"] for part in parts)
    device = sum(part["device_seconds"] for part in parts)
    return {
        "parts": len(parts),
        "tokens": tokens,
        "seconds": spent,
        "tokens/s": tokens / spent,
        "outside device work": 1 - device / spent,
        "padding": sum(part["padding"] * part["tokens"] for part in parts) / tokens,
        "write share": sum(part["write_seconds"] for part in parts) / spent,
        "bytes a token": sum(part["bytes"] for part in parts) / tokens,
    }


def note_scan(
    record: DeviceRecord,
    title: str,
    tracer: Tracer,
    corpus: Path,
    out: Path,
    deadline: float,
    **options: Any,
) -> None:
    """Plan, scan until the deadline (time.monotonic), and on a GPU profile one part.

    The first part gets its own row because kernels are compiled in it. A part that has begun is
    finished.
    """
    from densitrace.tracer.run import Limits

    def scan(**limits: Any) -> "Store":
        return densitrace.scan(
            tracer, corpus, out, select=AutoStrata(STRATA), limits=Limits(**limits), **options
        )

    planning = seconds(lambda: scan(max_parts=0))
    with parts_logged(record.say) as parts:
        store = scan(max_parts=1)
        record.add(title, "first part", **part_figures(parts))
        try:
            store = scan(seconds=max(0.0, deadline - time.monotonic()))
        finally:  # also when interrupted
            if parts[1:]:
                record.add(title, "other parts", **part_figures(parts[1:]))
    done = sum(part["tokens"] for part in parts)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    whole: Figures = {
        "parts": len(parts),
        "tokens": done,
        "of the tokens": done / int(store.attributes["tokens"]),
        "planning, hashes and strata, s": planning,
        "bytes a token": size / done,
    }
    if tracer.device.type == "cuda":
        whole["peak GiB"] = torch.cuda.max_memory_allocated(tracer.device) / 2**30
    record.add(title, "the store, plan and texts included", **whole)
    if tracer.device.type == "cuda":

        def again() -> None:
            open_first_part(store)
            scan(max_parts=1)

        note_kernels(record, title, again)


def open_first_part(store: "Store") -> None:
    """Mark the first part as not done."""
    from densitrace.tracer.store import open_store_in

    open_store_in(store.storage, to_write=True).open_again(0)


def note_kernels(record: DeviceRecord, title: str, scan_a_part: Callable[[], object]) -> None:
    """Trace a part again, and once more under the profiler to learn how long kernels ran.

    Kernel time is compared with the unprofiled run: the profiler slows the host down.
    """
    with parts_logged() as parts:
        scan_a_part()
    with parts_logged() as profiled:
        busy = kernel_seconds(scan_a_part)
    figures, slowed = part_figures(parts), part_figures(profiled)
    figures["in kernels, s"] = busy
    figures["outside kernels"] = 1 - busy / float(figures["seconds"])
    figures["x slower under the profiler"] = float(slowed["seconds"]) / float(figures["seconds"])
    record.add(title, "the first part again", **figures)


# ---- importances ---------------------------------------------------------------------------------


def importance_and_sizes(work: Work) -> object:
    """The clean lane of a pass, and the sizes that follow from its levels."""
    return work.sizes_of(work.clean_lane())


def note_modes(
    record: DeviceRecord,
    title: str,
    model: PreTrainedModel,
    length: int,
    rows: int | None = None,
    text: Sequence[int] | None = None,
) -> None:
    """Importance, cuts, levels and sizes under each importance, in turns with the plain forward."""
    for name in IMPORTANCES:
        work = device_work(model, length, rows=rows, text=text, importance=name)
        run = partial(importance_and_sizes, work)
        timed = measure_on(work.ids.device, run, {"forward": work.forward})
        low, ratio, high = timed.over("forward")
        further: Figures = {}
        if name == "proximity":
            further = {"edges summed": share_summed(work)}
            further |= {"wanted": 3.0} if text is not None and length == 1024 else {}
        record.add(
            title, name, ms=1e3 * timed.seconds, x_forward=ratio, from_=low, to=high, **further
        )


class Summed:
    """Shares of each block's attention edges that were summed exactly."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def __call__(self, node: Node, cuts: Tensor) -> None:
        if node.edges is not None:
            share = kernels.edge_levels(node.edges, cuts).evaluated
            self.shares.append(1.0 if share is None else float(share))


def share_summed(work: Work) -> float:
    """Mean share of attention edges summed exactly; for the others a bound was enough."""
    seen = Summed()
    work.tracing.loop(work.batch, work.rule, masked_lanes=False, observers=(seen,)).run()
    return float(np.mean(seen.shares))


# ---- one corpus on two devices -------------------------------------------------------------------


@dataclass(frozen=True)
class Rounding:
    """How far an array of two stores may differ: at least `share` of it by at most `difference`."""

    difference: float = 0.0
    share: float = 1.0


# In float32. Devices add in different orders, so the last digits differ. An edge whose weight is
# that close to its cut is kept on one device and not on the other, which changes a size by one edge
# and that lane's errors by more. Two backends of one CPU (`bundled --device cpu --backend reference
# --documents 6`) differed like this in 0.05% of the topology, and by more than 1e-3 in 0.03 to
# 0.09% of an error; 1% is allowed. All other arrays must be equal.
ROUNDING = {
    "surprisal": Rounding(1e-4), "model_entropy": Rounding(1e-4),
    "size": Rounding(1e-4, 0.99), "topology": Rounding(0, 0.99),
    "top1": Rounding(0, 0.99), "nucleus": Rounding(0, 0.99),
    **dict.fromkeys(("tv", "kl", "loss", "entropy"), Rounding(1e-3, 0.99)),
}  # fmt: skip


def differences(ours: "Store", theirs: "Store") -> dict[str, Figures]:
    """Compare every array of two stores of one corpus where there are tokens.

    `within` is the share of an array that differs by at most `allowed`, `wanted` the smallest share
    that passes as rounding.
    """
    valid = theirs.token[:] >= 0
    result: dict[str, Figures] = {}
    for spec in layout.window_arrays(theirs.controls):
        left, right = (store.array(spec.name)[:] for store in (ours, theirs))
        if "column" in spec.dims:
            left, right = left[valid], right[valid]
        same = (left == right) | (np.isnan(left) & np.isnan(right))
        apart = np.abs(left.astype(np.float64) - right.astype(np.float64))
        missing, rounding = np.isnan(left) != np.isnan(right), ROUNDING.get(spec.name, Rounding())
        within = float((same | (apart <= rounding.difference)).mean())
        result[spec.name] = {
            "type": str(right.dtype),
            "largest difference": float(np.max(np.nan_to_num(apart, nan=0.0), initial=0)),
            "share equal": float(same.mean()),
            "NaN in one": float(missing.sum()),
            "allowed": rounding.difference,
            "within": within,
            "wanted": rounding.share,
            "verdict": "rounding" if within >= rounding.share else "more than rounding",
        }
    return result


def sample(folder: Path, documents: int | None) -> Path:
    """Write the first documents of the sample corpus, or all of them."""
    path = folder / "sample.jsonl"
    lines = SAMPLE.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:documents]), encoding="utf-8")
    return path


def note_bundled(
    record: DeviceRecord,
    title: str,
    runs: Sequence[tuple[str, str]],
    documents: int | None,
) -> list[str]:
    """Scan the sample corpus with the bundled model on two devices or backends.

    Returns:
        The arrays that differ by more than rounding.
    """
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpus = sample(folder, documents)
        stores = [
            densitrace.scan(
                Tracer.from_pretrained(
                    EXAMPLES / "model", device=device, dtype="float32", backend=backend
                ),
                corpus, folder / f"{number}.zarr", select=thresholds(STRATA), context=256,
            )
            for number, (device, backend) in enumerate(runs)
        ]  # fmt: skip
        arrays = differences(*stores)
    for name, figures in arrays.items():
        record.add(title, name, **figures)
    return [name for name, figures in arrays.items() if figures["verdict"] != "rounding"]


# ---- commands ------------------------------------------------------------------------------------


def device_option(command: Any) -> Any:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    return click.option("--device", default=default, show_default="a GPU if there is one")(command)


def model_options(command: Any) -> Any:
    """Options that choose the model, its dtype and its device."""
    for option in (
        click.option("--dtype", type=click.Choice(("bfloat16", "float16", "float32")),
                     default="bfloat16", show_default=True),
        click.option("--shapes", type=click.Choice((*MODELS, *TRAINED)), default="llama-1b",
                     show_default=True),
    ):  # fmt: skip
        command = option(command)
    return device_option(command)


@contextmanager
def recorded(out: Path) -> Iterator[DeviceRecord]:
    """Write rows to OUT.json and OUT.md as they come, and print the page at the end."""
    record = DeviceRecord(stem=out, say=click.echo)
    yield record
    click.echo(record.page())
    click.echo(f"wrote {out}.json and .md")


@click.group()
def main() -> None:
    """Measure, and write OUT.json and OUT.md."""


@main.command()
@model_options
@click.option("--tokens", type=click.IntRange(min=1), default=1_000_000, show_default=True)
@click.option("--context", type=click.IntRange(min=2), default=512, show_default=True)
@click.option("--batch-tokens", type=click.IntRange(min=1), default=BATCH_TOKENS, show_default=True)
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0),
    default=480,
    show_default=True,
    help="Seconds from the start after which no part is begun.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="without suffix")
def store(
    shapes: str, dtype: str, device: str, tokens: int, context: int, batch_tokens: int,
    time_limit: float, out: Path,
) -> None:  # fmt: skip
    """A full scan to a store, 12 strata."""
    deadline = time.monotonic() + time_limit
    model = model_of(shapes, device, dtype)
    tracer = Tracer(model, tokenizer(), model_id=shapes)
    title = f"scan of {tokens} tokens, {shapes} in {dtype} on {device}, {STRATA} strata"
    with TemporaryDirectory() as temporary, recorded(out) as record:
        corpus = Path(temporary) / "corpus.jsonl"
        write_corpus(corpus, tokens)
        note_scan(
            record, title, tracer, corpus, Path(temporary) / "traces.zarr", deadline,
            context=context, batch_tokens=batch_tokens,
        )  # fmt: skip


@main.command()
@model_options
@click.option("--length", type=click.IntRange(min=2), default=1024, show_default=True)
@click.option("--rows", type=click.IntRange(min=1), show_default="4,096 tokens")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="without suffix")
def modes(shapes: str, dtype: str, device: str, length: int, rows: int | None, out: Path) -> None:
    """The importances, against the plain forward of the same batch."""
    model = model_of(shapes, device, dtype)
    text = sample_tokens() if shapes in TRAINED else None
    title = f"importance and sizes, {shapes} in {dtype} on {device}, T = {length}, {STRATA} strata"
    with recorded(out) as record:
        note_modes(record, title, model, length, rows, text)


@main.command()
@device_option
@click.option("--backend", default="auto", show_default=True, help="of the device's ops")
@click.option("--documents", type=click.IntRange(min=1), show_default="all")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="without suffix")
def bundled(device: str, backend: str, documents: int | None, out: Path) -> None:
    """The bundled model's scan in float32, against the CPU's."""
    with recorded(out) as record:
        title = f"bundled model, {device} ({backend}) against cpu"
        wrong = note_bundled(record, title, ((device, backend), ("cpu", "auto")), documents)
    if wrong:
        raise click.ClickException(f"more than rounding: {', '.join(wrong)}")
    click.echo("the stores differ by rounding alone")


if __name__ == "__main__":
    main()
