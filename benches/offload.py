"""What does it cost to scan a model that is several times larger than memory?

    python benches/offload.py --out benches/results/offload-DATE

A checkpoint with random weights is scanned twice: resident in memory, and block by block in a
process limited to a quarter of its size. Before the offloaded scan and each read labelled cold the
files are evicted from the page cache, as memory would not hold them either.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import click
import torch
from transformers import AutoTokenizer, LlamaConfig

sys.path.insert(0, str(Path(__file__).parent / "measuring"))
from device_models import random_model
from ledger import figure, machine, table, write_record
from problems import EXAMPLES, thresholds
from process_memory import peak_bytes
from timing import seconds

from densitrace import Tracer, open_store, scan
from densitrace.tracer import layout
from densitrace.tracer.models import OffloadedBlocks

LIMIT_BYTES = 5 << 28  # of the offloading process: heap and private mappings, torch's included
BLOCKS = 80
STRATA = 4
CONTEXT, WINDOWS = 128, 4
BATCH_TOKENS = 256
ROUNDS = 2  # resident and offloaded in turn; the faster scan of each is reported
CHUNK_BYTES = 1 << 24  # per read of the plain read


def shape(vocabulary: int) -> LlamaConfig:
    """Blocks of 64 MiB in float32: more than four times the limit."""
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=1024, intermediate_size=4096, num_hidden_layers=BLOCKS,
        num_attention_heads=16, num_key_value_heads=16, max_position_embeddings=2048,
    )  # fmt: skip


def build(folder: Path) -> None:
    """Write the checkpoint with the bundled model's tokenizer, and the text to scan."""
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLES / "model")
    tokenizer.save_pretrained(folder)
    config = shape(len(tokenizer))
    model = random_model(config, torch.device("cpu"), torch.float32)
    model.save_pretrained(folder, max_shard_size="1GB")
    lines = (EXAMPLES / "corpus/scan.jsonl").read_text(encoding="utf-8").splitlines()
    text = " ".join(json.loads(line)["text"] for line in lines)
    ids = tokenizer.encode(text)[: CONTEXT * WINDOWS - 1]
    (folder / "corpus.txt").write_text(str(tokenizer.decode(ids)), encoding="utf-8")


def files(folder: Path) -> list[Path]:
    """The files that hold the weights."""
    return sorted(folder.glob("*.safetensors"))


