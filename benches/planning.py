"""What does reading and tokenising a corpus take of its scan, and is it traced meanwhile?

    python benches/planning.py --corpus FOLDER --out benches/results/planning-DATE

The corpus of `scan_million.py`, or several passes through its text, is scanned from the command
line until some parts are done. The scan's log says how long reading took, and which parts were
traced and written in the meantime.
"""

import json
import sys
from datetime import date, datetime
from pathlib import Path
from subprocess import run
from tempfile import TemporaryDirectory
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent / "measuring"))
from ledger import figure, machine, table, write_record
from long_scans import CONTEXT, MODELS, command_of, parts_logged, write_corpus


def record_of(
    corpus: Path, tokens: int, passes: int, model: str, parts: int, folder: Path
) -> dict[str, Any]:
    """Scan until some parts are done, and read the log."""
    text, log = folder / "corpus.jsonl", folder / "log.jsonl"
    write_corpus(corpus, text, tokens, model, passes)
    command = command_of(text, folder / "traces.zarr", log, model)
    run([*command, "--max-parts", str(parts)], check=True)
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    read = next(line for line in lines if line["message"] == "corpus read")
    traced = parts_logged(log)
    rate = sum(part["tokens"] for part in traced) / sum(part["seconds"] for part in traced)
    tracing = read["tokens"] / rate
    began = ended(read) - read["seconds"]
    begun = [ended(part) - part["write_seconds"] - part["seconds"] for part in traced]
    return {
        "date": str(date.today()),
        "machine": machine(),
        "model": model,
        "asked": tokens,
        "passes": passes,
        "tokens": read["tokens"],
        "documents": read["documents"],
        "reading and tokenising, s": read["seconds"],
        "tokens read/s": read["tokens"] / read["seconds"],
        "first part begun, s after the reading began": min(begun) - began,
        "parts done as the reading ended": sum(ended(part) <= ended(read) for part in traced),
        f"tokens traced/s, {parts} parts": rate,
        "of the slowest part": min(part["tokens"] / part["seconds"] for part in traced),
        "of the fastest part": max(part["tokens"] / part["seconds"] for part in traced),
        "reading's share of the scan": read["seconds"] / (read["seconds"] + tracing),
    }


def ended(line: dict[str, Any]) -> float:
    """The time at which the step of a log line ended, in seconds."""
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def page(record: dict[str, Any], parts: int) -> str:
    """The record as Markdown."""
    info = record["machine"]
    hidden = ("date", "machine", "asked", "passes")
    rows = ([key, figure(value)] for key, value in record.items() if key not in hidden)
    lines = [
        f"# Reading and tokenising a corpus, {record['date']}",
        "",
        f"`python benches/planning.py --corpus FOLDER --model {record['model']} --tokens "
        f"{record['asked']} --passes {record['passes']} --parts {parts}` on "
        f"{info['processor']}, {info['threads']} threads, torch {info['torch']}. Windows of "
        f"{CONTEXT} tokens, defaults otherwise. The share is that of a scan of all tokens at the "
        "rate of these parts; a reading that leaves the cores to tracing takes longer.",
        "",
        *table(["", ""], rows),
        "",
    ]
    return "\n".join(lines)


@click.command()
@click.option("--corpus", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--tokens", type=click.IntRange(min=1), default=1_000_000, show_default=True)
@click.option(
    "--passes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="through the folder's text at most, cut anew each time",
)
@click.option("--model", type=click.Choice(tuple(MODELS)), default="bundled", show_default=True)
@click.option("--parts", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="without suffix")
def main(corpus: Path, tokens: int, passes: int, model: str, parts: int, out: Path) -> None:
    """Measure, and write OUT.json and OUT.md."""
    with TemporaryDirectory() as folder:
        record = record_of(corpus, tokens, passes, model, parts, Path(folder))
    write_record(out, record, page(record, parts))


if __name__ == "__main__":
    main()
