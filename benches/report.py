"""What does a report on a large store cost?

    python benches/report.py --out benches/results/report-DATE
    python benches/report.py --store traces.zarr --out benches/results/report-scan-DATE

Writes a made-up store of a million tokens and runs `densitrace report` on it in a separate process:
with defaults, without factors, and on two stores. With --store, runs it on an existing store.
Seconds are those of the whole command, imports included; the peak is the memory of its process plus
that of the child process that explains factors.
"""

import subprocess
import sys
import time
from contextlib import suppress
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent / "measuring"))
from ledger import figure, machine, table, write_record
from made_up_store import made_up_documents, make_store
from process_memory import peak_bytes

from densitrace import open_store

TOKENS = 1_000_000
CONTROLS = ("inverse", "random")
ROUNDS = 5  # the fastest is reported, and the time of the slowest
POLL_SECONDS = 0.02


def measured(arguments: list[str], page: Path) -> dict[str, float]:
    """Run the command once."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "densitrace", "report", *arguments, "--out", str(page)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        peaks: dict[int, int] = {}
        while process.poll() is None:
            for member in family(process.pid):
                peaks[member] = max(peaks.get(member, 0), peak_bytes(member))
            time.sleep(POLL_SECONDS)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise click.ClickException(f"{' '.join(command)} exited with {process.returncode}")
    return {
        "seconds": seconds,
        "page, MB": page.stat().st_size / 1e6,
        "peak, MiB": sum(peaks.values()) / 2**20,
    }


def family(process: int) -> list[int]:
    """The ids of a process and of its descendants."""
    members = [process]
    for tasks in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in tasks.read_text(encoding="ascii").split():
                members += family(int(child))
    return members


def made_up(folder: Path, tokens: int) -> list[Path]:
    """Two stores of `tokens` tokens each, with both controls."""
    paths = [folder / f"{seed}.zarr" for seed in range(2)]
    for seed, path in enumerate(paths):
        make_store(path, made_up_documents(tokens), controls=CONTROLS, seed=seed)
    return paths


def record_of(stores: list[Path], folder: Path) -> dict[str, Any]:
    """Run all measurements on the first store, and on both if there are two."""
    names, first = [str(path) for path in stores], open_store(stores[0])
    runs = {
        "one store, without factors": [names[0], "--no-factors"],
        "one store": names[:1],
        **({"two stores": names} if len(names) > 1 else {}),
    }
    results = {}
    for name, arguments in runs.items():
        rounds = [measured(arguments, folder / "page.html") for _ in range(ROUNDS)]
        fastest, slowest = (pick(rounds, key=lambda run: run["seconds"]) for pick in (min, max))
        results[name] = {**fastest, "seconds, slowest": slowest["seconds"]}
    return {
        "date": str(date.today()),
        "machine": machine(),
        "model": first.model_id,
        "tokens": first.attributes["tokens"],
        "documents": len(first.documents),
        "strata": len(first.strata),
        "controls": list(first.controls),
        "runs": results,
    }


def page_of(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    info = record["machine"]
    columns = list(next(iter(record["runs"].values())))
    lines = [
        f"# A report on a large store, {record['date']}",
        "",
        f"`python benches/report.py` on {info['processor']}, {info['threads']} threads, Python "
        f"{info['python']}. A store of {record['model']}: {record['tokens']:,} tokens in "
        f"{record['documents']:,} documents, {record['strata']} strata, controls: "
        f"{' and '.join(record['controls']) or 'none'}; `densitrace report` in a process of its "
        f"own, imports included; the fastest of {ROUNDS} runs each, and how long the slowest took.",
        "",
    ]
    rows = ([name, *(figure(run[c]) for c in columns)] for name, run in record["runs"].items())
    return "\n".join([*lines, *table(["", *columns], rows), ""])


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="without suffix")
@click.option("--tokens", default=TOKENS, show_default=True, help="Of a made-up store.")
@click.option("--store", type=click.Path(exists=True, path_type=Path), help="One that is there.")
def main(out: Path, tokens: int, store: Path | None) -> None:
    """Measure, and write OUT.json and OUT.md."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        record = record_of([store] if store else made_up(folder, tokens), folder)
    write_record(out, record, page_of(record))


if __name__ == "__main__":
    main()
