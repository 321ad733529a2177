"""The tables of kept edges in a store: one table per part, its windows one after another.

The layout is that of compressed sparse rows (CSR). `edges/first` [part, row] holds where each
window's edges begin in the columns `edges/layer`, `edges/kind`, ... [part, edge] (`layout.EDGE`),
and where the last window's end. Columns have room for every edge of the full graphs; only shards
that hold edges are written.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from . import layout
from .edge_tables import EdgeSpool

# Of every array: fast, small thanks to the byte shuffle, and with a checksum per chunk.
COMPRESSORS = (BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"), Crc32cCodec())
FIRST = "first"
COLUMNS: tuple[str, ...] = layout.EDGE.names or ()


def create_edges(group: zarr.Group, parts: int, windows: int, most_edges: int) -> None:
    """Create the empty tables.

    Args:
        group: an empty group.
        parts: number of parts.
        windows: windows per part.
        most_edges: upper bound of a full graph's edges.
    """
    room = max(1, windows * most_edges)
    chunk = min(room, layout.EDGES_PER_CHUNK)
    shard = chunk * min(-(-room // chunk), layout.EDGES_PER_SHARD // layout.EDGES_PER_CHUNK)
    _create(group, FIRST, np.dtype(np.int64), (parts, windows + 1), windows + 1, windows + 1)
    for name in COLUMNS:
        _create(group, name, layout.EDGE[name], (parts, room), shard, chunk)


def _create(
    group: zarr.Group,
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, int],
    shard: int,
    chunk: int,
) -> None:
    group.create_array(
        name,
        shape=shape,
        shards=(1, shard),
        chunks=(1, chunk),
        dtype=dtype,
        fill_value=_fill(dtype),
        dimension_names=("part", "row" if name == FIRST else "edge"),
        chunk_key_encoding=layout.KEYS,
        compressors=COMPRESSORS,
    )


def _fill(dtype: np.dtype[Any]) -> float | int:
    """Return a value that no edge has, so that no chunk with edges is skipped as empty."""
    if dtype.kind == "f":
        return float("nan")
    limits = np.iinfo(dtype)
    return int(limits.min if dtype.kind == "i" else limits.max)


def is_fill(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether values of a column are its fill, which is read where a file is missing."""
    fill = np.isnan(values) if values.dtype.kind == "f" else values == _fill(values.dtype)
    return np.asarray(fill, dtype=np.bool_)


def write_edges(group: zarr.Group, part: int, edges: EdgeSpool) -> list[str]:
    """Write the table of a part; return the keys of its files."""
    first = np.concatenate([[0], np.cumsum(edges.counts)])
    starts = _column(group, FIRST)
    row = np.full((1, starts.shape[1]), first[-1])  # the store's last part may have fewer windows
    row[0, : len(first)] = first
    starts[part : part + 1] = row
    columns = {name: _column(group, name) for name in COLUMNS}
    shard = _shard(columns[COLUMNS[0]])
    for number, block in enumerate(edges.blocks(shard)):
        for name, column in columns.items():
            # Whole shards: a partial write would read the shard first.
            end = min((number + 1) * shard, column.shape[1])
            whole = np.full((1, end - number * shard), _fill(column.dtype), dtype=column.dtype)
            whole[0, : len(block)] = block[name]
            column[part : part + 1, number * shard : end] = whole
    return list(shard_keys(group, part, int(first[-1])))


def shard_keys(group: zarr.Group, part: int, edges: int) -> Iterator[str]:
    """Yield the keys of the files that hold a part's table of `edges` edges."""
    for name in (FIRST, *COLUMNS):
        array = _column(group, name)
        for number in range(1 if name == FIRST else -(-edges // _shard(array))):
            yield f"{array.path}/{array.metadata.encode_chunk_key((part, number))}"


def _column(group: zarr.Group, name: str) -> "zarr.Array[Any]":
    array = group[name]
    assert isinstance(array, zarr.Array)  # created by `create_edges`
    return array


def _shard(array: "zarr.Array[Any]") -> int:
    """Return the edges per shard."""
    return int((array.shards or array.chunks)[1])
