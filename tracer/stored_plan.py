"""Create a planned store: all arrays in their final shape, the windows to scan, no part done.

The plan is prepared in a staging folder and published atomically, so a store that exists has a
complete plan. It holds the corpus as tokens: a worker needs nothing else to scan any part.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from ..errors import StoreError
from . import layout
from .corpus import CorpusReport
from .graph import KIND_NAMES, QUARTILES
from .recipe import Recipe
from .select import Rule
from .spool import Spool
from .storage import Storage, writing
from .store import DONE, EDGES, PLAN, Store, open_store_in
from .stored_edges import COMPRESSORS, create_edges
from .windows import Plan

_DOCUMENTS_PER_CHUNK = 256
_TOKENS_PER_CHUNK = 1 << 18
_PACKAGES = ("densitrace", "torch", "transformers", "zarr", "numpy")


def create_store(
    storage: Storage,
    folder: Path,
    plan: Plan,
    recipe: Recipe,
    rule: Rule,
    report: CorpusReport,
    facts: Mapping[str, Any],
    most_edges: int,
    draft: Store | None = None,
    replace: bool = False,
) -> Store:
    """Plan a store and publish it atomically, unless another process publishes one first.

    Args:
        storage: where the store is published.
        folder: the staging folder, of `storage.staging`.
        plan: the windows, with their documents; a head without documents makes a draft.
        recipe: what the store is made from.
        rule: the rule, with its thresholds chosen.
        report: counts of the corpus.
        facts: further attributes, `model` among them.
        most_edges: upper bound of the edges of a window's full graph.
        draft: a draft of the first of these windows, on the same file system as `folder`; its
            parts that are done are moved into the store.
        replace: whether to replace an existing store.

    Returns:
        The store that exists now, whoever planned it.
    """
    with writing(storage.path):
        ready = folder / "store"
        group = zarr.create_group(LocalStore(ready), zarr_format=3)
        parts = layout.parts(plan.longest, len(rule), plan.n_windows)
        _create_arrays(group, plan, recipe, rule, most_edges, parts)
        _create_plan(group.create_group(PLAN), plan)
        if plan.documents is not None:
            _create_documents(group, plan.documents)
        if recipe.edges is not None:
            n_parts = -(-plan.n_windows // parts.windows)
            create_edges(group.create_group(EDGES), n_parts, parts.windows, most_edges)
        group.attrs.update(_attributes(plan, recipe, rule, report, facts, parts))
        if draft is not None:
            _move_parts(draft, ready)
        content = {"recipe": asdict(recipe), "rule": rule.to_json(), "windows": plan.n_windows}
        storage.publish(ready, json.dumps(content, sort_keys=True).encode(), replace)
    return open_store_in(storage, to_write=True)


def left_draft(storage: Storage, recipe: Recipe, rule: Rule, head: Plan) -> Store | None:
    """Return the draft in `storage` if it has the same recipe, rule and windows; otherwise None."""
    try:
        draft = open_store_in(storage, to_write=True)
        same = draft.recipe == recipe and draft.rule == rule and _same_windows(draft, head)
    except StoreError:
        return None
    return draft if same else None


def _same_windows(draft: Store, head: Plan) -> bool:
    """Return whether a draft has these windows; text read beyond them does not matter."""
    documents = slice(int(head.document[-1]) + 2)
    tokens = slice(head.token_range(head.n_windows - 1).stop + 1)
    pairs: list[tuple[NDArray[Any], NDArray[Any]]] = [
        (draft.owners, head.document),
        (draft.starts, head.window_start),
        (draft.lengths, head.length),
        (draft.array(f"{PLAN}/first")[documents], head.first[documents]),
        (draft.array(f"{PLAN}/token")[tokens], head.tokens[tokens]),
        (draft.array(f"{PLAN}/span")[tokens], head.spans[tokens]),
    ]
    return all(np.array_equal(there, here) for there, here in pairs)


def _move_parts(draft: Store, folder: Path) -> None:
    """Move the parts of a draft that are done into the folder of the store."""
    for part in draft.done_parts():
        for key in draft.keys(part):
            (Path(draft.storage.path) / key).rename(folder / key)


def _attributes(
    plan: Plan,
    recipe: Recipe,
    rule: Rule,
    report: CorpusReport,
    facts: Mapping[str, Any],
    parts: layout.Parts,
) -> dict[str, Any]:
    return {
        "format": layout.FORMAT,
        "format_version": layout.FORMAT_VERSION,
        **facts,
        **asdict(recipe),
        "rule": rule.to_json(),
        "windows_per_part": parts.windows,
        "tokens": int(plan.length.sum()),
        "label_fields": [] if plan.documents is None else plan.documents.label_fields,
        "corpus": report.to_json(),
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Return the versions of densitrace and of the packages that its numbers depend on."""
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # imported from a source tree
        return "not installed"


