"""Where a store lies: a folder, or a bucket behind a URL. Bytes by key, made durable.

What is put is there whole or not at all, whatever happens: in a folder it is written aside, flushed
and renamed; a bucket's own writes are so. What is created is there before anybody else's or not at
all, which is all that workers need to agree on who does what.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import StoreError

if TYPE_CHECKING:
    import obstore.store


class Place(Protocol):
    """Bytes by key; a key is a relative path with "/"."""

    @property
    def path(self) -> "Path | str":
        """What the user calls it."""
        ...

    def exists(self) -> bool:
        """Whether anything is there."""
        ...

    def check_writable(self) -> None:
        """StoreError if nothing can be written; nothing stays there."""
        ...

    def get(self, key: str) -> bytes | None:
        """What is there; None where nothing is."""
        ...

    def size(self, key: str) -> int:
        """Bytes of what is there; 0 where nothing is."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write durably, in place of what was there."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Write unless something is there; whether it was written."""
        ...

    def delete(self, key: str) -> None:
        """Remove what is there, if anything is."""
        ...

    def names(self, folder: str) -> list[str]:
        """The names of what lies directly in a folder, in no order."""
        ...

    def settle(self, keys: Iterable[str]) -> None:
        """Make durable what somebody else wrote."""
        ...

    def staging(self) -> AbstractContextManager[Path]:
        """A folder on a disk to make ready in what will be published; it is removed afterwards."""
        ...

    def publish(self, folder: Path, first: str) -> None:
        """Replace everything by what a folder holds; whoever finds the file `first` finds all."""
        ...


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Failures to write the store at `path` become one line."""
    try:
        yield
    except _errors() as error:
        reason = getattr(error, "strerror", None) or _first_line(error)
        raise StoreError(
            f"store {str(path)!r} cannot be written: {reason}; "
            "parts that are done stay, run the same scan again to go on"
        ) from error


def place_of(path: str | Path) -> Place:
    """The place of a path or URL (s3://, gs://, az://, memory://).

    Raises:
        StoreError: a URL of an unknown kind, or obstore is not installed.
    """
    return Bucket(str(path)) if "://" in str(path) else Folder(Path(path))


# ---- a folder ------------------------------------------------------------------------------------


class Folder:
    """A folder on a disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        """See `Place`."""
        return self.path.exists() or self.path.is_symlink()

    def check_writable(self) -> None:
        """See `Place`; of a folder that is not there, its nearest parent is tried."""
        folder = self.path.absolute()
        while not folder.exists():
            folder = folder.parent
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise StoreError(
                f"folder {str(folder)!r} cannot be written ({error.strerror}); give the store "
                "another place"
            ) from error

    def get(self, key: str) -> bytes | None:
        """See `Place`."""
        try:
            return (self.path / key).read_bytes()
        except FileNotFoundError:
            return None

    def size(self, key: str) -> int:
        """See `Place`."""
        try:
            return (self.path / key).stat().st_size
        except FileNotFoundError:
            return 0

    def put(self, key: str, data: bytes) -> None:
        """See `Place`."""
        with self._aside(key, data) as (temporary, path):
            temporary.replace(path)
        _flush(path.parent)

    def create(self, key: str, data: bytes) -> bool:
        """See `Place`."""
        with self._aside(key, data) as (temporary, path):
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        return True

    @contextmanager
    def _aside(self, key: str, data: bytes) -> Iterator[tuple[Path, Path]]:
        """A file with the data beside its place, and that place."""
        path = self.path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            temporary.write_bytes(data)
            _flush(temporary)
            yield temporary, path
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, key: str) -> None:
        """See `Place`."""
        (self.path / key).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        """See `Place`."""
        try:
            found = [path.name for path in (self.path / folder).iterdir()]
            return [name for name in found if not name.startswith(".")]
        except FileNotFoundError:
            return []

    def settle(self, keys: Iterable[str]) -> None:
        """See `Place`."""
        paths = [self.path / key for key in keys]
        for path in (*paths, *{path.parent for path in paths}):
            _flush(path)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """See `Place`: a folder beside, which can be renamed."""
        folder = self._beside("planning")
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _beside(self, purpose: str) -> Path:
        path = self.path.absolute()
        return path.parent / f".{path.name}.{uuid.uuid4().hex}.{purpose}"

    def publish(self, folder: Path, first: str) -> None:
        """See `Place`: the folder is renamed."""
        Folder(folder).settle(_files(folder))
        replaced = self._beside("replaced")
        try:
            if self.path.exists():
                self.path.rename(replaced)
            folder.rename(self.path)
            _flush(self.path.absolute().parent)
        finally:
            shutil.rmtree(replaced, ignore_errors=True)


def _files(folder: Path) -> list[str]:
    """The keys of all files of a folder."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in paths]


