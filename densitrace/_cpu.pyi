"""The compiled ops for CPUs; sources in csrc/.

Every op raises ValueError for a wrong shape or an unavailable instruction set, and TypeError for a
wrong dtype or layout: nothing is converted. bfloat16 arrays are passed as the uint16 of their bits.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Rows = NDArray[np.float32] | NDArray[np.uint16]  # float32 or bfloat16, strided

def instruction_sets() -> list[str]:
    """The available values of `isa` besides "auto", the fastest first."""

class Pattern:
    """`densitrace.kernels.Pattern` for these ops; 0 means no window, or no cap."""

    def __init__(
        self,
        q: Rows,
        k: Rows,
        scale: float,
        window: int,
        softcap: float,
        sinks: Floats | None,
        segments: NDArray[np.int32] | None,
        lse: Floats | None,
    ) -> None: ...

class Edges:
    """`densitrace.kernels.AttentionEdges` for these ops."""

    @staticmethod
    def norm(pattern: Pattern, source: Floats, target: Floats | None) -> Edges: ...
    @staticmethod
    def cosine(pattern: Pattern, direction: Floats, source: Floats, v: Rows) -> Edges: ...
    @staticmethod
    def proximity(
        pattern: Pattern, node: Floats, v: Rows, w_o: Floats, target: Floats | None
    ) -> Edges: ...
    @staticmethod
    def random(pattern: Pattern, seed: int, stream: int, positions: NDArray[np.int32]) -> Edges: ...
    @staticmethod
    def given(pattern: Pattern, weight: Floats) -> Edges: ...

def source_norms(
    v: Rows, w_o: Floats, p: int, norms: Floats, threads: int, isa: str = "auto"
) -> None:
    """Write source norms to `norms` [B, H, T]."""

def attention_stats(
    pattern: Pattern,
    v: Rows,
    source: Floats | None,
    output: Floats,
    lse: Floats,
    mass: Floats,
    threads: int,
    isa: str = "auto",
) -> None:
    """Write attention output [B, H, T, d_v], log-sum-exp [B, H, T] and edge mass [B, T]."""

def edge_mass(edges: Edges, mass: Floats, threads: int, isa: str = "auto") -> None:
    """Write the sum of the weights into each target, [B, T]."""

def edge_weights(edges: Edges, weights: Floats, threads: int, isa: str = "auto") -> None:
    """Write all weights [B, H, T, T], NaN where there is no edge."""

def nucleus_cuts(
    edges: Edges | None,
    side: Floats,
    masses: NDArray[np.float64],
    total: Floats,
    cuts: Floats,
    threads: int,
    isa: str = "auto",
) -> None:
    """Write the cuts [K, B, T] that keep each mass."""

def fraction_cuts(
    edges: Edges | None,
    side: Floats,
    fractions: NDArray[np.float64],
    cuts: Floats,
    threads: int,
    isa: str = "auto",
) -> None:
    """Write the cuts [K, B, T] that keep each fraction."""

def random_cuts(
    edges: Edges,
    eligible: NDArray[np.uint8],
    counts: NDArray[np.int64],
    cuts: Floats,
    threads: int,
    isa: str = "auto",
) -> None:
    """Write the cuts [K, B] above which `counts` [K, B] random weights lie."""

def edge_levels(
    edges: Edges,
    cuts: Floats,
    levels: NDArray[np.uint8],
    degrees: NDArray[np.int32],
    threads: int,
    isa: str = "auto",
) -> tuple[int, int]:
    """Write level map [B, T, T] and in-degrees [K, B, T].

    Returns:
        Under proximity the number of edges, and of those that were summed exactly; else zeros.
    """

def lane_attention(
    edges: Edges,
    cuts: Floats,
    v: Rows,
    lanes: Pattern | None,
    invert: bool,
    output: Floats,
    threads: int,
    isa: str = "auto",
) -> None:
    """Write the attention output of the masked lanes, [K, B, H, T, d_v].

    The lanes' own queries, keys and values are [K * B, heads or groups, T, d].
    """

def collect_edges(
    edges: Edges,
    cuts: Floats,
    counts: NDArray[np.int64],
    limit: int,
    row: int,
    threads: int,
    isa: str = "auto",
) -> tuple[
    tuple[
        NDArray[np.int32],
        NDArray[np.int16],
        NDArray[np.int32],
        NDArray[np.int32],
        Floats,
        NDArray[np.uint8],
    ],
    int,
]:
    """The kept edges of consecutive rows of [B, H, T]; the first row that is not included.

    Rows are taken from `row` on while they keep at most `limit` edges together, but at least one
    row. Columns: sequence, head, source, target, weight, stratum. The call for row 0 writes
    `counts` [B, H, T]; later calls read them.
    """

def bottleneck(
    reach: NDArray[np.uint8],
    levels: NDArray[np.uint8],
    result: NDArray[np.uint8],
    threads: int,
    isa: str = "auto",
) -> None:
    """Write the (max, min) product of uint8 [B, T, T] arrays to `result`."""

def trace_sizes(
    reach: NDArray[np.uint8],
    degrees: NDArray[np.int32],
    result: NDArray[np.int64],
    threads: int,
    isa: str = "auto",
) -> None:
    """Write the number of edges of every trace that enter one node layer, [K, B, T]."""

def output_errors(
    logits: Floats,
    bias: Floats | None,
    scale: float,
    softcap: float,
    next_ids: NDArray[np.int64],
    vocabulary: int,
    errors: list[Floats],
    first: int,
    threads: int,
    isa: str = "auto",
) -> None:
    """Write the errors of n tokens, overwriting their logits [1 + K, n, padded V].

    `errors` are tv, kl, top1, nucleus, loss, entropy [K, M], clean loss and entropy [M]; the n
    tokens start at column `first`.
    """
