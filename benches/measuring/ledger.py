"""The ledger: every run of all benches as one JSON file and one Markdown table.

    python benches/measuring/ledger.py    # prints the path of the next record

Records are benches/results/<processor>-<threads>t-<date>, with -2, -3, ... for further records of a
day; they are never overwritten.
"""

import ast
import json
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from itertools import count, groupby
from pathlib import Path
from typing import Any

import torch
import transformers

BENCHES = Path(__file__).parents[1]
RESULTS = BENCHES / "results"
NO_SECONDS = {"test_memory.py"}  # benches whose time means nothing


def machine() -> dict[str, Any]:
    """The machine: processor, threads and versions, without the host's name."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def processor() -> str:
    """The processor's model name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def slug(processor: str, threads: int) -> str:
    """A machine as part of a file name.

    Example:
        >>> slug("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", 28)
        'intel-xeon-e5-2680-v4-28t'
    """
    name = re.sub(r"@.*|\((r|tm)\)|\b(cpu|processor|\d+-core)\b", " ", processor.lower())
    return f"{re.sub(r'[^a-z0-9]+', '-', name).strip('-')}-{threads}t"


def new_record(folder: Path, machine_slug: str, day: date) -> Path:
    """The path of a new record (JSON) that does not exist yet."""
    ends = ("" if number == 1 else f"-{number}" for number in count(1))
    paths = (folder / f"{machine_slug}-{day}{end}.json" for end in ends)
    return next(path for path in paths if not path.exists())


# ---- the table -------------------------------------------------------------------------------


def slim(record: dict[str, Any]) -> None:
    """Drop what nobody reads from pytest-benchmark's record: options and single rounds."""
    commit = record["commit_info"]
    record["commit_info"] = {"id": commit["id"][:10], "dirty": commit["dirty"]}
    for entry in record["benchmarks"]:
        entry.pop("options", None)
        entry["stats"].pop("data", None)


def page(record: dict[str, Any]) -> str:
    """A record as Markdown, with a section per bench file."""
    info, commit = record["machine_info"], record["commit_info"]
    lines = [
        f"# Benchmarks, {record['datetime'][:10]}",
        "",
        f"`make bench` on {info['processor']}, {info['threads']} threads, Python {info['python']}, "
        f"torch {info['torch']}, transformers {info['transformers']}; commit {commit['id']}"
        f"{', with changes' if commit['dirty'] else ''}.",
        "",
        "Seconds are the median and, in brackets, the middle half of the rounds; so are ratios, "
        "each round over what was timed just before it.",
    ]
    for name, entries in groupby(record["benchmarks"], _file):
        lines += section(name, list(entries))
    return "\n".join(lines) + "\n"


def _file(entry: dict[str, Any]) -> str:
    return Path(entry["fullname"].split("::")[0]).name


def section(name: str, entries: list[dict[str, Any]]) -> Iterator[str]:
    """The rows of one bench file, under the question that it asks."""
    notes = list(dict.fromkeys(key for entry in entries for key in entry["extra_info"]))
    notes = [key for key in notes if key != "ratio"]
    timed = name not in NO_SECONDS
    yield from ("", f"## {name}", "", _question(name), "")
    header = ["", *(["time"] if timed else []), "ratio", *notes]
    yield from table(header, (_cells(entry, timed, notes) for entry in entries))


def _cells(entry: dict[str, Any], timed: bool, notes: list[str]) -> list[str]:
    cells = [entry["name"].removeprefix("test_").replace("|", "\\|")]
    if timed:
        cells.append(_time(entry["stats"]))
    cells.append(_ratio(entry["extra_info"].get("ratio")))
    return cells + [figure(entry["extra_info"].get(key)) for key in notes]


def _question(name: str) -> str:
    source = (BENCHES / name).read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").split("\n", 1)[0]


def _time(stats: dict[str, float]) -> str:
    median = stats["median"]
    unit, factor = ("s", 1) if median >= 1 else ("ms", 1e3) if median >= 1e-3 else ("µs", 1e6)
    middle = " to ".join(figure(stats[key] * factor) for key in ("q1", "q3"))
    return f"{figure(median * factor)} {unit} ({middle})"


def _ratio(ratio: dict[str, Any] | None) -> str:
    if ratio is None:
        return ""
    q1, median, q3 = (figure(ratio[key]) for key in ("q1", "median", "q3"))
    return f"{median}{'' if q1 == q3 else f' ({q1} to {q3})'} x {ratio['to']}"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """The lines of a Markdown table.

    Example:
        >>> table(["op", "ms"], [["SDPA", "1.5"]])
        ['| op | ms |', '| --- | --- |', '| SDPA | 1.5 |']
    """
    header = list(header)
    return [table_row(header), "|" + " --- |" * len(header), *map(table_row, rows)]


def table_row(cells: Iterable[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def figure(value: float | str | None) -> str:
    """Format a number with three significant digits, from a million on in millions.

    Example:
        >>> figure(12_345_678), figure(0.12345)
        ('12.3 M', '0.123')
    """
    if value is None or isinstance(value, str):
        return value or ""
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.1f} M"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def write_record(out: Path, record: Mapping[str, Any], page: str) -> None:
    """Write a script's results as OUT.json and, in Markdown, OUT.md."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(page, encoding="utf-8")
    sys.stdout.write(f"wrote {out.with_suffix('.md')}\n")


if __name__ == "__main__":
    here = slug(processor(), torch.get_num_threads())
    sys.stdout.write(f"{new_record(RESULTS, here, date.today())}\n")
