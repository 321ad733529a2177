"""What the benches on a device found: rows of named figures, as JSON and as one table.

A row is told and written when it is added: a bench that is stopped leaves what it has measured.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ledger import figure, machine

Figures = dict[str, float | str]


@cache
def device_info() -> dict[str, Any]:
    """What runs: the GPU, versions, without the host's name."""
    found = machine() | {"triton": version("triton")}
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        found["gpu"] = torch.cuda.get_device_name()
        found["capability"] = f"sm_{major}{minor}"
        found["cuda"] = torch.version.cuda
    return found


def line(section: str, name: str, figures: Figures) -> str:
    """A row for the terminal.

    Example:
        >>> line("ops", "SDPA", {"ms": 0.12345, "by": "torch"})
        'ops | SDPA | ms 0.123, by torch'
    """
    told = ", ".join(f"{key} {figure(value)}" for key, value in figures.items())
    return f"{section} | {name} | {told}"


@dataclass
class DeviceRecord:
    """Sections of rows; a row is a name and figures.

    Attributes:
        stem: where STEM.json and STEM.md are written with every row, if anywhere.
        say: told every row.
    """

    command: str = "benches/gpu.sh"  # that made it
    stem: Path | None = None
    say: Callable[[str], None] = lambda _: None
    sections: dict[str, list[tuple[str, Figures]]] = field(default_factory=dict)

    def add(self, section: str, name: str, **figures: float | str) -> None:
        """One row; underscores in the names of figures stand for spaces."""
        named = {key.replace("_", " "): value for key, value in figures.items()}
        self.sections.setdefault(section, []).append((name, named))
        self.say(line(section, name, named))
        if self.stem is not None:
            self.write(self.stem)

    def page(self) -> str:
        """Markdown: a table with the union of all figures for each section."""
        info = ", ".join(f"{name} {value}" for name, value in device_info().items())
        lines = [f"# Benchmarks on a device, {date.today()}", "", f"`{self.command}` on {info}."]
        for section, rows in self.sections.items():
            columns = list(dict.fromkeys(key for _, figures in rows for key in figures))
            lines += ["", f"## {section}", "", "| " + " | ".join(["", *columns]) + " |"]
            lines.append("|" + " --- |" * (len(columns) + 1))
            for name, figures in rows:
                cells = [name, *(figure(figures.get(column)) for column in columns)]
                lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    def write(self, stem: Path) -> None:
        """STEM.json and STEM.md."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        rows = {
            section: [{"name": name, **figures} for name, figures in rows]
            for section, rows in self.sections.items()
        }
        record = {"date": str(date.today()), "device": device_info(), "sections": rows}
        _replace(stem.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
        _replace(stem.with_suffix(".md"), self.page())


def _replace(path: Path, text: str) -> None:
    """Write a file that is whole at any time."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