def forget(folder: Path) -> None:
    """Evict the weights from the page cache."""
    for path in files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def plain_read(folder: Path) -> None:
    """Read every byte of the weights into one buffer."""
    into = memoryview(bytearray(CHUNK_BYTES))
    for path in files(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(into):
                pass


@contextmanager
def waits() -> Iterator[list[float]]:
    """Collect the seconds that blocks wait for their weights while the context is open."""
    waited: list[float] = []
    enter = OffloadedBlocks._enter

    def timed(blocks: OffloadedBlocks, *arguments: Any) -> None:
        waited.append(seconds(lambda: enter(blocks, *arguments)))

    with patch.object(OffloadedBlocks, "_enter", timed):
        yield waited


# ---- in a separate process -----------------------------------------------------------------------


def read_bytes() -> int:
    """Bytes that this process has read from files."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


def read_alone(blocks: OffloadedBlocks) -> None:
    """Read all blocks one after another, without computing anything."""
    for index in range(BLOCKS):
        blocks._read(index, blocks._rooms[index % 2])


def measured(folder: Path, offloaded: bool, waited: list[float]) -> dict[str, float]:
    """Scan once; the offloaded scan starts with evicted files."""
    tracers: list[Tracer] = []
    options: dict[str, Any] = {"device": "cpu", "offload": "layers" if offloaded else None}
    figures = {
        "load and check, s": seconds(
            lambda: tracers.append(Tracer.from_pretrained(folder, **options))
        )
    }
    tracer = tracers[0]
    figures["hash, s"] = seconds(lambda: tracer.weight_hash)
    blocks = tracer._decoder.offloaded
    if blocks is not None:
        for name, prepare in (("cold", forget), ("cached", plain_read)):
            prepare(folder)
            before = read_bytes()
            taken = seconds(partial(read_alone, blocks))
            figures[f"blocks read alone, {name}, GB/s"] = (read_bytes() - before) / taken / 1e9
    figures["one token, s"] = seconds(lambda: tracer.trace([1], select=thresholds(1)))
    if offloaded:
        forget(folder)
    out = folder / ("offloaded" if offloaded else "resident")
    options = {"select": thresholds(STRATA), "context": CONTEXT, "batch_tokens": BATCH_TOKENS}
    before, waited_before = read_bytes(), sum(waited)
    figures["scan, s"] = seconds(
        lambda: scan(tracer, folder / "corpus.txt", out, overwrite=True, **options)
    )
    figures["tokens"] = float((open_store(out).token[:] >= 0).sum())
    figures["s a token"] = figures["scan, s"] / figures["tokens"]
    figures["peak, MiB"] = peak_bytes() / 2**20
    if offloaded:
        figures["read, GB"] = (read_bytes() - before) / 1e9
        figures["waited for weights, s"] = sum(waited) - waited_before
    return figures


def in_a_process(step: str, folder: Path, limit: int | None = None) -> dict[str, Any]:
    """Run a step of this script in a process, optionally under a memory limit."""

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limited)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1].replace(str(folder), "FOLDER")}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# ---- the record ----------------------------------------------------------------------------------


def differing(folder: Path) -> list[str]:
    """Arrays of the two stores that are not bit-identical."""
    ours, theirs = open_store(folder / "offloaded"), open_store(folder / "resident")
    return [
        spec.name
        for spec in layout.window_arrays(ours.controls)
        if ours.array(spec.name)[:].tobytes() != theirs.array(spec.name)[:].tobytes()
    ]


def record_of(folder: Path) -> dict[str, Any]:
    """Run all measurements."""
    in_a_process("build", folder)
    size = sum(path.stat().st_size for path in files(folder))
    rates = {}
    for name, prepare in (("cold", forget), ("cached", plain_read)):
        prepare(folder)
        rates[name] = size / seconds(lambda: plain_read(folder)) / 1e9
    refused = in_a_process("resident", folder, LIMIT_BYTES)
    rounds = [
        (in_a_process("resident", folder), in_a_process("offloaded", folder, LIMIT_BYTES))
        for _ in range(ROUNDS)
    ]
    resident, offloaded = (
        min(runs, key=lambda run: run.get("scan, s", torch.inf))
        for runs in zip(*rounds, strict=True)
    )
    return {
        "date": str(date.today()),
        "machine": machine(),
        "checkpoint, GB": size / 1e9,
        "limit, GB": LIMIT_BYTES / 1e9,
        "plain read, GB/s": rates,
        "resident": resident,
        "resident under the limit": refused,
        "offloaded under the limit": offloaded,
        "arrays that differ": differing(folder),
    }


def page(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    info, rates = record["machine"], record["plain read, GB/s"]
    columns = [record["resident"], record["offloaded under the limit"]]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = ([name, *(figure(column.get(name)) for column in columns)] for name in names)
    same = ", ".join(record["arrays that differ"]) or "none"
    lines = [
        f"# A model larger than memory, {record['date']}",
        "",
        f"`python benches/offload.py` on {info['processor']}, {info['threads']} threads, torch "
        f"{info['torch']}. A checkpoint of {figure(record['checkpoint, GB'])} GB ({BLOCKS} "
        f"blocks, float32), {STRATA} strata, windows of {CONTEXT} tokens, {BATCH_TOKENS} at once; "
        f"the faster of {ROUNDS} scans each. The offloaded process may hold "
        f"{figure(record['limit, GB'])} GB (RLIMIT_DATA); loading the whole model in it fails: "
        f"`{record['resident under the limit'].get('failed', 'no')}`.",
        "",
        f"A plain read of the files runs at {figure(rates['cold'])} GB/s cold, at "
        f"{figure(rates['cached'])} GB/s from the system's cache.",
        "",
        *table(["", "resident", "offloaded"], rows),
        "",
        f"Arrays of the stores that differ in any bit: {same}.",
        "",
    ]
    return "\n".join(lines)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="without suffix")
@click.option("--step", type=click.Choice(("build", "resident", "offloaded")), hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(out: Path | None, step: str | None, folder: Path | None) -> None:
    """Measure, and write OUT.json and OUT.md."""
    if step is not None and folder is not None:
        if step == "build":
            build(folder)
            click.echo("{}")
            return
        with waits() as waited:  # before loading: the model's hooks take the patched method
            click.echo(json.dumps(measured(folder, step == "offloaded", waited)))
        return
    if out is None:
        raise click.UsageError("--out is needed")
    with TemporaryDirectory() as temporary:
        record = record_of(Path(temporary))
    write_record(out, record, page(record))


if __name__ == "__main__":
    main()
