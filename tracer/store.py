"""The store of a scan: one Zarr v3 group with a fixed place for every window.

Planned before it is written: arrays have their final shape, and a *part* (a run of windows, one
chunk of every array) is the unit of work, of writing and of resuming. A part's arrays are written
whole and made durable, then its byte in `part_done` is; writing a part twice gives the same bytes.
`layout.py` lists the arrays. Only this file knows Zarr.
"""

import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore

from ..errors import InputError, StoreError
from . import layout
from .corpus import CorpusReport, Document
from .curve import auc_tv, density_at
from .durable import check_writable, flush, put_in_place, replace_durably, writing
from .graph import KIND_NAMES
from .recipe import Recipe
from .select import AutoStrata, Rule
from .windows import Plan

_DONE = "part_done"
_DOCUMENTS_PER_CHUNK = 256
_PACKAGES = ("densitrace", "torch", "transformers", "zarr", "numpy")
_NOT_A_STORE = (OSError, ValueError, KeyError, TypeError)  # what zarr raises on other things


# ---- reading -------------------------------------------------------------------------------------


class StoredArray:
    """An array of a store, read from disk where it is indexed."""

    def __init__(self, array: "zarr.Array[Any]") -> None:
        self._array = array
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)
        self.attributes: dict[str, Any] = dict(array.attrs)  # description, units

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dimensions."""
        names = getattr(self._array.metadata, "dimension_names", None) or ()
        return tuple(str(name) for name in names)

    def __getitem__(self, selection: Any) -> NDArray[Any]:
        """The values at a basic selection: numbers and slices."""
        return np.asarray(self._array[selection])


class Store:
    """A store that was opened. Arrays are attributes: `store.size[:]`, `store.token[:]`, ...

    In a store that is not complete, the windows of missing parts hold -1 in `token` and nothing
    else of them means anything.
    """

    def __init__(self, path: Path, group: zarr.Group) -> None:
        self.path = path
        self._group = group
        self.attributes: dict[str, Any] = dict(group.attrs)
        self.recipe = Recipe.of(self.attributes)

    def array(self, name: str) -> StoredArray:
        """An array by its name; StoreError where there is none."""
        return StoredArray(self._zarr(name))

    def __getattr__(self, name: str) -> StoredArray:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self.array(name)
        except StoreError as error:
            raise AttributeError(str(error)) from error

    def _zarr(self, name: str) -> "zarr.Array[Any]":
        found = self._group.get(name)
        if not isinstance(found, zarr.Array):
            raise StoreError(f"store {str(self.path)!r} has no array {name!r}")
        return found

    @property
    def model_id(self) -> str:
        """What the model is called."""
        return str(self.attributes["model"])

    @property
    def rule(self) -> Rule:
        """The rule that was used: for AutoStrata the thresholds that were chosen."""
        rule = Rule.from_json(self.attributes["rule"])
        assert isinstance(rule, Rule)  # the chosen rule is never AutoStrata
        return rule

    @property
    def select(self) -> Rule | AutoStrata:
        """The rule that was asked for."""
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
        return int(self.array(_DONE).shape[0])

    def done_parts(self) -> list[int]:
        """The parts that are done, by number."""
        done: list[int] = np.flatnonzero(self.array(_DONE)[:]).tolist()
        return done

    @property
    def complete(self) -> bool:
        """Whether every part is done."""
        return len(self.done_parts()) == self.n_parts

    def windows(self, part: int) -> slice:
        """The windows of a part."""
        size = int(self.attributes["windows_per_part"])
        return slice(part * size, min((part + 1) * size, self.n_windows))

    @cached_property
    def documents(self) -> pd.DataFrame:
        """One row a document, in the order of the scan: `id`, its labels, `text`."""
        frame = pd.DataFrame({"id": self.array("document_id")[:].astype(object)})
        label = self.array("label")[:].astype(object)
        for column, name in enumerate(self.labels):
            frame[name] = label[:, column]
        frame["text"] = self.array("text")[:].astype(object)
        return frame

    def tokens(self, measures: Sequence[str] = ("density@0.1", "auc_tv")) -> pd.DataFrame:
        """The tokens of all parts that are done as a tidy table, one row each.

        Args:
            measures: columns computed from the curves (METHOD §6): `auc_tv`, `density@EPS`.

        Returns:
            window, document, position, column, token, surprisal, model_entropy (nats),
            full_edge_count, and the measures.

        Raises:
            InputError: an unknown measure.

        Example:
            >>> open_store("traces.zarr").tokens(["density@0.05"])  # doctest: +SKIP
        """
        parts = [self._part_tokens(self.windows(part), measures) for part in self.done_parts()]
        return pd.concat(parts or [self._part_tokens(slice(0, 0), measures)], ignore_index=True)

    def _part_tokens(self, windows: slice, measures: Sequence[str]) -> pd.DataFrame:
        token = self.array("token")[windows]
        window, column = np.nonzero(token >= 0)
        frame = pd.DataFrame(
            {
                "window": window + windows.start,
                "document": self.array("document")[windows][window],
                "position": self.array("position")[windows][window, column],
                "column": column,
                "token": token[window, column],
            }
        )
        for name in ("surprisal", "model_entropy", "full_edge_count"):
            frame[name] = self.array(name)[windows][window, column]
        size, tv = (self.array(name)[windows][window, column] for name in ("size", "tv"))
        for measure in measures:
            frame[measure] = _measure(measure, size, tv, frame["full_edge_count"].to_numpy())
        return frame

    def stratum_means(self) -> pd.DataFrame:
        """Mean relative size and mean TV of each stratum over all tokens that are done."""
        sums, count = np.zeros((2, len(self.strata))), 0
        for part in self.done_parts():
            windows = self.windows(part)
            valid = self.array("token")[windows] >= 0
            count += int(valid.sum())
            for row, name in enumerate(("size", "tv")):
                values = self.array(name)[windows][valid]
                sums[row] += values.sum(0, dtype=np.float64)
        means = sums / count if count else np.full_like(sums, np.nan)
        return pd.DataFrame({"stratum": self.strata, "size": means[0], "tv": means[1]})

    # ---- writing, one part at a time -------------------------------------------------------------

    def write_part(self, part: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write all arrays of a part's windows, make them durable, then mark the part done.

        Args:
            part: its number; no other process may write the same part at the same time.
            arrays: every array of `layout.window_arrays`, [windows of the part, ...], which come
                in that order, `token` last.
        """
        with writing(self.path):
            for name, values in arrays.items():
                self._zarr(name)[self.windows(part)] = values
            for name in arrays:
                flush(self._chunk(name, part))
            # One uncompressed byte, put in place by a rename: never half there.
            replace_durably(self._chunk(_DONE, part), b"\x01")

    def _chunk(self, name: str, part: int) -> Path:
        """The file of the one chunk that a part has of an array."""
        array = self._zarr(name)
        key = array.metadata.encode_chunk_key((part, *(0,) * (array.ndim - 1)))
        return self.path / name / key


