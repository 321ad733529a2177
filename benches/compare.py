"""What moved between two records of the ledger, by ratios within each run.

    python benches/compare.py               # the newest record, and the one before it
    python benches/compare.py OLD.json NEW.json

Seconds of two days are not comparable: machines are shared and clocks drift. Each row therefore
notes its ratio to a baseline that was timed, or measured, beside it in the same run (the plain
forward, torch's own op), and only ratios are compared here.

Noise: a row's spread is the quartile range of its ratio over the median. A row has moved when the
logarithm of new over old exceeds the sum of both spreads, and `FLOOR`, which is what another build
or another day moves at any rate. For normal errors and five rounds the sum is some 3 standard
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
    """A record that is missing or cannot be read; click ends with its one line."""

    exit_code = 2


@dataclass(frozen=True)
class Ratio:
    """A row against a baseline of its own run."""

    q1: float
    median: float
    q3: float

    def __post_init__(self) -> None:
        if not 0 < self.q1 <= self.median <= self.q3:
            raise ValueError(f"{self} is no ratio")

    @property
    def spread(self) -> float:
        """The quartile range, relative."""
        return (self.q3 - self.q1) / self.median


@dataclass(frozen=True)
class Record:
    """One run of all benches."""

    path: Path
    machine: tuple[str, int]  # processor and threads
    datetime: str  # ISO 8601, UTC
    rows: dict[tuple[str, str], Ratio]  # by name and baseline
    without: int  # rows that note no ratio


@dataclass(frozen=True)
class Movement:
    """A row that both records have."""

    name: str
    baseline: str
    old: Ratio
    new: Ratio

    @property
    def change(self) -> float:
        """Logarithm of new over old."""
        return math.log(self.new.median / self.old.median)

    @property
    def noise(self) -> float:
        """What the change has to exceed."""
        return max(FLOOR, self.old.spread + self.new.spread)

    @property
    def moved(self) -> bool:
        """Whether it does."""
        return abs(self.change) > self.noise


# ---- records ---------------------------------------------------------------------------------


def read(path: Path) -> Record:
    """A record as `make bench` writes it.

    Raises:
        RecordError: no such file, or something else in it.
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
    """The newest record of a folder, and the one before it of the same machine: (old, new).

    Raises:
        RecordError: no two such records.
    """
    # What other measurements left there has no machine, and is no record.
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
    """Rows of both records, the largest change first."""
    common = [Movement(*key, old.rows[key], new.rows[key]) for key in new.rows if key in old.rows]
    return sorted(common, key=lambda movement: -abs(movement.change))


# ---- what is shown ---------------------------------------------------------------------------


def show(old: Record, new: Record, console: Console) -> None:
    """What moved as a table, and in lines what did not or has no counterpart."""
    found = movements(old, new)
    moved = [movement for movement in found if movement.moved]
    console.print(f"old: {old.path.name}, new: {new.path.name}", highlight=False)
    if moved:
        console.print(table(moved))
    console.print(f"{len(moved)} of {len(found)} rows moved, the others within noise")
    for title, record, other in (("old", old, new), ("new", new, old)):
        alone = [f"{name} (x {to})" for name, to in record.rows.keys() - other.rows.keys()]
        if alone:
            console.print(f"only in the {title} one:", ", ".join(sorted(alone)), markup=False)
        if record.without:
            console.print(f"without a ratio in the {title} one: {record.without} rows")


def table(moved: list[Movement]) -> Table:
    """One line a row: its ratio in both records."""
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
