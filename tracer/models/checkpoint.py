"""The safetensors files of a model, read tensor by tensor.

Tensors are read, not mapped: pages of a mapping come in while a product waits for them, and go when
the system says so.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils.hub import cached_file

from ...errors import ModelError

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_LINE = 64  # bytes
_AT_ONCE = 1 << 20  # bytes that are converted at a time
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Stored:
    """Where a tensor is."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # of its bytes in the file


class Checkpoint:
    """The tensors of a model by the names of its state dict.

    Args:
        model_id: the folder or hub id, for messages.
        files: its safetensors files.

    Raises:
        ModelError: a file that cannot be read.
    """

    def __init__(self, model_id: str, files: Iterable[Path]) -> None:
        self.model_id = model_id
        self.stored: dict[str, Stored] = {}
        for file in files:
            try:
                self.stored |= _contents(file)
            except (OSError, SafetensorError) as error:
                raise self.unusable(f"{file.name} cannot be read ({error})") from error

    @classmethod
    def of(cls, model_id: str) -> "Checkpoint":
        """The checkpoint of a local folder or a hub id: one file, or several with an index.

        Raises:
            ModelError: there is none in safetensors, or a file of it is missing.
        """
        whole = _file(model_id, _WHOLE)
        if whole is not None:
            return cls(model_id, [whole])
        index = _file(model_id, _INDEX)
        if index is None:
            raise ModelError(
                f"model {model_id!r} holds no {_WHOLE} and no {_INDEX}: only weights in "
                "safetensors are read block by block"
            )
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = {name: _file(model_id, name) for name in names}
        for name, file in files.items():
            if file is None:
                raise ModelError(f"model {model_id!r} cannot be loaded: {name} is missing")
        return cls(model_id, [file for file in files.values() if file is not None])

    def unusable(self, reason: str) -> ModelError:
        """What is raised where the checkpoint cannot be used."""
        return ModelError(f"model {self.model_id!r} cannot be loaded: {reason}")

    @property
    def dtype(self) -> torch.dtype:
        """Of its first tensor of floating point."""
        dtypes = (stored.dtype for stored in self.stored.values())
        return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)

    def rename(self, expected: Mapping[str, Tensor], renamed: Callable[[str], str]) -> list[str]:
        """Take the names of a state dict, and forget what it does not have.

        Args:
            expected: the state dict.
            renamed: the name in the state dict of what the files call otherwise.

        Returns:
            The names that are missing.

        Raises:
            ModelError: a tensor of another shape.
        """
        found = {}
        for own, stored in self.stored.items():
            name = own if renamed(own) not in expected else renamed(own)
            if name not in expected:
                continue
            if stored.shape != expected[name].shape:
                needed = f"{list(expected[name].shape)} is needed"
                raise self.unusable(f"{own} has shape {list(stored.shape)}, {needed}")
            found[name] = stored
        self.stored = found
        return sorted(expected.keys() - found.keys())

    def room(self, name: str, dtype: torch.dtype) -> int:
        """Bytes in which `read` finds a place for a tensor: a multiple of a cache line."""
        size = dtype.itemsize * prod(self.stored[name].shape)
        return _LINE * (2 + size // _LINE)

    def read(self, name: str, dtype: torch.dtype, into: Tensor | None = None) -> Tensor:
        """A tensor, converted to a dtype, on the host.

        Args:
            into: uint8 [>= room(name, dtype)] memory to read into, which starts a cache line; by
                default, memory of its own.

        Raises:
            ModelError: the file is gone, or shorter than it was.
        """
        stored, shift = self.stored[name], 0
        if into is None:
            into = torch.empty(self.room(name, dtype), dtype=torch.uint8)
        if stored.dtype == dtype:
            # Where a mapping of the file would have it within a cache line: matrix products give
            # other last bits elsewhere, and results are to be those of the same model in memory.
            shift = stored.start % _LINE // dtype.itemsize * dtype.itemsize
        size = dtype.itemsize * prod(stored.shape)
        flat = into[shift : shift + size].view(dtype)
        try:
            with stored.file.open("rb", buffering=0) as file:
                file.seek(stored.start)
                if stored.dtype == dtype:
                    _fill(file, flat)
                else:
                    _convert(file, stored.dtype, flat)
        except OSError as error:
            raise self.unusable(f"{stored.file.name} cannot be read ({error})") from error
        return flat.view(stored.shape)


def _fill(file: FileIO, flat: Tensor) -> None:
    """The next bytes of a file into a tensor [n]."""
    left = flat.view(torch.uint8).numpy().data
    while left:  # one call reads 2 GiB at most
        count = file.readinto(left)
        if not count:
            raise OSError("it is shorter than its header says")
        left = left[count:]


def _convert(file: FileIO, dtype: torch.dtype, flat: Tensor) -> None:
    """The same for numbers of another dtype, a cached number of them at a time."""
    some = torch.empty(_AT_ONCE // dtype.itemsize, dtype=dtype)
    for into in flat.split(len(some)):
        _fill(file, some[: len(into)])
        into.copy_(some[: len(into)])


def incomplete(model_id: str, missing: Iterable[str]) -> ModelError:
    """What is raised where weights are missing."""
    names = sorted(missing)
    return ModelError(
        f"model {model_id!r} lacks {len(names)} of its weights, {names[0]} among them; "
        "a complete checkpoint is needed"
    )


def _file(model_id: str, name: str) -> Path | None:
    folder = Path(model_id)
    if folder.is_dir():
        return folder / name if (folder / name).exists() else None
    try:
        found = cached_file(model_id, name)
    except OSError:  # what transformers raises for a file that the hub does not have
        return None
    return None if found is None else Path(found)


def _contents(file: Path) -> dict[str, Stored]:
    """What a file holds: its first 8 bytes are the length of a header in JSON, data follow."""
    with safe_open(file, framework="pt", backend="pread"):
        pass  # the library knows what a sound header is
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    contents = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise SafetensorError(f"{name} is stored as {entry['dtype']}")
        start, _ = entry["data_offsets"]
        contents[name] = Stored(
            file, _DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + start
        )
    return contents
