"""Compare two records of the ledger: which rows changed, by ratios taken within each run.

    python benches/compare.py               # the newest record, and the one before it
    python benches/compare.py OLD.json NEW.json

Absolute times of two days are not comparable: machines are shared and clocks drift. So each row
also records its ratio to a baseline measured in the same run (the plain forward pass, torch's own
op), and only these ratios are compared.

Noise: a row's spread is the interquartile range of its ratio over the median. A row has moved if
the log of new over old exceeds both the sum of the two spreads and `FLOOR`, which covers
differences between builds and days. For normal errors and five rounds the sum is about 3 standard
errors of the difference of two medians.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
FLOOR = 0.03


class RecordError(click.ClickException):
    """A record is missing or unreadable; click prints its one-line message."""

    exit_code = 2


@dataclass(frozen=True)
class Ratio:
    """A row's time (or memory) over that of a baseline of the same run."""

    q1: float
    median: float
    q3: float

    def __post_init__(self) -> None:
        if not 0 < self.q1 <= self.median <= self.q3:
            raise ValueError(f"{self} is no ratio")

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        return (self.q3 - self.q1) / self.median


@dataclass(frozen=True)
class Record:
    """One run of all benches."""

    path: Path
    machine: tuple[str, int]  # processor and threads
    datetime: str  # ISO 8601, UTC
    rows: dict[tuple[str, str], Ratio]  # by name and baseline
    without: int  # rows that have no ratio


@dataclass(frozen=True)
class Movement:
    """A row present in both records."""

    name: str
    baseline: str
    old: Ratio
    new: Ratio

    @property
    def change(self) -> float:
        """Log of new over old."""
        return math.log(self.new.median / self.old.median)

    @property
    def noise(self) -> float:
        """What the change has to exceed to count as movement."""
        return max(FLOOR, self.old.spread + self.new.spread)

    @property
    def moved(self) -> bool:
        """Whether the change exceeds the noise."""
        return abs(self.change) > self.noise


# ---- records ---------------------------------------------------------------------------------


def read(path: Path) -> Record:
    """Read a record written by `make bench`.

    Raises:
        RecordError: the file is missing, or is not such a record.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        info = content["machine_info"]
        rows = {}
        for entry in content["benchmarks"]:
            if "ratio" in entry["extra_info"]:
                ratio = entry["extra_info"]["ratio"]
                figures = (float(ratio[name]) for name in ("q1", "median", "q3"))
                rows[_name(entry), str(ratio["to"])] = Ratio(*figures)
        machine = (info["processor"], info["threads"])
        without = len(content["benchmarks"]) - len(rows)
        return Record(path, machine, content["datetime"], rows, without)
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: not a record of `make bench` ({error!r})") from error


def _name(entry: dict[str, Any]) -> str:
    return str(entry["fullname"]).removeprefix("benches/")


def latest(folder: Path) -> tuple[Record, Record]:
    """The newest record of a folder and the one before it on the same machine: (old, new).

    Raises:
        RecordError: there are no two such records.
    """
    # Results of the other scripts have no `machine_info`: skip them.
    paths = [path for path in sorted(folder.glob("*.json")) if "machine_info" in path.read_text()]
    records = sorted(map(read, paths), key=lambda record: record.datetime)
    if not records:
        raise RecordError(f"{folder}: no record; `make bench` writes one")
    *earlier, new = records
    same = [record for record in earlier if record.machine == new.machine]
    if not same:
        raise RecordError(f"{new.path}: no earlier record of this machine to compare it with")
    return same[-1], new


def movements(old: Record, new: Record) -> list[Movement]:
    """Rows present in both records, the largest change first."""
    common = [Movement(*key, old.rows[key], new.rows[key]) for key in new.rows if key in old.rows]
    return sorted(common, key=lambda movement: -abs(movement.change))


# ---- what is shown ---------------------------------------------------------------------------


def show(old: Record, new: Record, console: Console) -> None:
    """Print the rows that moved as a table, then the rows that only one record has."""
    changes = movements(old, new)
    moved = [movement for movement in changes if movement.moved]
    console.print(f"old: {old.path.name}, new: {new.path.name}", highlight=False)
    if moved:
        console.print(table(moved))
    console.print(f"{len(moved)} of {len(changes)} rows moved, the others within noise")
    for title, record, other in (("old", old, new), ("new", new, old)):
        alone = [f"{name} (x {to})" for name, to in record.rows.keys() - other.rows.keys()]
        if alone:
            console.print(f"only in the {title} one:", ", ".join(sorted(alone)), markup=False)
        if record.without:
            console.print(f"without a ratio in the {title} one: {record.without} rows")


def table(moved: list[Movement]) -> Table:
    """A table with one line per row: its ratio in both records."""
    result = Table("row", "in times of", box=None)
    for heading in ("old", "new", "change", "noise"):
        result.add_column(heading, justify="right")
    for movement in moved:
        result.add_row(
            movement.name.replace("[", r"\["),
            movement.baseline,
            f"{movement.old.median:.3g}",
            f"{movement.new.median:.3g}",
            f"{'up' if movement.change > 0 else 'down'} {math.expm1(movement.change):+.0%}",
            f"{math.expm1(movement.noise):.0%}",
        )
    return result


@click.command()
@click.argument("records", nargs=-1, type=click.Path(path_type=Path))
def main(records: tuple[Path, ...]) -> None:
    """Say what moved from the record OLD to the record NEW; without them, take the newest two."""
    if records and len(records) != 2:
        raise RecordError(f"{len(records)} record given: two are compared, OLD and NEW")
    old, new = map(read, records) if records else latest(RESULTS)
    show(old, new, Console())


if __name__ == "__main__":
    main()
