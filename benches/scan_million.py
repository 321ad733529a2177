"""What does a long scan cost, and does it survive being killed?

    python benches/scan_million.py --corpus FOLDER --out benches/results/scan-million-DATE

Paragraphs of the folder's .txt files, in documents of many lengths, are scanned with a small model
from the command line until a million tokens are done. On the way the process is killed (SIGKILL)
several times and the same command resumes. The memory of the process is sampled once a second.
"""

import random
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import matplotlib
import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent / "measuring"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from ledger import figure, machine, table, write_record
from long_scans import CONTEXT, MODELS, command_of, parts_logged, write_corpus
from process_memory import held_bytes
from scan_workers import shards

from densitrace import open_store
from densitrace.tracer import layout
from densitrace.tracer.store import Store, open_store_in

KILLED_AT = (0.17, 0.44, 0.81)  # shares of the tokens
CHECKED_PARTS = 3  # redone at the end
SAMPLE_SECONDS = 1.0
PLOT_KILLS: dict[str, Any] = {"color": "0.6", "linestyle": "--", "linewidth": 0.8}


# ---- running -------------------------------------------------------------------------------------


class Watched:
    """Runs the command in a process, sampling its memory and progress."""

    def __init__(self, command: list[str], out: Path) -> None:
        self.command, self.out = command, out
        self.samples: list[tuple[float, int, int]] = []  # seconds, bytes held, parts done
        self.began = time.monotonic()

    def run(self, kill_at: int | None) -> None:
        """Run to the end, or until `kill_at` parts are done and then kill during the next one."""
        process = subprocess.Popen(self.command)
        moments = random.Random(kill_at)
        while process.poll() is None:
            time.sleep(SAMPLE_SECONDS)
            done = len(list((self.out / "part_done").glob("c.*")))
            self.samples.append((time.monotonic() - self.began, held_bytes(process.pid), done))
            if kill_at is not None and done >= kill_at:
                time.sleep(moments.uniform(0, 5))
                process.kill()
                process.wait()
                return
        if process.returncode or kill_at is not None:
            raise click.ClickException(f"the scan ended with {process.returncode}")


# ---- results -------------------------------------------------------------------------------------


def raw_bytes(store: Store) -> int:
    """Bytes of all values that the parts hold, without padding and compression."""
    tokens = int(store.lengths.sum())
    total = 0
    for spec in layout.window_arrays(store.controls):
        array = store.array(spec.name)
        values = int(np.prod(array.shape[len(spec.dims[:2]) :])) if "column" in spec.dims else 1
        total += (
            (tokens if "column" in spec.dims else store.n_windows) * values * array.dtype.itemsize
        )
    return total


