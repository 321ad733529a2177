"""Durable storage of bytes by key: in a folder, or in a bucket behind a URL.

`put` is atomic: in a folder it writes to a temporary file, flushes and renames it; the writes of a
bucket are atomic by themselves. `create` succeeds for the first writer only, which is all that
workers need to agree on who does which part.
"""

import errno
import glob
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import InputError, StoreError, first_line
from .indices import shown
from .processes import Process

if TYPE_CHECKING:
    import obstore.store

KEPT = "kept"  # subfolder of a `staging` folder: progress that survives an interruption
LAST = "zarr.json"  # published last: if it is there, everything is
TICKET = ".planning"  # key in a bucket, present while something is being published


class Storage(Protocol):
    """Bytes by key; a key is a relative path with "/"."""

    @property
    def path(self) -> "Path | str":
        """The path or URL that the user gave."""
        ...

    def exists(self) -> bool:
        """Return whether anything is stored."""
        ...

    def unfinished(self) -> bool:
        """Return whether the content is incomplete: a `publish` is running or was interrupted."""
        ...

    def tidy(self) -> None:
        """Remove leftovers of dead processes, except a `KEPT` folder that may still be used."""
        ...

    def check_writable(self) -> None:
        """Raise StoreError if nothing can be written; leaves no trace."""
        ...

    def get(self, key: str) -> bytes | None:
        """Return the value of a key, or None."""
        ...

    def size(self, key: str) -> int:
        """Return the bytes of a key's value, 0 if there is none."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write durably and atomically, replacing an earlier value."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Write unless the key exists; return whether it was written."""
        ...

    def delete(self, key: str) -> None:
        """Remove a key if it exists."""
        ...

    def files(self, folder: str) -> dict[str, int]:
        """Return the sizes in bytes of the files directly in a folder, by name, unordered."""
        ...

    def make_durable(self, keys: Iterable[str]) -> None:
        """Make keys durable that were written by other means than `put`."""
        ...

    def staging(self) -> AbstractContextManager[Path]:
        """Provide a local folder to prepare a `publish` in; it is removed afterwards.

        If an OSError or StoreError leaves the context, or the process dies, the folder's `KEPT`
        survives and is moved into the next staging folder.
        """
        ...

    def publish(self, folder: Path, ticket: bytes, replace: bool) -> bool:
        """Store everything in a folder, `LAST` last.

        Args:
            folder: of `staging`.
            ticket: identifies the content: equal for all who would publish the same.
            replace: replace what is stored; otherwise only unfinished content is replaced.

        Returns:
            Whether it was published; False if another process was first.
        """
        ...


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn errors in writing the store at `path` into a StoreError."""
    try:
        yield
    except _errors() as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise StoreError(
            f"store {str(path)!r} cannot be written: {reason}; "
            "finished parts are kept, run the same scan again to continue"
        ) from error


def storage_of(path: str | Path) -> Storage:
    """Return the storage of a path or URL (s3://, gs://, az://, memory://).

    Raises:
        StoreError: a URL of an unknown kind, or obstore is not installed.
        InputError: it is neither text nor a path.
    """
    if not isinstance(path, str | Path):
        raise InputError(f"path={shown(path)}: the folder or URL of a store is needed")
    return Bucket(str(path)) if "://" in str(path) else Folder(Path(path))


# ---- a folder ------------------------------------------------------------------------------------

NOBODY = Process("nowhere", 0)  # owner of kept folders


class Folder:
    """A folder on a disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        """See `Storage`: an empty folder is no content; publishing a store replaces it."""
        if self.path.is_symlink() or not self.path.is_dir():
            return self.path.is_symlink() or self.path.exists()
        try:
            return any(self.path.iterdir())
        except PermissionError:
            return True

    def unfinished(self) -> bool:
        """See `Storage`: always False, as a folder is published by renaming it."""
        return False

    def tidy(self) -> None:
        """See `Storage`."""
        planned = self.exists()
        for path in self._leftovers():
            if planned or not (path / KEPT).is_dir():
                _remove(path)
            else:
                _remove_all_but_kept(path)

    def check_writable(self) -> None:
        """See `Storage`; if the folder does not exist, tries its nearest parent that does."""
        folder = self.path.absolute()
        if not self.exists():
            if folder.is_mount() or folder == Path.cwd():
                raise StoreError(
                    f"folder {str(folder)!r} is the current folder or a mount point, which a store "
                    "cannot replace; choose a path in it for the store"
                )
            folder = folder.parent
        while not folder.exists():
            folder = folder.parent
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise StoreError(
                f"folder {str(folder)!r} cannot be written ({error.strerror}); choose another "
                "path for the store"
            ) from error

    def get(self, key: str) -> bytes | None:
        """See `Storage`."""
        try:
            return (self.path / key).read_bytes()
        except FileNotFoundError:
            return None

    def size(self, key: str) -> int:
        """See `Storage`."""
        try:
            return (self.path / key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def put(self, key: str, data: bytes) -> None:
        """See `Storage`."""
        with self._aside(key, data) as (temporary, path):
            temporary.replace(path)
        _flush(path.parent)

    def create(self, key: str, data: bytes) -> bool:
        """See `Storage`."""
        with self._aside(key, data) as (temporary, path):
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        _flush(path.parent)
        return True

    @contextmanager
    def _aside(self, key: str, data: bytes) -> Iterator[tuple[Path, Path]]:
        """Write the data to a temporary file beside its target; yield both paths."""
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
        """See `Storage`."""
        (self.path / key).unlink(missing_ok=True)

    def files(self, folder: str) -> dict[str, int]:
        """See `Storage`."""
        sizes: dict[str, int] = {}
        try:
            with os.scandir(self.path / folder) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        # It may have been renamed or removed meanwhile.
                        with suppress(FileNotFoundError):
                            sizes[entry.name] = entry.stat().st_size
        except FileNotFoundError:
            pass
        return sizes

    def make_durable(self, keys: Iterable[str]) -> None:
        """See `Storage`."""
        paths = [self.path / key for key in keys]
        for path in (*paths, *{path.parent for path in paths}):
            _flush(path)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """See `Storage`: a sibling folder, so that publishing is a rename."""
        folder = self._beside("planning")
        self._parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
        self._take_over(folder)
        try:
            yield folder
        except (OSError, StoreError):
            if (folder / KEPT).is_dir():
                _remove_all_but_kept(folder)
                folder.rename(self._beside("planning", NOBODY))
            raise
        finally:
            _remove(folder)

    def _beside(self, purpose: str, owner: Process | None = None) -> Path:
        """Return a new sibling path that names its owner, by default this process."""
        owner = Process.this() if owner is None else owner
        suffix = f"{uuid.uuid4().hex}.{owner.host}.{owner.number}.{purpose}"
        return self._parent / f".{self.path.name}.{suffix}"

    def _leftovers(self) -> Iterator[Path]:
        """Yield sibling paths of `_beside` whose owners are gone."""
        for path in self._parent.glob(f".{glob.escape(self.path.name)}.*.*.*.*"):
            _, *host, number, _ = path.name.removeprefix(f".{self.path.name}.").split(".")
            if number.isdecimal():
                owner = Process(".".join(host), int(number))
                if owner == NOBODY or owner.gone():
                    yield path

    def _take_over(self, folder: Path) -> None:
        """Move what a dead process of the same user kept into a new staging folder."""
        for path in self._leftovers():
            # Another process may take it first.
            with suppress(FileNotFoundError):
                if not (folder / KEPT).exists() and path.stat().st_uid == folder.stat().st_uid:
                    (path / KEPT).rename(folder / KEPT)
                    _remove(path)

    @property
    def _parent(self) -> Path:
        return self.path.absolute().parent

    def publish(self, folder: Path, ticket: bytes, replace: bool) -> bool:
        """See `Storage`: renames the folder."""
        Folder(folder).make_durable(_files(folder))
        replaced = self._beside("replaced")
        try:
            if replace and self.exists():
                self.path.rename(replaced)
            with suppress(FileNotFoundError):
                shutil.copymode(self.path, folder)  # of an empty folder, which it replaces
            try:
                folder.rename(self.path)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return False
                raise
            _flush(self._parent)
        finally:
            _remove(replaced)
        return True


def _remove_all_but_kept(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != KEPT:
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a folder with its content, a link or a file, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _files(folder: Path) -> list[str]:
    """Return the keys of all files in a folder."""
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
        """See `Storage`; raises StoreError if the bucket cannot be reached."""
        try:
            paths = (item["path"] for chunk in self._listed("") for item in chunk)
            return any(not path.startswith(".") for path in paths)
        except OSError as error:
            raise StoreError(
                f"store {self.path!r} cannot be reached: {first_line(error)}"
            ) from error

    def unfinished(self) -> bool:
        """See `Storage`: it holds a ticket, and not `LAST`."""
        return self.size(TICKET) > 0 and self.size(LAST) == 0

    def tidy(self) -> None:
        """See `Storage`: the leftovers are local staging folders."""
        self._local.tidy()

    def check_writable(self) -> None:
        """See `Storage`: puts and deletes an empty file."""
        probe = f".{uuid.uuid4().hex}"
        try:
            self.put(probe, b"")
            self.delete(probe)
        except OSError as error:
            raise StoreError(
                f"store {self.path!r} cannot be written: {first_line(error)}"
            ) from error

    def get(self, key: str) -> bytes | None:
        """See `Storage`."""
        try:
            with _as_os_error():
                return bytes(self.store.get(key).bytes())
        except FileNotFoundError:
            return None

    def size(self, key: str) -> int:
        """See `Storage`."""
        try:
            with _as_os_error():
                return int(self.store.head(key)["size"])
        except FileNotFoundError:
            return 0

    def put(self, key: str, data: bytes) -> None:
        """See `Storage`."""
        with _as_os_error():
            self.store.put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        """See `Storage`: uses a conditional put."""
        from obstore.exceptions import AlreadyExistsError

        try:
            with _as_os_error():
                self.store.put(key, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def delete(self, key: str) -> None:
        """See `Storage`."""
        try:
            with _as_os_error():
                self.store.delete(key)
        except FileNotFoundError:
            pass

    def files(self, folder: str) -> dict[str, int]:
        """See `Storage`."""
        prefix = f"{folder}/"
        items = (item for chunk in self._listed(prefix) for item in chunk)
        return {item["path"].removeprefix(prefix): item["size"] for item in items}

    def make_durable(self, keys: Iterable[str]) -> None:
        """See `Storage`: does nothing, as every write to a bucket is durable."""

    def staging(self) -> AbstractContextManager[Path]:
        """See `Storage`: in the system's folder for temporary files."""
        return self._local.staging()

    @property
    def _local(self) -> Folder:
        """The folder for temporary files that corresponds to this bucket."""
        name = hashlib.sha256(self.path.encode()).hexdigest()[:16]
        return Folder(Path(tempfile.gettempdir()) / f"densitrace-{name}")

    def publish(self, folder: Path, ticket: bytes, replace: bool) -> bool:
        """See `Storage`: puts a ticket first, so that an interrupted upload is recognised."""
        if replace:
            self.delete(LAST)
        elif self.size(LAST) > 0:
            return False
        # Files uploaded under an equal ticket, now or earlier, have the same bytes: they may stay.
        if replace or self.get(TICKET) != ticket:
            self.put(TICKET, ticket)
            for chunk in list(self._listed("")):
                for item in chunk:
                    if item["path"] != TICKET:
                        self.delete(item["path"])
        for key in _files(folder):
            if key != LAST:
                self.put(key, (folder / key).read_bytes())
        first = self.create(LAST, (folder / LAST).read_bytes())
        self.delete(TICKET)
        return first

    def _listed(self, prefix: str, chunk_size: int = 1000) -> Iterator[list[dict[str, Any]]]:
        with _as_os_error():
            yield from self.store.list(prefix or None, chunk_size=chunk_size)


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Raise errors of the object store as OSError, like those of a disk."""
    from obstore.exceptions import AlreadyExistsError, BaseError

    try:
        yield
    except (OSError, AlreadyExistsError):
        raise
    except BaseError as error:
        raise OSError(first_line(error)) from error


def _errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of failed writes: OSError, and obstore's if it is installed."""
    try:
        from obstore.exceptions import BaseError
    except ImportError:
        return (OSError,)
    return OSError, BaseError


@cache
def _object_store(url: str) -> "obstore.store.ObjectStore":
    """Return the client of a URL, one per process: this keeps what memory:// stores alive."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import MemoryStore, from_url
    except ImportError as error:
        raise StoreError(
            f"store {url!r} needs obstore: pip install '.[cloud]' in a checkout of densitrace"
        ) from error
    if url.startswith("memory://"):
        return MemoryStore()
    try:
        return from_url(url)
    except (BaseError, ValueError) as error:
        raise StoreError(f"store {url!r} cannot be reached: {first_line(error)}") from error
