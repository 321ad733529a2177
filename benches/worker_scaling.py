"""How much faster do two workers scan than one?

    python benches/worker_scaling.py --corpus FOLDER --out benches/results/workers-DATE

Scans from the command line: one process, two processes that share a store, each with one thread,
and one process with two threads. Time runs from the start of the first part to the end of the last:
loading the model is left out, waiting for each other is not.
"""

import os
import subprocess
import sys
from datetime import date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent / "measuring"))
from ledger import figure, machine, table, write_record
from long_scans import CONTEXT, command_of, parts_logged, write_corpus

from densitrace import open_store

RUNS = (("one worker", 1, 1), ("two workers", 2, 1), ("one worker, two threads", 1, 2))


def scanned(corpus: Path, folder: Path, workers: int, threads: int) -> dict[str, Any]:
    """Run one scan."""
    out = folder / f"{workers}-{threads}"
    logs = [folder / f"{out.name}-{index}.jsonl" for index in range(workers)]
    processes = [
        subprocess.Popen(
            [*command_of(corpus, out, log), "--worker", f"{index}/{workers}"],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.DEVNULL,
        )
        for index, log in enumerate(logs)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise click.ClickException(f"workers ended with {codes}")
    parts = [part for log in logs for part in parts_logged(log)]
    ends = [datetime.fromisoformat(part["timestamp"]).timestamp() for part in parts]
    begins = [
        end - part["seconds"] - part["write_seconds"] for end, part in zip(ends, parts, strict=True)
    ]
    seconds = max(ends) - min(begins)
    store = open_store(out)
    assert store.complete and len(parts) == store.n_parts
    return {
        "parts": store.n_parts,
        "seconds": seconds,
        "parts/s": store.n_parts / seconds,
        "tokens/s": store.attributes["tokens"] / seconds,
    }


def page(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    info, rows = record["machine"], record["rows"]
    return "\n".join(
        [
            f"# Workers that share a scan, {record['date']}",
            "",
            f"`python benches/worker_scaling.py --corpus FOLDER` on {info['processor']}, "
            f"{info['threads']} threads, torch {info['torch']}. The bundled model, "
            f"{record['tokens']:,} tokens, windows of {CONTEXT}.",
            "",
            *table(rows[0], (map(figure, row.values()) for row in rows)),
            "",
        ]
    )


@click.command()
@click.option("--corpus", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--tokens", type=click.IntRange(min=1), default=60_000, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="without suffix")
def main(corpus: Path, tokens: int, out: Path) -> None:
    """Measure, and write OUT.json and OUT.md."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_corpus(corpus, folder / "corpus.jsonl", tokens)
        rows = [
            {"": name, **scanned(folder / "corpus.jsonl", folder, workers, threads)}
            for name, workers, threads in RUNS
        ]
    record = {"date": str(date.today()), "machine": machine(), "tokens": tokens, "rows": rows}
    write_record(out, record, page(record))


if __name__ == "__main__":
    main()
