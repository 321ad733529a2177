"""Files and folders that survive a crash: written aside, flushed, renamed into place."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Failures to write the store at `path` become one line."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"store {str(path)!r} cannot be written: {error.strerror or error}; "
            "parts that are done stay, run the same scan again to go on"
        ) from error


def check_writable(folder: Path) -> None:
    """StoreError if nothing can be written in a folder; nothing stays there."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(
            f"folder {str(folder)!r} cannot be written ({error.strerror}); give the store "
            "another place"
        ) from error


def put_in_place(staging: Path, path: Path) -> None:
    """Rename a planned store to its path; what was there is removed once the new one is there."""
    replaced = staging.with_suffix(".replaced")
    if path.exists():
        path.rename(replaced)
    staging.rename(path)
    flush(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def replace_durably(path: Path, data: bytes) -> None:
    """Write a small file that is there whole or not at all, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(data)
        flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


def flush(path: Path) -> None:
    """Make a file or folder durable; a chunk that holds only the fill value has no file."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
