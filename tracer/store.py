"""The store of a scan: one Zarr v3 group in which every window has a fixed place.

A store is planned before it is written: arrays have their final shape, and a *part* (a run of
windows, one shard of every array) is the unit of work, of writing and of resuming. Writing a part
writes its shards whole and makes them durable, then does the same with its byte in `part_done`;
writing a part twice gives the same bytes. `layout.py` lists the arrays, `stored_plan.py` creates
them, `stored_edges.py` writes the tables of edges. Only these files know Zarr.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store as ZarrStore
from zarr.storage import LocalStore, ObjectStore

from ..errors import InputError, NotPlannedError, StoreError, first_line
from . import layout
from .curve import compute_measure
from .edge_tables import EdgeSpool, edge_table, edges_of_trace
from .graph import Geometry
from .indices import from_start, whole
from .recipe import Recipe
from .select import AutoStrata, Rule
from .storage import Bucket, Storage, storage_of, writing
from .stored_edges import COLUMNS, FIRST, is_fill, shard_keys, write_edges
from .windows import Plan

Result = TypeVar("Result")

PLAN = "plan"  # the group of the windows to scan
DONE = "part_done"
EDGES = "edges"  # the group of the tables of kept edges
RUN_TOKENS = 1 << 17  # tokens, with padding, whose curves are read at once
READERS = 4  # threads that read runs of windows
REPAIR = "run `densitrace status STORE --repair` and scan again to redo damaged parts"
OVERWRITE = "overwrite the store"  # what the plan holds is in no part that could be redone
_NOT_A_STORE = (OSError, ValueError, KeyError, TypeError)  # zarr raises these on foreign data


# ---- reading -------------------------------------------------------------------------------------


class StoredArray:
    """An array of a store; indexing reads from disk or bucket.

    Attributes:
        shape: of the whole array.
        dtype: of its values.
        attributes: `description`, and `units` if it has any.

    Example:
        >>> open_store("traces.zarr").size[:10].shape  # doctest: +SKIP
        (10, 512, 12)
    """

    def __init__(self, array: "zarr.Array[Any]", owner: str) -> None:
        self._array, self._owner = array, owner
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)
        self.attributes: dict[str, Any] = dict(array.attrs)

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dimensions."""
        names = getattr(self._array.metadata, "dimension_names", None) or ()
        return tuple(str(name) for name in names)

    def __getitem__(self, selection: Any) -> NDArray[Any]:
        """Read the values at a basic selection: integers and slices.

        Raises:
            StoreError: the stored bytes do not match their checksum.
        """
        try:
            return np.asarray(self._array[selection])
        except (ValueError, RuntimeError) as error:  # wrong checksum, or corruption it missed
            advice = OVERWRITE if self._array.shards is None else REPAIR  # only parts have shards
            raise StoreError(
                f"{self._owner}, array {self._array.path!r}, is damaged: {first_line(error)}; "
                f"{advice}"
            ) from error


