"""The long form of the kill test: kill scans a hundred times with one worker, and with two.

    python benches/kill_test.py --kills 100 --out benches/results/kills-DATE

Workers are killed (SIGKILL) at random moments and restarted until the scan is complete, scan after
scan. Every store must be byte-identical to that of an uninterrupted scan.
"""

import random
import sys
import time
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent / "measuring"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from byte_model import byte_model, save
from ledger import figure, machine, table, write_record
from scan_workers import Job, assert_same_store, killed_until_complete, write_corpus

from densitrace import open_store


def differs(ours: Path, expected: Path) -> bool:
    """Whether a store differs from the expected one in tokens or shards; prints how."""
    try:
        assert_same_store(ours, expected)
    except AssertionError as error:
        click.echo(f"{ours.name}: {error}", err=True)
        return True
    return False


def record_of(folder: Path, kills: int) -> dict[str, Any]:
    """Scan and kill until the number of kills is reached, with one worker and with two."""
    corpus, model = folder / "corpus.jsonl", folder / "model"
    write_corpus(corpus)
    save(model, byte_model())
    Job(model, corpus, folder / "first").finished()  # slow: starts what forks the others
    whole, started = Job(model, corpus, folder / "whole"), time.monotonic()
    whole.finished()
    seconds = time.monotonic() - started
    rows = []
    for workers in (1, 2):
        moments, done, scans, differing = random.Random(workers), 0, 0, 0
        while done < kills:
            job = Job(model, corpus, folder / f"{workers}-{scans}")
            done += killed_until_complete(job, workers, seconds, moments)
            scans += 1
            differing += differs(job.out, whole.out)
        rows.append(
            {"workers": workers, "kills": done, "scans": scans, "stores that differ": differing}
        )
    store = open_store(whole.out)
    return {
        "date": str(date.today()),
        "machine": machine(),
        "parts": store.n_parts,
        "tokens": int(store.attributes["tokens"]),
        "seconds of a whole scan": seconds,
        "rows": rows,
    }


def page(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    info, rows = record["machine"], record["rows"]
    return "\n".join(
        [
            f"# Killed at random moments, {record['date']}",
            "",
            f"`python benches/kill_test.py` on {info['processor']}, {info['threads']} threads. "
            f"Scans of {record['parts']} parts and {record['tokens']} tokens, "
            f"{figure(record['seconds of a whole scan'])} s when nothing happens. Each store is "
            "compared with that one shard by shard, and each token counted.",
            "",
            *table(rows[0], (map(str, row.values()) for row in rows)),
            "",
        ]
    )


@click.command()
@click.option("--kills", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="without suffix")
def main(kills: int, out: Path) -> None:
    """Run, and write OUT.json and OUT.md."""
    with TemporaryDirectory() as temporary:
        record = record_of(Path(temporary), kills)
    write_record(out, record, page(record))


if __name__ == "__main__":
    main()
