"""Results of the benches on a device: rows of named figures, written as JSON and as tables.

Rows are printed and written when they are added: an interrupted bench keeps its measurements.
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
from ledger import figure, machine, table

Figures = dict[str, float | str]


@cache
def device_info() -> dict[str, Any]:
    """The machine: processor, GPU and versions, without the host's name."""
    info = machine() | {"triton": version("triton")}
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        info["gpu"] = torch.cuda.get_device_name()
        info["capability"] = f"sm_{major}{minor}"
        info["cuda"] = torch.version.cuda
    return info


def line(section: str, name: str, figures: Figures) -> str:
    """A row formatted for the terminal.

    Example:
        >>> line("ops", "SDPA", {"ms": 0.12345, "by": "torch"})
        'ops | SDPA | ms 0.123, by torch'
    """
    listed = ", ".join(f"{key} {figure(value)}" for key, value in figures.items())
    return f"{section} | {name} | {listed}"


@dataclass
class DeviceRecord:
    """Sections of rows; a row is a name with figures.

    Attributes:
        command: the command that produced the record.
        stem: STEM.json and STEM.md are rewritten with every row; None writes nothing.
        say: called with every row.
    """

    command: str = "benches/gpu.sh"
    stem: Path | None = None
    say: Callable[[str], None] = lambda _: None
    sections: dict[str, list[tuple[str, Figures]]] = field(default_factory=dict)

    def add(self, section: str, name: str, **figures: float | str) -> None:
        """Add a row; underscores in the names of figures become spaces."""
        named = {key.replace("_", " "): value for key, value in figures.items()}
        self.sections.setdefault(section, []).append((name, named))
        self.say(line(section, name, named))
        if self.stem is not None:
            self.write(self.stem)

    def page(self) -> str:
        """Markdown: one table per section, with a column for every figure that occurs in it."""
        info = ", ".join(f"{name} {value}" for name, value in device_info().items())
        lines = [f"# Benchmarks on a device, {date.today()}", "", f"`{self.command}` on {info}."]
        for section, rows in self.sections.items():
            columns = list(dict.fromkeys(key for _, figures in rows for key in figures))
            cells = (
                [name, *(figure(figures.get(column)) for column in columns)]
                for name, figures in rows
            )
            lines += ["", f"## {section}", "", *table(["", *columns], cells)]
        return "\n".join(lines) + "\n"

    def write(self, stem: Path) -> None:
        """Write STEM.json and STEM.md."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        rows = {
            section: [{"name": name, **figures} for name, figures in rows]
            for section, rows in self.sections.items()
        }
        record = {"date": str(date.today()), "device": device_info(), "sections": rows}
        _replace(stem.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
        _replace(stem.with_suffix(".md"), self.page())


def _replace(path: Path, text: str) -> None:
    """Replace a file atomically, so that readers never see half of it."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
