"""What does a report on a large store cost?

    python benches/report.py --out benches/results/report-DATE

A made-up store of a million tokens is written, and `densitrace report` run on it in a process of
its own: as it is, without the factors, and on two stores. Seconds are those of the whole command,
its imports included; the peak is the most memory that its process has held.
"""

import json
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent / "measuring"))
from ledger import figure, machine
from made_up_store import made_up_documents, make_store

TOKENS = 1_000_000
CONTROLS = ("inverse", "random")
ROUNDS = 2  # the faster one is told
POLL_SECONDS = 0.02


def measured(arguments: list[str], page: Path) -> dict[str, float]:
    """One run of the command."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "densitrace", "report", *arguments, "--out", str(page)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, peak_bytes(process.pid))
            time.sleep(POLL_SECONDS)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise click.ClickException(f"{' '.join(command)} exited with {process.returncode}")
    return {
        "seconds": seconds,
        "page, MB": page.stat().st_size / 1e6,
        "peak, MiB": peak / 2**20,
    }


def peak_bytes(process: int) -> int:
    """The most memory that a process has held so far; 0 if it has gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return 1024 * int(found[0]) if found else 0


def record_of(folder: Path, tokens: int) -> dict[str, Any]:
    """All that is measured."""
    stores = [folder / f"{seed}.zarr" for seed in range(2)]
    for seed, path in enumerate(stores):
        made = make_store(path, made_up_documents(tokens), controls=CONTROLS, seed=seed)
    one, two = [str(stores[0])], [str(path) for path in stores]
    runs = {
        "one store, without factors": [*one, "--no-factors"],
        "one store": one,
        "two stores": two,
    }
    found = {
        name: min(
            (measured(arguments, folder / "page.html") for _ in range(ROUNDS)),
            key=lambda each: each["seconds"],
        )
        for name, arguments in runs.items()
    }
    return {
        "date": str(date.today()),
        "machine": machine(),
        "tokens": tokens,
        "documents": len(made.documents),
        "strata": len(made.strata),
        "runs": found,
    }


def page_of(record: dict[str, Any]) -> str:
    """Markdown."""
    info = record["machine"]
    columns = list(next(iter(record["runs"].values())))
    lines = [
        f"# A report on a large store, {record['date']}",
        "",
        f"`python benches/report.py` on {info['processor']}, {info['threads']} threads, Python "
        f"{info['python']}. Made-up stores of {record['tokens']:,} tokens in "
        f"{record['documents']:,} documents, {record['strata']} strata, controls "
        f"{' and '.join(CONTROLS)}; `densitrace report` in a process of its own, imports "
        f"included; the faster of {ROUNDS} runs each.",
        "",
        "| | " + " | ".join(columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for name, row in record["runs"].items():
        lines.append(f"| {name} | " + " | ".join(figure(row[c]) for c in columns) + " |")
    return "\n".join([*lines, ""])


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="without suffix")
@click.option("--tokens", default=TOKENS, show_default=True)
def main(out: Path, tokens: int) -> None:
    """Measure, and write OUT.json and OUT.md."""
    with TemporaryDirectory() as temporary:
        record = record_of(Path(temporary), tokens)
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(page_of(record), encoding="utf-8")
    click.echo(f"wrote {out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
