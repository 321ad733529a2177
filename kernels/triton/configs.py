"""Pinned tile sizes, so that two runs of a kernel agree: configs/*.json.

A file is named after a compute capability ("sm_90"); `default.json` serves all others. It maps an
op, the bits of the numbers it reads and the width of its head tiles to tile sizes, warps and
pipeline stages.
"""

import json
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "configs"


Table = dict[str, dict[str, dict[str, dict[str, int]]]]  # op, bits, width, argument


@cache
def _table(name: str) -> Table:
    path = FOLDER / f"{name}.json"
    found: Table = json.loads(path.read_text(encoding="utf-8"))
    return found


def available() -> list[str]:
    """Names of all tables."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def table_for(device: torch.device) -> str:
    """The table of a device's compute capability, or the default."""
    if device.type != "cuda":
        return "default"
    major, minor = torch.cuda.get_device_capability(device)
    name = f"sm_{major}{minor}"
    return name if (FOLDER / f"{name}.json").is_file() else "default"


def widths(op: str, dtype: torch.dtype, table: str) -> list[int]:
    """The head widths that a table lists for an op and numbers of a size."""
    return sorted(map(int, _table(table)[op].get(f"{8 * dtype.itemsize}-bit", ())))


def launch(op: str, width: int, tensor: Tensor) -> dict[str, int]:
    """Tile sizes, num_warps and num_stages of a launch: those of the next wider head listed.

    Args:
        op: its name in the tables.
        width: of its widest head tile.
        tensor: of the dtype and on the device of the tiles.
    """
    table = table_for(tensor.device)
    listed = widths(op, tensor.dtype, table)
    fitting = next((size for size in listed if size >= width), listed[-1])
    return dict(_table(table)[op][f"{8 * tensor.dtype.itemsize}-bit"][str(fitting)])