def _create_arrays(
    group: zarr.Group,
    plan: Plan,
    recipe: Recipe,
    rule: Rule,
    most_edges: int,
    parts: layout.Parts,
) -> None:
    extent = {
        "window": plan.n_windows,
        "column": plan.longest,
        "stratum": len(rule),
        "edge_kind": len(KIND_NAMES),
        "depth_quartile": QUARTILES,
    }
    for spec in layout.window_arrays(recipe.controls, most_edges):
        shape = tuple(extent[dim] for dim in spec.dims)
        group.create_array(
            spec.name,
            shape=shape,
            shards=(parts.windows, *shape[1:]),
            chunks=(parts.chunk if "stratum" in spec.dims else parts.windows, *shape[1:]),
            dtype=spec.dtype,
            fill_value=spec.fill,
            dimension_names=spec.dims,
            chunk_key_encoding=layout.KEYS,
            compressors=COMPRESSORS,
            attributes={"description": spec.about, **({"units": spec.units} if spec.units else {})},
        )
    group.create_array(
        DONE,
        shape=(-(-plan.n_windows // parts.windows),),
        chunks=(1,),
        dtype="uint8",
        fill_value=0,
        dimension_names=("part",),
        chunk_key_encoding=layout.KEYS,
        compressors=None,
        attributes={"description": f"1 once a run of {parts.windows} windows is written whole"},
    )
    for name, (dim, values) in layout.coordinates(rule.values).items():
        _create_filled(group, name, (dim,), values, len(values))


def _create_plan(group: zarr.Group, plan: Plan) -> None:
    """Store the windows: all of `Plan` except the documents."""
    for name in ("document", "window_start", "length"):
        _create_filled(group, name, ("window",), getattr(plan, name), _TOKENS_PER_CHUNK)
    _create_filled(group, "first", ("first",), plan.first, _TOKENS_PER_CHUNK)
    _create_filled(group, "token", ("token",), plan.tokens, _TOKENS_PER_CHUNK)
    _create_filled(group, "span", ("token", "end"), plan.spans, _TOKENS_PER_CHUNK)


def _create_documents(group: zarr.Group, documents: Spool) -> None:
    """Store the document table: `document_id` and `text` [M], `label` [M, label_field]."""
    fields = documents.label_fields
    names = np.array(fields, dtype=object)
    _create_filled(group, "label_field", ("label_field",), names, max(1, len(fields)))
    count, chunk = len(documents), _DOCUMENTS_PER_CHUNK
    ids = _create_empty(group, "document_id", ("doc",), (count,), object, chunk)
    text = _create_empty(group, "text", ("doc",), (count,), object, chunk)
    label = _create_empty(
        group, "label", ("doc", "label_field"), (count, len(fields)), object, chunk
    )
    remaining = iter(documents)
    for start in range(0, count, chunk):
        run = list(islice(remaining, chunk))
        here = slice(start, start + len(run))
        ids[here] = np.array([document.id for document in run], dtype=object)
        text[here] = np.array([document.text for document in run], dtype=object)
        if fields:
            rows = [[document.labels.get(name, "") for name in fields] for document in run]
            label[here] = np.array(rows, dtype=object)


def _create_filled(
    group: zarr.Group, name: str, dims: tuple[str, ...], values: NDArray[Any], per_chunk: int
) -> "zarr.Array[Any]":
    """Create an array of values or strings, with `per_chunk` rows per file."""
    array = _create_empty(group, name, dims, values.shape, values.dtype, per_chunk)
    if values.size:
        array[:] = values
    return array


def _create_empty(
    group: zarr.Group,
    name: str,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    dtype: Any,
    per_chunk: int,
) -> "zarr.Array[Any]":
    """Create an array to be filled later, with `per_chunk` rows per file; object means strings."""
    strings = np.dtype(dtype).hasobject
    return group.create_array(
        name,
        shape=shape,
        chunks=(per_chunk, *(max(1, size) for size in shape[1:])),
        dtype="string" if strings else dtype,
        fill_value=layout.LOST if np.dtype(dtype).kind == "i" else None,
        dimension_names=dims,
        chunk_key_encoding=layout.KEYS,
        compressors=(ZstdCodec(level=3), Crc32cCodec()) if strings else COMPRESSORS,
        config={"write_empty_chunks": True},
    )