def open_store(path: str | Path) -> Store:
    """Open a store for reading; works while it is being written, with the parts done so far.

    Raises:
        StoreError: nothing there, something else there, a newer format.

    Example:
        >>> open_store("traces.zarr").documents  # doctest: +SKIP
    """
    return _open(Path(path), to_write=False)


def _open(path: Path, to_write: bool) -> Store:
    if not path.exists():
        raise StoreError(f"store {str(path)!r} does not exist")
    try:
        group = zarr.open_group(
            LocalStore(path, read_only=not to_write),
            mode="r+" if to_write else "r",
            zarr_format=3,
            use_consolidated=False,
        )
        kind, version = group.attrs.get("format"), group.attrs.get("format_version")
        if kind == layout.FORMAT and version == layout.FORMAT_VERSION:
            return Store(path, group)
    except _NOT_A_STORE as error:
        raise StoreError(f"{str(path)!r} is not a densitrace store") from error
    if kind == layout.FORMAT:
        raise StoreError(
            f"store {str(path)!r} has format version {version}; this densitrace reads "
            f"{layout.FORMAT_VERSION}"
        )
    raise StoreError(f"{str(path)!r} is not a densitrace store")


# ---- planning ------------------------------------------------------------------------------------


def existing_store(path: Path, overwrite: bool) -> Store | None:
    """The store to continue, or None where one is to be made; nothing is written.

    Raises:
        StoreError: something else is there, or the folder cannot be written.
    """
    if path.exists() or path.is_symlink():
        found = _open(path, to_write=True)
        check_writable(path)
        return None if overwrite else found
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    check_writable(parent)
    return None


