"""What does reading and tokenising a corpus take of its scan?

    python benches/planning.py --corpus FOLDER --out benches/results/planning-DATE

The corpus of `scan_million.py` is planned by the command line and its first parts are traced. How
long the reading took, and how fast parts are traced, the scan's own log says.
"""

import json
import sys
from datetime import date
from pathlib import Path
from subprocess import run
from tempfile import TemporaryDirectory
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent / "measuring"))
from ledger import figure, machine, write_record
from long_scans import CONTEXT, MODELS, command_of, parts_logged, write_corpus


def record_of(corpus: Path, tokens: int, model: str, parts: int, folder: Path) -> dict[str, Any]:
    """Plan, trace some parts, and read the log."""
    text, log = folder / "corpus.jsonl", folder / "log.jsonl"
    write_corpus(corpus, text, tokens, model)
    command = command_of(text, folder / "traces.zarr", log, model)
    run([*command, "--max-parts", str(parts)], check=True)
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    read = next(line for line in lines if line["message"] == "corpus read")
    traced = parts_logged(log)
    rate = sum(part["tokens"] for part in traced) / sum(part["seconds"] for part in traced)
    tracing = read["tokens"] / rate
    return {
        "date": str(date.today()),
        "machine": machine(),
        "model": model,
        "asked": tokens,
        "tokens": read["tokens"],
        "documents": read["documents"],
        "reading and tokenising, s": read["seconds"],
        "tokens read/s": read["tokens"] / read["seconds"],
        f"tokens traced/s, {parts} parts": rate,
        "reading's share of the scan": read["seconds"] / (read["seconds"] + tracing),
    }


def page(record: dict[str, Any], parts: int) -> str:
    """Markdown."""
    info = record["machine"]
    lines = [
        f"# Reading and tokenising a corpus, {record['date']}",
        "",
        f"`python benches/planning.py --corpus FOLDER --model {record['model']} --tokens "
        f"{record['asked']} --parts {parts}` on {info['processor']}, {info['threads']} threads, "
        f"torch {info['torch']}. Windows of {CONTEXT} tokens, defaults otherwise. The share is "
        "that of a scan of all tokens at the rate of these parts.",
        "",
        "| | |",
        "| --- | --- |",
    ]
    shown = {key: value for key, value in record.items() if key not in ("date", "machine", "asked")}
    return "\n".join(
        [*lines, *(f"| {key} | {figure(value)} |" for key, value in shown.items()), ""]
    )


@click.command()
@click.option("--corpus", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--tokens", type=click.IntRange(min=1), default=1_000_000, show_default=True)
@click.option("--model", type=click.Choice(tuple(MODELS)), default="bundled", show_default=True)
@click.option("--parts", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="without suffix")
def main(corpus: Path, tokens: int, model: str, parts: int, out: Path) -> None:
    """Measure, and write OUT.json and OUT.md."""
    with TemporaryDirectory() as folder:
        record = record_of(corpus, tokens, model, parts, Path(folder))
    write_record(out, record, page(record, parts))


if __name__ == "__main__":
    main()