class Store:
    """An open store. Its arrays are attributes: `store.size[:]`, `store.token[:]`, ...

    In an incomplete store, windows of missing parts hold -1 in `token`; ignore their other values.

    Attributes:
        path: the folder or URL.
        attributes: how the store was made: model, rule, options, versions and counts.
        recipe: those of the attributes that two scans must share to share a store.

    Example:
        >>> store = open_store("traces.zarr")  # doctest: +SKIP
        >>> store.complete, store.n_windows  # doctest: +SKIP
        (True, 263)
    """

    def __init__(self, storage: Storage, group: zarr.Group) -> None:
        self.storage = storage
        self.path = storage.path
        self._group = group
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self.attributes: dict[str, Any] = dict(group.attrs)
        self.recipe = Recipe.of(self.attributes)

    def array(self, name: str) -> StoredArray:
        """Return an array by its name, such as "size" or "plan/length".

        Raises:
            StoreError: no such array.
        """
        return StoredArray(self._zarr(name), f"store {str(self.path)!r}")

    def __getattr__(self, name: str) -> StoredArray:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self.array(name)
        except StoreError as error:
            raise AttributeError(str(error)) from error

    def _zarr(self, name: str) -> "zarr.Array[Any]":
        if name not in self._arrays:
            array = self._group.get(name)
            if not isinstance(array, zarr.Array):
                raise StoreError(f"store {str(self.path)!r} has no array {name!r}")
            self._arrays[name] = array  # safe to cache: the shape is final
        return self._arrays[name]

    @property
    def model_id(self) -> str:
        """The model's name: its hub id, or the last two parts of its folder's path."""
        return str(self.attributes["model"])

    @property
    def rule(self) -> Rule:
        """The rule that was applied; for AutoStrata the thresholds that it chose."""
        rule = Rule.from_json(self.attributes["rule"])
        assert isinstance(rule, Rule)  # the chosen rule is never AutoStrata
        return rule

    @property
    def select(self) -> Rule | AutoStrata:
        """The rule as requested; may be AutoStrata."""
        return Rule.from_json(self.recipe.select)

    @property
    def strata(self) -> NDArray[np.float64]:
        """float64 [K]: the rule's values, sparsest stratum first."""
        return np.array(self.rule.values)

    @property
    def controls(self) -> tuple[str, ...]:
        """The controls that were traced."""
        return self.recipe.controls

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the documents' labels."""
        return tuple(self.attributes["label_fields"])

    @property
    def n_windows(self) -> int:
        """Windows planned."""
        return int(self.array("document").shape[0])

    @property
    def n_parts(self) -> int:
        """Parts planned."""
        return int(self.array(DONE).shape[0])

    def done_parts(self) -> list[int]:
        """List the parts that are done, in order; looks at the storage each time."""
        names = (name.split(".") for name in self.storage.files(DONE))
        return sorted(int(name[1]) for name in names if name[0] == "c" and len(name) == 2)

    def whole_parts(self) -> list[int]:
        """List the parts that are done, in order, after checking that all their files exist.

        Zarr reads a missing file as fill. The tables of edges are checked as they are read.

        Raises:
            StoreError: files of these parts are missing.
        """
        done = self.done_parts()
        for part, name in self._missing(done).items():
            raise self._part_missing(part, name)
        return done

    def _part_missing(self, part: int, name: str) -> StoreError:
        return StoreError(
            f"store {str(self.path)!r}, array {name!r}, is damaged: part {part} is missing; "
            f"{REPAIR}"
        )

    def is_done(self, part: int) -> bool:
        """Return whether a part is done; looks at the storage each time."""
        return self.storage.size(_done(part)) > 0

    @property
    def complete(self) -> bool:
        """Whether every part is done; looks at the storage each time."""
        return len(self.done_parts()) == self.n_parts

    def windows(self, part: int) -> slice:
        """Return the windows of a part."""
        size = int(self.attributes["windows_per_part"])
        return slice(part * size, min((part + 1) * size, self.n_windows))

    def by_runs(self, read: Callable[[slice], Result], tokens: int = RUN_TOKENS) -> list[Result]:
        """Call `read` on runs of windows of the parts that are done, in `READERS` threads.

        Args:
            read: called with the windows of consecutive parts; once with an empty slice if no
                part is done.
            tokens: of a run, with padding, at most; a single part may exceed it.

        Returns:
            The results, in the order of the windows.

        Raises:
            StoreError: files of these parts are missing.
        """
        runs: list[slice] = []
        longest = tokens // self.array("token").shape[1]
        for part in self.whole_parts():
            run = self.windows(part)
            if runs and runs[-1].stop == run.start and run.stop - runs[-1].start <= longest:
                runs[-1] = slice(runs[-1].start, run.stop)
            else:
                runs.append(run)
        with ThreadPoolExecutor(READERS) as readers:
            return list(readers.map(read, runs or [slice(0, 0)]))

    def _missing(self, parts: Sequence[int]) -> dict[int, str]:
        """Return the parts with a missing file, which Zarr would read as fill, and the array."""
        missing: dict[int, str] = {}
        for spec in layout.window_arrays(self.controls):
            files = self.storage.files(spec.name)
            for part in parts:
                if not files.get(self._shard(spec.name, part)):
                    missing.setdefault(part, spec.name)
        return missing

    @cached_property
    def documents(self) -> pd.DataFrame:
        """One row a document, in the order of the scan: `id`, its labels, `text`."""
        frame = pd.DataFrame({"id": self._document_column("document_id")})
        label = self._document_column("label")
        for column, name in enumerate(self.labels):
            frame[name] = label[:, column]
        frame["text"] = self._document_column("text")
        return frame

    def tokens(self, measures: Sequence[str] = ("density@0.1", "auc_tv")) -> pd.DataFrame:
        """Return the tokens of all parts that are done as a tidy table, one row each.

        Args:
            measures: columns computed from the curves (METHOD §6): `auc_tv`, `density@EPS`.

        Returns:
            window, document, position, column, token, surprisal, model_entropy (nats),
            full_edge_count, and the measures.

        Raises:
            InputError: an unknown measure.
            StoreError: parts are damaged.

        Example:
            >>> open_store("traces.zarr").tokens(["density@0.05"])  # doctest: +SKIP
        """
        return pd.concat(
            self.by_runs(lambda run: self._run_tokens(run, measures)), ignore_index=True
        )

    def _run_tokens(self, windows: slice, measures: Sequence[str]) -> pd.DataFrame:
        curves = [self.array(name)[windows] for name in ("size", "tv")]
        window, column = np.nonzero(self.is_token(windows))
        frame = pd.DataFrame(
            {
                "window": window + windows.start,
                "document": self.owners[windows][window],
                "position": self.starts[windows][window] + column,
                "column": column,
            }
        )
        for name in ("token", "surprisal", "model_entropy", "full_edge_count"):
            frame[name] = self.array(name)[windows][window, column]
        size, tv = (curve[window, column] for curve in curves)
        full = frame["full_edge_count"].to_numpy()
        for measure in measures:
            frame[measure] = compute_measure(measure, size, tv, full)
        return frame

    def stratum_means(self) -> pd.DataFrame:
        """Return the mean relative size and mean TV of each stratum, over all tokens done.

        Returns:
            stratum, size, tv; one row per stratum, sparsest first. NaN if no part is done.

        Raises:
            StoreError: parts are damaged.

        Example:
            >>> open_store("traces.zarr").stratum_means()  # doctest: +SKIP
        """

        def totals(run: slice) -> tuple[NDArray[np.float64], int]:
            valid = self.is_token(run)
            values = (self.array(name)[run][valid] for name in ("size", "tv"))
            return np.stack([v.sum(0, dtype=np.float64) for v in values]), int(valid.sum())

        runs = self.by_runs(totals)
        sums, count = np.sum([total for total, _ in runs], 0), sum(tokens for _, tokens in runs)
        means = sums / count if count else np.full_like(sums, np.nan)
        return pd.DataFrame({"stratum": self.strata, "size": means[0], "tv": means[1]})

    # ---- the plan --------------------------------------------------------------------------------

    def _planned(self, name: str, rows: slice = slice(None)) -> NDArray[Any]:
        """Read integers of the plan.

        Raises:
            StoreError: they are missing or damaged.
        """
        values = self.array(f"{PLAN}/{name}")[rows]
        if (values == layout.LOST).any():
            raise StoreError(
                f"store {str(self.path)!r}, array '{PLAN}/{name}', is damaged: a file is missing; "
                f"{OVERWRITE}"
            )
        return values

    def _chunks(self, name: str) -> list[slice]:
        """Return the rows of each file of an array of the plan, after checking that all exist.

        Raises:
            StoreError: one is missing, which Zarr would read as fill.
        """
        array = self._zarr(name)
        if array.size == 0:
            return []
        files = self.storage.files(array.path)
        for index in np.ndindex(array.cdata_shape):
            if not files.get(key := array.metadata.encode_chunk_key(index)):
                raise StoreError(
                    f"store {str(self.path)!r}, array {name!r}, is damaged: {key!r} is missing; "
                    f"{OVERWRITE}"
                )
        count, rows = array.cdata_shape[0], array.chunks[0]
        return [slice(number * rows, (number + 1) * rows) for number in range(count)]

    def _document_column(self, name: str) -> NDArray[Any]:
        """Read the strings of all documents, object [M, ...]."""
        self._chunks(name)
        return self.array(name)[:].astype(object)

    def plan_damage(self) -> str | None:
        """Read the whole plan and the documents; return what is damaged, or None."""
        plan = self._group[PLAN]
        assert isinstance(plan, zarr.Group)
        names = [f"{PLAN}/{name}" for name, _ in plan.arrays()]
        names += [name for name, array in self._group.arrays() if array.shards is None]
        for name in names:
            if name == DONE:
                continue
            try:
                for rows in self._chunks(name):
                    self.array(name)[rows]
            except StoreError as error:
                return str(error).partition("; ")[0]
        return None

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """int32 [N]: tokens of each window."""
        return self._planned("length")

    @cached_property
    def owners(self) -> NDArray[np.int32]:
        """int32 [N]: the document of each window, as a row of `documents`."""
        return self._planned("document")

    @cached_property
    def starts(self) -> NDArray[np.int32]:
        """int32 [N]: position in its document of each window's first token."""
        return self._planned("window_start")

    def is_token(self, windows: slice) -> NDArray[np.bool_]:
        """bool [n, T]: which columns of these windows hold a token; the others are padding."""
        return np.arange(self.array("token").shape[1]) < self.lengths[windows, None]

    def part_tokens(self, parts: Iterable[int]) -> int:
        """Return the number of tokens in these parts."""
        return sum(int(self.lengths[self.windows(part)].sum()) for part in parts)

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        """int64 [M + 1]: where each document's tokens begin in `plan/token`, and where all end."""
        return self._planned("first")

    def plan(self, part: int) -> Plan:
        """Return the windows of a part, numbered from 0, with the token that follows them."""
        run = self.windows(part)
        document, start, length = self.owners[run], self.starts[run], self.lengths[run]
        begin = self._first[document] + start
        end = min(int(begin[-1] + length[-1]) + 1, int(self._first[-1]))
        tokens = slice(int(begin[0]), end)
        return Plan(
            documents=None,
            tokens=self._planned("token", tokens),
            spans=self._planned("span", tokens),
            first=self._first - tokens.start,
            document=document,
            window_start=start,
            length=length,
        )

    # ---- writing, one part at a time -------------------------------------------------------------

    def write_part(
        self,
        part: int,
        arrays: Mapping[str, NDArray[Any]],
        edges: EdgeSpool | None = None,
    ) -> int:
        """Write all arrays of a part's windows, make them durable, then mark the part done.

        Args:
            part: its number. Writing it again, or from two processes at once, is safe: the bytes
                are the same.
            arrays: every array of `layout.window_arrays`, [windows of the part, ...].
            edges: the edges kept in its windows, if the store keeps edges.

        Returns:
            Bytes written.

        Raises:
            StoreError: the store cannot be written.
        """
        with writing(self.path):
            keys = []
            for name, values in arrays.items():
                # Chunks full of fill are written too: a missing file means damage.
                array = self._zarr(name).with_config({"write_empty_chunks": True})
                array[self.windows(part)] = values
                keys.append(f"{name}/{self._shard(name, part)}")
            if edges is not None:
                keys += write_edges(self._edges, part, edges)
            self.storage.make_durable(keys)
            self.storage.create(_done(part), b"\x01")  # unless it exists
            return sum(map(self.storage.size, keys))

    def _shard(self, name: str, part: int) -> str:
        """Return the name, in the array's folder, of a part's one shard."""
        array = self._zarr(name)
        return array.metadata.encode_chunk_key((part, *(0,) * (array.ndim - 1)))

    def open_again(self, part: int) -> None:
        """Mark a part as not done, and remove its shards, which a new write would read."""
        with writing(self.path):
            mark, *shards = self.keys(part)
            self.storage.delete(mark)
            self.storage.make_durable([DONE])  # durable before the shards go, in case of a crash
            for key in shards:
                self.storage.delete(key)

    def keys(self, part: int) -> list[str]:
        """Return the keys of a part's files; the first is the mark that it is done."""
        arrays = layout.window_arrays(self.controls)
        shards = (f"{spec.name}/{self._shard(spec.name, part)}" for spec in arrays)
        keys = [_done(part), *shards]
        for name in (FIRST, *COLUMNS) if self.recipe.edges is not None else ():
            files = self.storage.files(f"{EDGES}/{name}")
            keys += [f"{EDGES}/{name}/{file}" for file in files if file.startswith(f"c.{part}.")]
        return keys

    def damage(self) -> Iterator[tuple[int, str]]:
        """Read all parts that are done; yield those that are damaged, and how."""
        done = self.done_parts()
        missing = self._missing(done)
        for part in done:
            gone = f"array {missing[part]!r} is missing" if part in missing else None
            reason = gone or self._damage(part)
            if reason is not None:
                yield part, reason

    def _damage(self, part: int) -> str | None:
        """Read a part whose files all exist; return what is damaged, or None."""
        windows = self.windows(part)
        for spec in layout.window_arrays(self.controls):
            try:
                values = self.array(spec.name)[windows]
            except StoreError as error:
                return str(error)
            if spec.name == layout.LAST and not (values[:, 0] >= 0).all():
                return "windows without tokens"
        return None if self.recipe.edges is None else self._edges_damage(part)

    # ---- tables of edges -------------------------------------------------------------------------

    def edges(self, window: int, output: int | None = -1) -> pd.DataFrame:
        """Return the trace of a window's output, at the stratum of the scan's `edges=`.

        Args:
            window: its number.
            output: column in the window, negative from its last token; None: all edges that the
                stratum keeps in the window, whether they reach an output or not.

        Returns:
            See `Trace.edges`: one row per edge, ordered by layer, kind, head, target and source.

        Raises:
            StoreError: the store keeps no edges, the window is not scanned yet, or is damaged.
            InputError: no such window or output.

        Example:
            >>> open_store("traces.zarr").edges(window=0)  # doctest: +SKIP
        """
        stratum = self.recipe.edges
        if stratum is None:
            raise StoreError(
                f"store {str(self.path)!r} keeps no edges: they are stored by a scan with "
                "edges=STRATUM"
            )
        window = whole("window", window)
        if not 0 <= window < self.n_windows:
            raise InputError(f"window={window} is outside the {self.n_windows} windows")
        if output is not None:
            length = int(self.lengths[window])
            output = from_start("output", output, length, f"tokens of window {window}")
        edges = self._window_edges(window)
        if output is not None:
            geometry = Geometry.from_json(self.attributes)
            edges = edges_of_trace(edges, output, stratum=stratum, geometry=geometry)
        return edge_table(edges)

    def _window_edges(self, window: int) -> NDArray[Any]:
        """Read all edges kept in a window, `layout.EDGE` [n]."""
        part, row = divmod(window, int(self.attributes["windows_per_part"]))
        if not self.is_done(part):
            raise StoreError(f"window {window} of store {str(self.path)!r} is not scanned yet")
        first, end = self.array(f"{EDGES}/{FIRST}")[part, row : row + 2]
        if first < 0:
            raise self._part_missing(part, f"{EDGES}/{FIRST}")
        return self._edges_of_part(part, slice(int(first), int(end)))

    def _edges_of_part(self, part: int, run: slice) -> NDArray[Any]:
        """Read a run of the edges of a part, `layout.EDGE` [n].

        Raises:
            StoreError: they are missing or damaged.
        """
        edges = np.empty(run.stop - run.start, dtype=layout.EDGE)
        for name in COLUMNS:
            edges[name] = self.array(f"{EDGES}/{name}")[part, run]
            if is_fill(edges[name]).any():
                raise self._part_missing(part, f"{EDGES}/{name}")
        return edges

    def _edges_damage(self, part: int) -> str | None:
        """Read a part's whole table of edges; return what is damaged, or None."""
        try:
            first = self.array(f"{EDGES}/{FIRST}")[part]
            if first[0] == 0:  # the fill is another value
                for key in shard_keys(self._edges, part, int(first[-1])):
                    if self.storage.size(key) == 0:
                        return f"file {key!r} is missing"
                for start in range(0, int(first[-1]), layout.EDGES_PER_SHARD):
                    end = min(int(first[-1]), start + layout.EDGES_PER_SHARD)
                    self._edges_of_part(part, slice(start, end))
        except StoreError as error:
            return str(error)
        return None if first[0] == 0 else f"array {FIRST!r} of its edges is missing"

    @property
    def _edges(self) -> zarr.Group:
        group = self._group[EDGES]
        assert isinstance(group, zarr.Group)
        return group