def create_store(
    path: Path,
    plan: Plan,
    recipe: Recipe,
    rule: Rule,
    report: CorpusReport,
    facts: Mapping[str, Any],
    most_edges: int,
) -> Store:
    """Plan a store: all arrays and the document table, no part done.

    It appears under its path at once and whole; a store of densitrace that was there is replaced.

    Args:
        path: where.
        plan: the windows.
        recipe: what it is made from.
        rule: the chosen rule.
        report: of the corpus.
        facts: further attributes, `model` among them.
        most_edges: an upper bound of any window's full graph.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.parent / f".{path.name}.{uuid.uuid4().hex}.planning"
        try:
            group = zarr.create_group(LocalStore(staging), zarr_format=3)
            _create_arrays(group, plan, recipe, rule, most_edges)
            _create_documents(group, plan.documents)
            group.attrs.update(_attributes(plan, recipe, rule, report, facts))
            for file in staging.rglob("*"):
                flush(file)
            put_in_place(staging, path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return _open(path, to_write=True)


def _attributes(
    plan: Plan, recipe: Recipe, rule: Rule, report: CorpusReport, facts: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "format": layout.FORMAT,
        "format_version": layout.FORMAT_VERSION,
        **facts,
        **asdict(recipe),
        "rule": rule.to_json(),
        "windows_per_part": layout.windows_per_part(plan.longest, len(rule)),
        "tokens": int(plan.length.sum()),
        "label_fields": _label_fields(plan.documents),
        "corpus": report.to_json(),
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Versions of densitrace and of what its numbers rest on."""
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # imported from a source tree
        return "not installed"


def _create_arrays(
    group: zarr.Group, plan: Plan, recipe: Recipe, rule: Rule, most_edges: int
) -> None:
    per_part = layout.windows_per_part(plan.longest, len(rule))
    extent = {
        "window": plan.n_windows,
        "column": plan.longest,
        "stratum": len(rule),
        "edge_kind": len(KIND_NAMES),
        "depth_quartile": layout.QUARTILES,
    }
    for spec in layout.window_arrays(recipe.controls, most_edges):
        shape = tuple(extent[dim] for dim in spec.dims)
        group.create_array(
            spec.name,
            shape=shape,
            chunks=(per_part, *shape[1:]),
            dtype=spec.dtype,
            fill_value=spec.fill,
            dimension_names=spec.dims,
            compressors=BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"),
            attributes={"description": spec.about, **({"units": spec.units} if spec.units else {})},
        )
    group.create_array(
        _DONE,
        shape=(-(-plan.n_windows // per_part),),
        chunks=(1,),
        dtype="uint8",
        fill_value=0,
        dimension_names=("part",),
        compressors=None,
        attributes={"description": f"1 once a run of {per_part} windows is written whole"},
    )
    for name, (dim, values) in layout.coordinates(rule.values).items():
        _create_filled(group, name, (dim,), values, len(values))


def _create_documents(group: zarr.Group, documents: Sequence[Document]) -> None:
    """The document table: `document_id` and `text` [M], `label` [M, label_field]."""
    fields = _label_fields(documents)
    columns: dict[str, list[str]] = {
        "document_id": [document.id for document in documents],
        "text": [document.text for document in documents],
    }
    for name, values in columns.items():
        array = np.array(values, dtype=object)
        _create_filled(group, name, ("doc",), array, _DOCUMENTS_PER_CHUNK)
    labels = np.empty((len(documents), len(fields)), dtype=object)
    for row, document in enumerate(documents):
        labels[row] = [document.labels.get(name, "") for name in fields]
    _create_filled(group, "label", ("doc", "label_field"), labels, _DOCUMENTS_PER_CHUNK)
    names = np.array(fields, dtype=object)
    _create_filled(group, "label_field", ("label_field",), names, max(1, len(fields)))


def _create_filled(
    group: zarr.Group, name: str, dims: tuple[str, ...], values: NDArray[Any], per_chunk: int
) -> None:
    dtype = "string" if values.dtype == object else values.dtype
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=(per_chunk, *(max(1, size) for size in values.shape[1:])),
        dtype=dtype,
        dimension_names=dims,
    )
    if values.size:
        array[:] = values


def _label_fields(documents: Sequence[Document]) -> list[str]:
    """Every label that a document has, in the order of first appearance."""
    return list(dict.fromkeys(name for document in documents for name in document.labels))


# ---- measures ------------------------------------------------------------------------------------


def _measure(
    name: str, size: NDArray[Any], tv: NDArray[Any], full_edge_count: NDArray[Any]
) -> NDArray[np.floating]:
    if name == "auc_tv":
        return auc_tv(size, tv, full_edge_count)
    kind, _, eps = name.partition("@")
    try:
        tolerated = float(eps) if kind == "density" else np.nan
    except ValueError:
        tolerated = np.nan
    if not tolerated >= 0:
        raise InputError(f"measure {name!r} is unknown; use auc_tv or density@EPS, EPS >= 0")
    return density_at(size, tv, tolerated, full_edge_count)
