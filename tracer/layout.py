"""The store's format as data: names, dimensions, types, fill values and units of its arrays.

Dimensions: `window` N, `column` T (of a token in its window), `stratum` K (sparsest first),
`edge_kind` 4, `depth_quartile` 4, `doc` M, `label_field`, `part`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import KIND_NAMES

FORMAT = "densitrace traces"
FORMAT_VERSION = 2
PART_VALUES = 1 << 20  # (token, stratum) pairs of a part, at most, unless one window has more
FEWEST_VALUES = 1 << 16  # at least, if the corpus has as many: each part has a file per array
PARTS = 64  # aimed at between these bounds: enough to share among workers
CHUNK_VALUES = 1 << 17  # (token, stratum) pairs of a chunk, read at once
EDGES_PER_CHUNK = 1 << 17
EDGES_PER_SHARD = 1 << 22  # held in memory while a shard is written
LOST = -2  # fill of the plan's numbers, all larger: read where a file is missing
LAST = "token"  # the array of a part that is written last; every window has a token

KEYS: Any = {"name": "default", "separator": "."}  # all chunks of an array in one folder

# One kept edge. Rows of a part's table are sorted by layer, kind, head, target and source.
EDGE = np.dtype(
    [
        ("layer", np.uint16),  # block
        ("kind", np.uint8),  # index into `edge_kind`
        ("head", np.int16),  # -1: no attention edge
        ("target", np.int32),  # column in the window
        ("source", np.int32),
        ("weight", np.float32),  # normalised
        ("stratum", np.uint8),  # the sparsest that keeps the edge
    ]
)

_WINDOW = ("window",)
_TOKEN = ("window", "column")
_CURVE = ("window", "column", "stratum")


@dataclass(frozen=True)
class ArraySpec:
    """One array with a row per window: the text scanned, or a result of the scan."""

    name: str
    dims: tuple[str, ...]
    dtype: str
    fill: float | int  # value of padding, and of parts that are not done
    about: str
    units: str = ""


_SCANNED = (
    ArraySpec("document", _WINDOW, "int32", -1, "row of the document table"),
    ArraySpec("window_start", _WINDOW, "int32", -1, "first token's place in its document"),
    ArraySpec("position", _TOKEN, "int32", -1, "place of the token in its document"),
    ArraySpec("char_start", _TOKEN, "int32", -1, "the token's text in its document", "characters"),
    ArraySpec("char_end", _TOKEN, "int32", -1, "where that text ends", "characters"),
    ArraySpec("token", _TOKEN, "int32", -1, "token id"),
)
_CLEAN = (
    ArraySpec("surprisal", _TOKEN, "float32", np.nan, "-log p(next token), clean model", "nats"),
    ArraySpec("model_entropy", _TOKEN, "float32", np.nan, "of the clean prediction", "nats"),
    ArraySpec("full_edge_count", _TOKEN, "int64", -1, "edges of the full graph", "edges"),
    ArraySpec("size", _CURVE, "float32", np.nan, "edges of the trace / edges of the full graph"),
)
_ERRORS = (
    ArraySpec("tv", _CURVE, "float32", np.nan, "total variation, lane against clean"),
    ArraySpec("kl", _CURVE, "float32", np.nan, "KL(clean || lane)", "nats"),
    ArraySpec("top1", _CURVE, "int8", -1, "1 where both predict the same token"),
    ArraySpec("nucleus", _CURVE, "int8", -1, "largest nucleus shared, 0 if none", "percent"),
    ArraySpec("loss", _CURVE, "float32", np.nan, "-log p(next token), lane", "nats"),
    ArraySpec("entropy", _CURVE, "float32", np.nan, "of the lane's prediction", "nats"),
)
ERRORS = tuple(spec.name for spec in _ERRORS)


def window_arrays(controls: Sequence[str] = (), most_edges: int = 0) -> list[ArraySpec]:
    """List the arrays with a row per window, in the order in which a part is written.

    Args:
        controls: each adds the six errors of its lanes, `tv_inverse` and so on.
        most_edges: upper bound of a full graph's edges. Sets the dtype of `topology` alone, which
            counts in 64 bits from 2^32 edges on; not needed to list the arrays of a store.
    """
    lanes = [
        replace(spec, name=f"{spec.name}_{control}") for control in controls for spec in _ERRORS
    ]
    topology = ArraySpec(
        "topology",
        (*_CURVE, "edge_kind", "depth_quartile"),
        "uint32" if most_edges < 1 << 32 else "uint64",
        0,
        "edges of the trace by kind and depth; block l of L is in quartile 4 l // L",
        "edges",
    )
    return [*_CLEAN, *_ERRORS, *lanes, topology, *_SCANNED]


def coordinates(strata: Sequence[float]) -> dict[str, tuple[str, NDArray[Any]]]:
    """Return the coordinate arrays: name -> (dimension, values); strings as object arrays."""
    return {
        "stratum": ("stratum", np.array(strata, dtype=np.float64)),
        "edge_kind": ("edge_kind", np.array(KIND_NAMES, dtype=object)),
    }


@dataclass(frozen=True)
class Parts:
    """How N windows are divided: a part is one shard of every array, read chunk by chunk.

    Only arrays with a stratum dimension are large enough for several chunks a shard.
    """

    windows: int  # per part, a multiple of `chunk`
    chunk: int  # windows per chunk


def parts(columns: int, strata: int, windows: int) -> Parts:
    """Choose the sizes of parts and chunks for `windows` windows of `columns` tokens.

    Example:
        >>> parts(512, 12, 2000)
        Parts(windows=42, chunk=21)
    """

    def fitting(values: int) -> int:
        return max(1, values // (columns * strata))

    largest = fitting(PART_VALUES)
    wanted = min(largest, max(-(-windows // PARTS), min(largest, fitting(FEWEST_VALUES))))
    chunk = min(fitting(CHUNK_VALUES), wanted)
    return Parts(-(-wanted // chunk) * chunk, chunk)


def head_windows(columns: int, strata: int) -> int:
    """Return how many windows fill `PARTS` parts of the largest size.

    From this many windows on, the size of parts does not depend on the number of windows.

    Example:
        >>> head_windows(512, 12)
        12096
    """
    return PARTS * parts(columns, strata, sys.maxsize).windows
