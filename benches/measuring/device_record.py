"""What the benches on a device found: rows of named figures, as JSON and as one table."""

import json
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ledger import figure, machine

Figures = dict[str, float | str]


def device_info() -> dict[str, Any]:
    """What runs: the GPU, versions, without the host's name."""
    found = machine() | {"triton": version("triton")}
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        found["gpu"] = torch.cuda.get_device_name()
        found["capability"] = f"sm_{major}{minor}"
        found["cuda"] = torch.version.cuda
    return found


@dataclass
class DeviceRecord:
    """Sections of rows; a row is a name and figures."""

    command: str = "benches/gpu.sh"  # that made it
    sections: dict[str, list[tuple[str, Figures]]] = field(default_factory=dict)

    def add(self, section: str, name: str, **figures: float | str) -> None:
        """One row; underscores in the names of figures stand for spaces."""
        named = {key.replace("_", " "): value for key, value in figures.items()}
        self.sections.setdefault(section, []).append((name, named))

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
        text = json.dumps(record, indent=1)
        stem.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
        stem.with_suffix(".md").write_text(self.page(), encoding="utf-8")
