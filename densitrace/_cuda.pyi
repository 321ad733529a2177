"""The compiled ops for NVIDIA GPUs; sources in csrc/cuda.

Tensors are passed as addresses of contiguous arrays in the memory of `device`, whose shapes and
dtypes `kernels/cuda` has checked. An op queues its kernels on a stream and does not wait. Errors
of the CUDA runtime are raised as RuntimeError.
"""

DEVICE: str  # torch's type of the devices that these ops run on

def driver_error() -> str:
    """Why the driver cannot run these ops, such as being older than the runtime; else empty."""

def bottleneck(
    reach: int, levels: int, result: int, batch: int, length: int, device: int, stream: int
) -> None:
    """Write the (max, min) product of uint8 [B, T, T] arrays to `result`."""

def bottleneck_boolean(
    reach: int,
    levels: int,
    highest: int,
    planes: int,
    capacity: int,
    result: int,
    batch: int,
    length: int,
    device: int,
    stream: int,
) -> None:
    """The same, by a product of bit matrices for each level up to `highest`, uint8 [1].

    `planes` has room for `capacity` levels, of `plane_words` words each.
    """

def plane_words(batch: int, length: int) -> int:
    """Number of 4-byte words of the planes of one level."""

def trace_sizes(
    reach: int,
    degrees: int,
    result: int,
    strata: int,
    batch: int,
    length: int,
    device: int,
    stream: int,
) -> None:
    """Write the number of edges of every trace that enter one node layer, int64 [K, B, T]."""

class Pattern:
    """`densitrace.kernels.Pattern` for these ops; 0 means no segments, window or cap."""

    def __init__(
        self,
        q: int,
        k: int,
        lse: int,
        segments: int,
        batch: int,
        heads: int,
        groups: int,
        length: int,
        d_k: int,
        window: int,
        scale: float,
        softcap: float,
    ) -> None: ...

class Weights:
    """A `densitrace.kernels.EdgeWeight`, or attention scores; 0 means no `target`."""

    @staticmethod
    def scores() -> Weights: ...
    @staticmethod
    def norm(source: int, target: int) -> Weights: ...
    @staticmethod
    def proximity(along: int, v: int, target: int, d_v: int) -> Weights: ...
    @staticmethod
    def given(weight: int) -> Weights: ...

class Tile:
    """Targets [first, first + rows) of heads [head, head + heads) of all sequences.

    Arrays of a tile are [B, heads, rows, first + rows].
    """

    def __init__(
        self, batch: int, head: int, heads: int, first: int, rows: int, length: int
    ) -> None: ...

def weigh(
    pattern: Pattern,
    weights: Weights,
    tile: Tile,
    weight: int,
    share: int,
    device: int,
    stream: int,
) -> None:
    """Write the weights of a tile; for proximity upper bounds, and alpha / rho to `share`."""

def count_edges(
    weight: int,
    floor: int,
    tile: Tile,
    heads: int,
    kept: int,
    device: int,
    stream: int,
) -> None:
    """Write how many edges of each row clear `floor` [B, T], int64 [B, H, T]; H is `heads`."""

def write_edges(
    weight: int,
    cuts: int,
    strata: int,
    tile: Tile,
    heads: int,
    starts: int,
    columns: tuple[int, int, int, int, int, int],
    device: int,
    stream: int,
) -> None:
    """Write the edges that clear the last of `cuts` [K, B, T] to the columns of a table.

    `starts` [B, H, T] are the rows' offsets; columns are those of `densitrace.kernels.EdgeTable`.
    """

def node_cuts(
    weight: int,
    tile: Tile,
    window: int,
    side: int,
    sides: int,
    wanted: int,
    strata: int,
    total: int,
    cuts: int,
    device: int,
    stream: int,
) -> None:
    """Write the cuts [K, B, T] of a tile's nodes; the tile has all heads, or none.

    They keep the shares `wanted`, float64 [K], of `total` [B, T], or if that is 0 of the number of
    edges. A node's edges are its weights in the tile, which are overwritten, and its entries in
    `side`, float32 [E, B, T].
    """

def refine_bounds(
    ranked: tuple[int, int],
    sent: int,
    largest: int,
    share: int,
    cuts: int,
    strata: int,
    weight: int,
    tile: Tile,
    heads: int,
    hidden: int,
    totals: tuple[int, int, int],
    device: int,
    stream: int,
) -> None:
    """Replace bounds by exact proximities where the bound leaves the level under `cuts` in doubt.

    With `strata` 0 there are no cuts and all weights become exact. `ranked` is
    `densitrace.kernels.ProximityWeight.ranked`; `sent` [heads of the tile, B, T, D] is W_O v and
    `largest` [.., B, T] its largest magnitudes. `totals`, [B, H, T] with H `heads`, takes rows'
    sums (float32, 0 under cuts), numbers of edges and numbers of edges summed exactly (int32).
    """

def update_levels(
    weight: int,
    cuts: int,
    strata: int,
    tile: Tile,
    levels: int,
    degrees: int,
    device: int,
    stream: int,
) -> None:
    """Raise `levels` [B, T, T] to those of the tile's heads, and add to `degrees` [K, B, T]."""
