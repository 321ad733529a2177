"""Reads the safetensors files of a model tensor by tensor.

Files are read, not memory-mapped: mapped pages would be loaded during the computation that needs
them, and evicted whenever the system decides.
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
_LINE = 64  # bytes of a cache line
_AT_ONCE = 1 << 20  # bytes converted at a time
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
    """Location and format of a tensor in a file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # byte offset in the file


class Checkpoint:
    """The stored tensors of a model, by name.

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
        """Open the checkpoint of a local folder or hub id: one file, or several with an index.

        Raises:
            ModelError: there are no safetensors files, or one is missing.
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
        """The error to raise if the checkpoint cannot be used."""
        return ModelError(f"model {self.model_id!r} cannot be loaded: {reason}")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point tensor; float32 without one."""
        dtypes = (stored.dtype for stored in self.stored.values())
        return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)

    def rename(self, expected: Mapping[str, Tensor], renamed: Callable[[str], str]) -> list[str]:
        """Rename the tensors as in a state dict, and drop those that it does not have.

        Args:
            expected: the state dict.
            renamed: maps a name in the files to a name in the state dict.

        Returns:
            The names of missing tensors.

        Raises:
            ModelError: a tensor has another shape than expected.
        """
        kept = {}
        for own, stored in self.stored.items():
            name = own if renamed(own) not in expected else renamed(own)
            if name not in expected:
                continue
            if stored.shape != expected[name].shape:
                needed = f"{list(expected[name].shape)} is needed"
                raise self.unusable(f"{own} has shape {list(stored.shape)}, {needed}")
            kept[name] = stored
        self.stored = kept
        return sorted(expected.keys() - kept.keys())

    def room(self, name: str, dtype: torch.dtype) -> int:
        """Bytes of memory that `read` needs for a tensor: a multiple of a cache line."""
        size = dtype.itemsize * prod(self.stored[name].shape)
        return _LINE * (2 + size // _LINE)

    def read(self, name: str, dtype: torch.dtype, into: Tensor | None = None) -> Tensor:
        """Read a tensor to the host and convert it to a dtype.

        Args:
            into: uint8 [>= room(name, dtype)], memory to read into, aligned to a cache line; newly
                allocated by default.

        Raises:
            ModelError: the file is gone or truncated.
        """
        stored, shift = self.stored[name], 0
        if into is None:
            into = torch.empty(self.room(name, dtype), dtype=torch.uint8, device="cpu")
        if stored.dtype == dtype:
            # Use the same offset within a cache line as a memory mapping of the file would have:
            # the last bits of matrix products depend on it, and results must equal those of the
            # same model loaded normally.
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
    """Read the next bytes of a file into a tensor [n]."""
    remaining = flat.view(torch.uint8).numpy().data
    while remaining:  # one call reads at most 2 GiB
        count = file.readinto(remaining)
        if not count:
            raise OSError("it is shorter than its header says")
        remaining = remaining[count:]


def _convert(file: FileIO, dtype: torch.dtype, flat: Tensor) -> None:
    """Read numbers of another dtype into a tensor, in chunks that fit in the cache."""
    buffer = torch.empty(_AT_ONCE // dtype.itemsize, dtype=dtype, device="cpu")
    for chunk in flat.split(len(buffer)):
        _fill(file, buffer[: len(chunk)])
        chunk.copy_(buffer[: len(chunk)])


def incomplete(model_id: str, missing: Iterable[str]) -> ModelError:
    """The error to raise if weights are missing."""
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
        path = cached_file(model_id, name)
    except OSError:  # raised by transformers if the hub does not have the file
        return None
    return None if path is None else Path(path)


def _contents(file: Path) -> dict[str, Stored]:
    """Parse a file's header: 8 bytes with the length of the JSON that follows, then the data."""
    with safe_open(file, framework="pt", backend="pread"):
        pass  # the library validates the header
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
            file=file,
            dtype=_DTYPES[entry["dtype"]],
            shape=tuple(entry["shape"]),
            start=8 + length + start,
        )
    return contents