def files_of(folder: Path) -> tuple[int, int]:
    """Number of files, and their bytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def same_again(store: Store, command: list[str]) -> list[str]:
    """Shards that differ after some parts are redone; there should be none."""
    before = shards(Path(store.path))
    writable = open_store_in(store.storage, to_write=True)
    for part in np.linspace(0, store.n_parts - 1, CHECKED_PARTS).astype(int).tolist():
        writable.open_again(part)
    subprocess.run(command, check=True)
    after = shards(Path(store.path))
    return [name for name in before if before[name] != after.get(name)]


def plot(samples: list[tuple[float, int, int]], kills: list[float], path: Path) -> None:
    """Plot memory over time as SVG."""
    matplotlib.rcParams["svg.hashsalt"] = "densitrace"
    seconds, held, _ = np.array(samples).T
    chart = Figure(figsize=(7, 2.5), layout="constrained")
    axes = chart.subplots()
    axes.plot(seconds / 60, held / 2**20, linewidth=1)
    for kill in kills:
        axes.axvline(kill / 60, **PLOT_KILLS)
    axes.set(xlabel="minutes (dashed: killed, and started again)", ylabel="memory, MiB", ylim=0)
    chart.savefig(path, metadata={"Date": None})


def record_of(corpus: Path, tokens: int, model: str, folder: Path, drawing: Path) -> dict[str, Any]:
    """Scan, kill, resume, and collect the results."""
    text, out, log = folder / "corpus.jsonl", folder / "traces.zarr", folder / "log.jsonl"
    write_corpus(corpus, text, tokens, model)
    command = command_of(text, out, log, model)
    watched, kills = Watched(command, out), []
    # The first run makes the plan, and with it the number of parts.
    watched.run(kill_at=1)
    kills.append(watched.samples[-1][0])
    n_parts = open_store(out).n_parts
    for share in KILLED_AT:
        watched.run(kill_at=round(share * n_parts))
        kills.append(watched.samples[-1][0])
    watched.run(kill_at=None)
    wall = time.monotonic() - watched.began
    plot(watched.samples, kills, drawing)
    parts, store = parts_logged(log), open_store(out)
    frame = store.tokens([])
    traced = sum(part["tokens"] for part in parts)
    seconds = sum(part["seconds"] for part in parts)
    count, size = files_of(out)
    part_bytes = sum(part["bytes"] for part in parts) * store.attributes["tokens"] / traced
    held = np.array([sample[1] for sample in watched.samples])
    late = np.array_split(held[held > 0], 4)
    return {
        "date": str(date.today()),
        "machine": machine(),
        "model": model,
        "asked": tokens,
        "tokens": len(frame),
        "documents": len(store.documents),
        "strata": len(store.strata),
        "parts": store.n_parts,
        "killed": len(kills),
        "complete": store.complete,
        "tokens twice": int(frame.duplicated(["document", "position"]).sum()),
        "tokens missing": int(store.attributes["tokens"]) - len(frame),
        "wall, s": wall,
        "tokens/s while tracing": traced / seconds,
        "tokens/s over all, kills and starts included": len(frame) / wall,
        "padding share": sum(p["padding"] * p["tokens"] for p in parts) / traced,
        "write share": sum(part["write_seconds"] for part in parts) / seconds,
        "files": count,
        "bytes a token, all files": size / len(frame),
        "bytes a token, parts": part_bytes / len(frame),
        "compression ratio, parts": raw_bytes(store) / part_bytes,
        "memory by quarters of the time, median MiB": [float(np.median(q)) / 2**20 for q in late],
        "peak memory, MiB": float(held.max()) / 2**20,
        "shards that differ when done again": same_again(store, command),
    }


def page(record: dict[str, Any], drawing: Path) -> str:
    """The record as Markdown."""
    info = record["machine"]
    shown = {key: value for key, value in record.items() if key not in ("date", "machine", "asked")}
    lines = [
        f"# A long scan, {record['date']}",
        "",
        f"`python benches/scan_million.py --corpus FOLDER --model {record['model']} --tokens "
        f"{record['asked']}` on {info['processor']}, {info['threads']} threads, torch "
        f"{info['torch']}. Windows of "
        f"{CONTEXT} tokens, defaults otherwise. Parts are written while the next one is traced: "
        "the write share is of the seconds of tracing, hidden or not.",
        "",
        *table(["", ""], ([name, _shown(value)] for name, value in shown.items())),
        "",
        f"![Memory over time]({drawing.name})",
        "",
    ]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return ", ".join(str(v) if isinstance(v, bool) else figure(v) for v in values) or "none"


@click.command()
@click.option("--corpus", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--tokens", type=click.IntRange(min=1), default=1_000_000, show_default=True)
@click.option("--model", type=click.Choice(tuple(MODELS)), default="bundled", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="without suffix")
@click.option("--folder", type=click.Path(path_type=Path), help="where the store is left")
def main(corpus: Path, tokens: int, model: str, out: Path, folder: Path | None) -> None:
    """Measure, and write OUT.json, OUT.md and OUT.svg."""
    drawing = out.with_suffix(".svg")
    with TemporaryDirectory() as temporary:
        work = folder or Path(temporary)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        record = record_of(corpus, tokens, model, work, drawing)
    write_record(out, record, page(record, drawing))


if __name__ == "__main__":
    main()
