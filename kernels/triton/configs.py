"""Pinned tile sizes, so that two runs of a kernel agree: configs/*.json.

A file maps an op, the bits of its input dtype and the width of its head tiles to tile sizes, warps
and pipeline stages. `default.json` has all entries; a file named after a compute capability
("sm_90") overrides some of them on such GPUs. benches/tune_gpu.py writes these files; untuned
entries of "sm_90" are larger tiles than older GPUs have registers for.
"""

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "configs"
DEFAULT = "default"

# Products and sums fuse whatever Triton's default is, which 3.10 changes: two runs agree.
FUSED = {"enable_fp_fusion": True}

Config = dict[str, int]  # argument to value
Table = dict[str, dict[str, dict[str, Config]]]  # op, bits, width


class Key(NamedTuple):
    """Key of an entry in a table."""

    op: str
    bits: str
    width: str


def read(path: Path) -> Table:
    """The entries of one file, without the default's."""
    found: Table = json.loads(path.read_text(encoding="utf-8"))
    return found


@cache
def _table(name: str) -> Table:
    """The entries of a file merged over those of the default."""
    table = read(FOLDER / f"{DEFAULT}.json")
    if name != DEFAULT:
        for op, of_op in read(FOLDER / f"{name}.json").items():
            for bits, entries in of_op.items():
                table.setdefault(op, {}).setdefault(bits, {}).update(entries)
    return table


def available() -> list[str]:
    """Names of all tables."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def capability(device: torch.device) -> str:
    """Compute capability of a GPU as file names have it, e.g. "sm_90"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@cache  # called at every launch: must not query the driver or the file system
def _tuned(device: torch.device) -> str:
    name = capability(device)
    return name if (FOLDER / f"{name}.json").is_file() else DEFAULT


def table_for(device: torch.device) -> str:
    """Name of the table of a device's compute capability, or of the default."""
    return _tuned(device) if device.type == "cuda" else DEFAULT


def widths(op: str, dtype: torch.dtype, table: str) -> list[int]:
    """The head widths that a table lists for an op and the item size of a dtype, ascending."""
    return sorted(map(int, _table(table)[op].get(f"{8 * dtype.itemsize}-bit", ())))


def key(op: str, width: int, tensor: Tensor) -> Key:
    """Key of a launch's entry: the least listed width >= `width`, or the widest. See `launch`."""
    listed = widths(op, tensor.dtype, table_for(tensor.device))
    fitting = next((size for size in listed if size >= width), listed[-1])
    return Key(op, f"{8 * tensor.dtype.itemsize}-bit", str(fitting))


def entry(key: Key, table: str) -> Config:
    """Tile sizes, num_warps and num_stages that a table has at a key."""
    return dict(_table(table)[key.op][key.bits][key.width])


def launch(op: str, width: int, tensor: Tensor) -> Config:
    """Tile sizes and compiler options of a launch.

    Args:
        op: name of the op in the tables.
        width: width of its widest head tile.
        tensor: any tensor with the dtype and device of the tiles.
    """
    return entry(key(op, width, tensor), table_for(tensor.device)) | FUSED


def all_keys(table: str = DEFAULT) -> list[Key]:
    """Keys of all entries of a table."""
    return [
        Key(op, bits, width)
        for op, of_op in _table(table).items()
        for bits, entries in of_op.items()
        for width in entries
    ]
