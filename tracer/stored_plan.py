"""A store as it is planned: all arrays in their final shape, what is to be scanned, no part done.

The plan is made in memory and put in place at once, so that whoever finds a store finds a whole
plan. It holds the corpus as tokens: a worker needs nothing else to scan any part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

from . import layout
from .corpus import CorpusReport, Document
from .graph import KIND_NAMES
from .place import Place, writing
from .recipe import Recipe
from .select import Rule
from .store import DONE, EDGES, PLAN, Store, create_filled, open_place
from .stored_edges import COMPRESSORS, create_edges
from .windows import Plan

_DOCUMENTS_PER_CHUNK = 256
_TOKENS_PER_CHUNK = 1 << 18
_PACKAGES = ("densitrace", "torch", "transformers", "zarr", "numpy")


def create_store(
    place: Place,
    plan: Plan,
    recipe: Recipe,
    rule: Rule,
    report: CorpusReport,
    facts: Mapping[str, Any],
    most_edges: int,
) -> Store:
    """Plan a store. It appears at once and whole; a store of densitrace that was there is replaced.

    Args:
        place: where.
        plan: the windows.
        recipe: what it is made from.
        rule: the chosen rule.
        report: of the corpus.
        facts: further attributes, `model` among them.
        most_edges: an upper bound of any window's full graph.
    """
    with writing(place.path):
        memory = MemoryStore()
        group = zarr.create_group(memory, zarr_format=3)
        parts = layout.parts(plan.longest, len(rule), plan.n_windows)
        _create_arrays(group, plan, recipe, rule, most_edges, parts)
        _create_plan(group.create_group(PLAN), plan)
        _create_documents(group, plan.documents)
        if recipe.edges is not None:
            n_parts = -(-plan.n_windows // parts.windows)
            create_edges(group.create_group(EDGES), n_parts, parts.windows, most_edges)
        group.attrs.update(_attributes(plan, recipe, rule, report, facts, parts))
        files = {key: data.to_bytes() for key, data in memory._store_dict.items()}
        place.publish(files, first="zarr.json")
    return open_place(place, to_write=True)


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
        "depth_quartile": layout.QUARTILES,
    }
    for spec in layout.window_arrays(recipe.controls, most_edges):
        shape = tuple(extent[dim] for dim in spec.dims)
        group.create_array(
            spec.name,
            shape=shape,
            shards=(parts.windows, *shape[1:]),
            chunks=(parts.chunk, *shape[1:]),
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
        create_filled(group, name, (dim,), values, len(values))


def _create_plan(group: zarr.Group, plan: Plan) -> None:
    """The windows: what `Plan` holds, but for the documents."""
    for name in ("document", "window_start", "length"):
        create_filled(group, name, ("window",), getattr(plan, name), _TOKENS_PER_CHUNK)
    create_filled(group, "first", ("first",), plan.first, _TOKENS_PER_CHUNK)
    create_filled(group, "token", ("token",), plan.tokens, _TOKENS_PER_CHUNK)
    create_filled(group, "span", ("token", "end"), plan.spans, _TOKENS_PER_CHUNK)


def _create_documents(group: zarr.Group, documents: Sequence[Document]) -> None:
    """The document table: `document_id` and `text` [M], `label` [M, label_field]."""
    fields = _label_fields(documents)
    columns: dict[str, list[str]] = {
        "document_id": [document.id for document in documents],
        "text": [document.text for document in documents],
    }
    for name, values in columns.items():
        array = np.array(values, dtype=object)
        create_filled(group, name, ("doc",), array, _DOCUMENTS_PER_CHUNK)
    labels = np.empty((len(documents), len(fields)), dtype=object)
    for row, document in enumerate(documents):
        labels[row] = [document.labels.get(name, "") for name in fields]
    create_filled(group, "label", ("doc", "label_field"), labels, _DOCUMENTS_PER_CHUNK)
    names = np.array(fields, dtype=object)
    create_filled(group, "label_field", ("label_field",), names, max(1, len(fields)))


def _label_fields(documents: Sequence[Document]) -> list[str]:
    """Every label that a document has, in the order of first appearance."""
    return list(dict.fromkeys(name for document in documents for name in document.labels))