def _done(part: int) -> str:
    return f"{DONE}/c.{part}"


def open_store(path: str | Path | Store) -> Store:
    """Open a store for reading; works while it is being written, with the parts done so far.

    Args:
        path: a folder, or a URL (s3://bucket/name, gs://, az://). An open store is returned as it
            is, so that functions can accept any of these.

    Raises:
        StoreError: there is no store, or it has another format version.
        NotPlannedError: a scan has begun to make the store, and did not finish planning it.

    Example:
        >>> open_store("traces.zarr").documents  # doctest: +SKIP
    """
    return path if isinstance(path, Store) else open_store_in(storage_of(path), to_write=False)


def open_store_in(storage: Storage, to_write: bool) -> Store:
    """Open the store in a storage, for reading or writing; raises as `open_store`."""
    if not storage.exists():
        if Path(storage.path).is_dir():
            raise StoreError(f"{str(storage.path)!r} is an empty folder, not a densitrace store")
        raise StoreError(f"store {str(storage.path)!r} does not exist")
    if not is_planned(storage):
        raise NotPlannedError(
            f"store {str(storage.path)!r} is not planned yet; unless a scan is planning it, run "
            "the scan again"
        )
    try:
        group = zarr.open_group(
            zarr_store(storage, read_only=not to_write),
            mode="r+" if to_write else "r",
            zarr_format=3,
            use_consolidated=False,
        )
        kind, version = group.attrs.get("format"), group.attrs.get("format_version")
        if kind == layout.FORMAT and version == layout.FORMAT_VERSION:
            return Store(storage, group)
    except _NOT_A_STORE as error:
        raise StoreError(f"{str(storage.path)!r} is not a densitrace store") from error
    if kind == layout.FORMAT:
        raise StoreError(
            f"store {str(storage.path)!r} has format version {version}; this densitrace reads "
            f"{layout.FORMAT_VERSION}"
        )
    raise StoreError(f"{str(storage.path)!r} is not a densitrace store")


def zarr_store(storage: Storage, read_only: bool) -> ZarrStore:
    """Return the storage as a Zarr store."""
    if isinstance(storage, Bucket):
        return ObjectStore(storage.store, read_only=read_only)
    return LocalStore(storage.path, read_only=read_only)


def is_planned(storage: Storage) -> bool:
    """Return whether a complete plan is there, or foreign data that must not be replaced."""
    return storage.exists() and not storage.unfinished()


def existing_store(storage: Storage, overwrite: bool) -> Store | None:
    """Return the store to continue, or None if one must be made; writes nothing.

    Raises:
        StoreError: something other than a store is there, or the storage is not writable; that of
            a complete store need not be.
    """
    storage.tidy()
    if not is_planned(storage):
        storage.check_writable()
        return None
    store = open_store_in(storage, to_write=True)
    if overwrite or not store.complete:
        storage.check_writable()
    return None if overwrite else store
