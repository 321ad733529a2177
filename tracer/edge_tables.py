"""The edges that a stratum keeps in a window: spooling, edge tables, and the traces in them."""

import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import StoreError
from . import layout
from .graph import KINDS, MLP_KINDS, Geometry

SPOOL_BYTES = 1 << 28  # edges of a part kept in memory; beyond it they go to a temporary file


class EdgeSpool:
    """Buffers the kept edges of a part's windows until they are written to the store.

    Args:
        windows: number of windows in the part.

    Raises:
        StoreError: the temporary file cannot be written.

    Example:
        >>> spool = EdgeSpool(2)
        >>> spool.add(1, np.zeros(3, layout.EDGE))
        >>> spool.counts
        array([0, 3])
    """

    def __init__(self, windows: int) -> None:
        self.counts = np.zeros(windows, dtype=np.int64)
        self._file = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115
        self.close = weakref.finalize(self, self._file.close)  # also runs on garbage collection
        self._runs: list[list[tuple[int, int]]] = [[] for _ in range(windows)]  # (offset, bytes)
        self._end = 0

    def add(self, window: int, edges: NDArray[Any]) -> None:
        """Append edges, `layout.EDGE` [n], to a window of the part."""
        data = edges.tobytes()
        try:
            self._file.write(data)
        except OSError as error:
            raise StoreError(
                f"kept edges cannot be laid aside in {tempfile.gettempdir()!r}: {error.strerror}; "
                "set TMPDIR to a folder with room"
            ) from error
        self._runs[window].append((self._end, len(data)))
        self._end += len(data)
        self.counts[window] += len(edges)

    def blocks(self, edges: int) -> Iterator[NDArray[Any]]:
        """All edges, window by window, in blocks of `edges` edges; the last may be smaller."""
        pending: list[NDArray[Any]] = []
        count = 0
        for run in (run for runs in self._runs for run in runs):
            piece = self._read(*run)
            while count + len(piece) >= edges:
                yield np.concatenate([*pending, piece[: edges - count]])
                pending, piece, count = [], piece[edges - count :], 0
            pending.append(piece)
            count += len(piece)
        if count:
            yield np.concatenate(pending)

    def _read(self, offset: int, size: int) -> NDArray[Any]:
        self._file.seek(offset)
        return np.frombuffer(self._file.read(size), dtype=layout.EDGE)


def edge_table(edges: NDArray[Any]) -> pd.DataFrame:
    """Edges, `layout.EDGE` [n], as a table in the format of `Trace.edges`."""
    columns = {name: edges[name].astype(np.int64) for name in ("head", "source", "target")}
    return pd.DataFrame(
        {
            "layer": edges["layer"].astype(np.int64),
            "kind": pd.Categorical.from_codes(edges["kind"].astype(np.int8), pd.Index(KINDS)),
            **columns,
            "weight": edges["weight"],
            "stratum": edges["stratum"].astype(np.int64),
        }
    )


def edges_of_trace(
    edges: NDArray[Any], output: int, *, stratum: int, geometry: Geometry
) -> NDArray[Any]:
    """Select the kept edges of a window that lead to an output (METHOD §4).

    Args:
        edges: `layout.EDGE` [n], all that the stratum keeps, ordered by layer and kind.
        output: column in the window.
        stratum: at which the edges were kept.
        geometry: of the graph.

    Returns:
        A subset of the edges in the same order, with `stratum` set to the sparsest stratum whose
        trace holds the edge.
    """
    layer, kind = edges["layer"].astype(np.int64), edges["kind"]
    is_mlp = np.isin(kind, [KINDS.index(kind) for kind in MLP_KINDS]).astype(np.int64)
    start = geometry.below(layer, is_mlp)
    ends = np.searchsorted(start, np.arange(geometry.node_layers + 1))
    attention = kind == KINDS.index("attn")
    values = np.array(geometry.value_blocks)[layer[attention]]
    start[attention] = geometry.below(values, is_mlp[attention])
    level = stratum + 1 - edges["stratum"].astype(np.int64)  # cuts cleared; below: the bottleneck
    tokens = 1 + edges["target"].max(initial=output)
    reach = np.zeros((geometry.node_layers + 1, tokens), dtype=np.int64)
    reach[-1, output] = stratum + 1
    for below in reversed(range(geometry.node_layers)):
        here = slice(ends[below], ends[below + 1])
        level[here] = np.minimum(level[here], reach[below + 1, edges["target"][here]])
        np.maximum.at(reach, (start[here], edges["source"][here]), level[here])
    reached = level > 0
    selected = edges[reached]
    selected["stratum"] = stratum + 1 - level[reached]
    return selected
