"""The tables of kept edges in a store: one a part, its windows' edges one after another.

`edges/PART/first` [windows + 1] says where each window's edges begin in the columns
`edges/PART/layer`, `kind`, ... (`layout.EDGE`): rows of a sparse matrix in compressed form (CSR).
Nothing is removed before it is written anew, so that a part may be written by two workers at once.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

from . import layout
from .edge_tables import EdgeSpool
from .place import Place

FIRST = "first"
COLUMNS: tuple[str, ...] = (FIRST, *(layout.EDGE.names or ()))


def write_edges(group: zarr.Group, place: Place, path: str, edges: EdgeSpool) -> list[str]:
    """Write the table of a part at a path of the store.

    Returns:
        The keys of all its files.
    """
    first = np.concatenate([[0], np.cumsum(edges.counts)])
    files = _empty_table(len(first), int(first[-1]))
    for key, data in files.items():
        place.put(f"{path}/{key}", data)
    arrays = {name: _array(group, f"{path}/{name}") for name in COLUMNS}
    arrays[FIRST][:] = first
    start = 0
    for block in edges.blocks(layout.EDGES_PER_SHARD):
        for name in block.dtype.names or ():
            arrays[name][start : start + len(block)] = block[name]
        start += len(block)
    return [f"{path}/{key}" for key in files] + [
        key for array in arrays.values() for key in shard_keys(array)
    ]


def _empty_table(rows: int, edges: int) -> dict[str, bytes]:
    """The files of a table that nothing was written to."""
    memory = MemoryStore()
    group = zarr.create_group(memory, zarr_format=3)
    columns = {FIRST: (rows, np.dtype(np.int64))}
    columns |= {name: (edges, layout.EDGE[name]) for name in layout.EDGE.names or ()}
    for name, (size, dtype) in columns.items():
        chunk = max(1, min(size, layout.EDGES_PER_CHUNK))
        most = layout.EDGES_PER_SHARD // layout.EDGES_PER_CHUNK
        group.create_array(
            name,
            shape=(size,),
            shards=(chunk * min(most, max(1, -(-size // chunk))),),
            chunks=(chunk,),
            dtype=dtype,
            fill_value=0,
            dimension_names=("first" if name == FIRST else "edge",),
            chunk_key_encoding=layout.KEYS,
            compressors=layout.COMPRESSORS,
        )
    return {key: data.to_bytes() for key, data in memory._store_dict.items()}


def _array(group: zarr.Group, path: str) -> "zarr.Array[Any]":
    array = group[path]
    assert isinstance(array, zarr.Array)  # as it was just created
    return array.with_config({"write_empty_chunks": True})  # what is not there is damaged


def shard_keys(array: "zarr.Array[Any]") -> Iterator[str]:
    """The keys of the files that hold an array's values."""
    (size,), (shard,) = array.shape, array.shards or array.chunks
    for number in range(-(-size // shard)):
        yield f"{array.path}/{array.metadata.encode_chunk_key((number,))}"
