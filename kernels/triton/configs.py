"""Pinned tile sizes, so that two runs of a kernel agree: configs/*.json.

A file maps an op, the bits of its widest input dtype and the width of its head tiles to tile sizes,
warps and pipeline stages. Ops on edges may have entries of their own for a kind of weight, appended
to the op's name ("edge_levels_cosine"). `default.json` has all entries; a file named after a
compute capability ("sm_90") overrides some of them on such GPUs. benches/tune_gpu.py writes these
files; untuned entries of "sm_90" are larger tiles than older GPUs have registers for.
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


def _bits(dtype: torch.dtype) -> str:
    return f"{8 * dtype.itemsize}-bit"


def widths(op: str, dtype: torch.dtype, table: str) -> list[int]:
    """The head widths that a table lists for an op and the item size of a dtype, ascending."""
    return sorted(map(int, _table(table).get(op, {}).get(_bits(dtype), ())))


def key(op: str, width: int, *factors: Tensor, kind: str = "norm") -> Key:
    """Key of a launch's entry: the least listed width >= `width`, or the widest. See `launch`."""
    widest = max((factor.dtype for factor in factors), key=lambda dtype: dtype.itemsize)
    table = table_for(factors[0].device)
    of_kind = f"{op}_{kind}"
    name = of_kind if widths(of_kind, widest, table) else op
    listed = widths(name, widest, table)
    fitting = next((size for size in listed if size >= width), listed[-1])
    return Key(name, _bits(widest), str(fitting))


def entry(key: Key, table: str) -> Config:
    """Tile sizes, num_warps and num_stages that a table has at a key."""
    return dict(_table(table)[key.op][key.bits][key.width])


def launch(op: str, width: int, *factors: Tensor, kind: str = "norm") -> Config:
    """Tile sizes and compiler options of a launch.

    Args:
        op: name of the op in the tables.
        width: width of its widest head tile.
        factors: the tensors that it multiplies; the widest dtype decides.
        kind: of edge weight. The name of an op may have it appended: "edge_levels_cosine".
    """
    return entry(key(op, width, *factors, kind=kind), table_for(factors[0].device)) | FUSED


def all_keys(table: str = DEFAULT) -> list[Key]:
    """Keys of all entries of a table."""
    return [
        Key(op, bits, width)
        for op, of_op in _table(table).items()
        for bits, entries in of_op.items()
        for width in entries
    ]