def _flush(path: Path) -> None:
    """Make a file or folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- a bucket ------------------------------------------------------------------------------------


class Bucket:
    """A prefix of an object store; credentials and endpoints come from the environment."""

    def __init__(self, url: str) -> None:
        self.path = url
        self.store = _object_store(url)

    def exists(self) -> bool:
        """See `Place`; StoreError if it cannot be reached."""
        try:
            return any(chunk for chunk in self._listed("", 1))
        except OSError as error:
            raise StoreError(
                f"store {self.path!r} cannot be reached: {_first_line(error)}"
            ) from error

    def check_writable(self) -> None:
        """See `Place`: with a file that is put and deleted."""
        probe = f".{uuid.uuid4().hex}"
        try:
            self.put(probe, b"")
            self.delete(probe)
        except OSError as error:
            raise StoreError(
                f"store {self.path!r} cannot be written: {_first_line(error)}"
            ) from error

    def get(self, key: str) -> bytes | None:
        """See `Place`."""
        try:
            with _as_os_error():
                return bytes(self.store.get(key).bytes())
        except FileNotFoundError:
            return None

    def size(self, key: str) -> int:
        """See `Place`."""
        try:
            with _as_os_error():
                return int(self.store.head(key)["size"])
        except FileNotFoundError:
            return 0

    def put(self, key: str, data: bytes) -> None:
        """See `Place`."""
        with _as_os_error():
            self.store.put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        """See `Place`: a conditional put."""
        from obstore.exceptions import AlreadyExistsError

        try:
            with _as_os_error():
                self.store.put(key, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def delete(self, key: str) -> None:
        """See `Place`."""
        try:
            with _as_os_error():
                self.store.delete(key)
        except FileNotFoundError:
            pass

    def names(self, folder: str) -> list[str]:
        """See `Place`."""
        prefix = f"{folder}/"
        found = (item["path"] for chunk in self._listed(prefix) for item in chunk)
        return [path.removeprefix(prefix) for path in found]

    def settle(self, keys: Iterable[str]) -> None:
        """Nothing to do: what a bucket has taken is durable."""

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """See `Place`: a folder for temporary files."""
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)

    def publish(self, folder: Path, first: str) -> None:
        """See `Place`: `first` goes first of the old files and comes last of the new."""
        self.delete(first)
        for chunk in list(self._listed("")):
            for item in chunk:
                self.delete(item["path"])
        for key in sorted(_files(folder), key=lambda key: key == first):
            self.put(key, (folder / key).read_bytes())

    def _listed(self, prefix: str, chunk_size: int = 1000) -> Iterator[list[dict[str, Any]]]:
        with _as_os_error():
            yield from self.store.list(prefix or None, chunk_size=chunk_size)


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Errors of an object store are errors of the system, as a disk's are."""
    from obstore.exceptions import AlreadyExistsError, BaseError

    try:
        yield
    except (OSError, AlreadyExistsError):
        raise
    except BaseError as error:
        raise OSError(_first_line(error)) from error


def _errors() -> tuple[type[Exception], ...]:
    """What a disk raises, and a bucket where one can be used at all."""
    try:
        from obstore.exceptions import BaseError
    except ImportError:
        return (OSError,)
    return OSError, BaseError


@cache
def _object_store(url: str) -> "obstore.store.ObjectStore":
    """One client an URL; what lies in memory is there for the whole process."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import MemoryStore, from_url
    except ImportError as error:
        raise StoreError(f"store {url!r} needs obstore: pip install 'densitrace[cloud]'") from error
    if url.startswith("memory://"):
        return MemoryStore()
    try:
        return from_url(url)
    except (BaseError, ValueError) as error:
        raise StoreError(f"store {url!r} cannot be reached: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
