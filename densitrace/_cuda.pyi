"""The compiled module for NVIDIA GPUs; its sources are in csrc/cuda.

Tensors come as the addresses of contiguous arrays in the memory of `device`, whose shapes and types
`kernels/cuda.py` has checked; an op queues its kernels on a stream and waits for nothing.
RuntimeError says what the CUDA runtime reports.
"""

DEVICE: str  # the type of the devices whose memory the addresses are of

def bottleneck(
    reach: int, levels: int, result: int, batch: int, length: int, device: int, stream: int
) -> None:
    """Writes the (max, min) product of uint8 [B, T, T] arrays into `result`."""

def bottleneck_boolean(
    reach: int,
    levels: int,
    most: int,
    planes: int,
    some: int,
    result: int,
    batch: int,
    length: int,
    device: int,
    stream: int,
) -> None:
    """The same by a product of bits for each level up to the highest, `most`, uint8 [1].

    `planes` has room for those of `some` levels.
    """

def plane_words(batch: int, length: int) -> int:
    """Words, of 4 bytes, of the planes of one level."""

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
    """Writes the edges of every trace that enter one node layer, int64 [K, B, T]."""

class Pattern:
    """`densitrace.kernels.Pattern` in float32; 0 stands for no segments, window or cap."""

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
    """A `densitrace.kernels.EdgeWeight`, or scores; 0 stands for no `target`."""

    @staticmethod
    def scores() -> Weights: ...
    @staticmethod
    def norm(source: int, target: int) -> Weights: ...
    @staticmethod
    def proximity(along: int, v: int, target: int, d_v: int) -> Weights: ...
    @staticmethod
    def given(weight: int) -> Weights: ...

class Tile:
    """Targets from `first` on of the heads from `head` on, of all sequences.

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
    """Writes the weights of a tile, or bounds on proximities and, into `share`, alpha / rho."""

def count_rows(
    weight: int,
    floor: int,
    tile: Tile,
    heads: int,
    kept: int,
    device: int,
    stream: int,
) -> None:
    """Writes how many edges of each row clear `floor` [B, T], int64 [B, H, T]; H is `heads`."""

def table_rows(
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
    """Writes the edges that clear the last of `cuts` [K, B, T] into a table, from `starts` on.

    Its columns are those of `densitrace.kernels.EdgeTable`.
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
    """Writes the cuts [K, B, T] of a tile's nodes; the tile has all heads, or none.

    They keep `wanted` shares, float64 [K], of a total [B, T], or of the number of edges where that
    is 0: of the tile's weights, which are moved about, and of `side`, float32 [E, B, T].
    """

def settle(
    ranked: tuple[int, int],
    sent: int,
    most: int,
    share: int,
    cuts: int,
    strata: int,
    weight: int,
    tile: Tile,
    heads: int,
    hidden: int,
    settled: tuple[int, int, int],
    device: int,
    stream: int,
) -> None:
    """Writes proximities in place of the bounds that leave a label under `cuts` in doubt.

    With `strata` 0 there are no cuts and all weights are wanted. `ranked` is
    `densitrace.kernels.ProximityWeight.ranked`; `sent` [heads of the tile, B, T, D] is W_O v and
    `most` [.., B, T] its largest magnitudes. `settled`, [B, H, T] with H `heads`, takes the rows'
    sums (float32, 0 under cuts), their edges and how many of these were summed (int32).
    """

def label(
    weight: int,
    cuts: int,
    strata: int,
    tile: Tile,
    levels: int,
    degrees: int,
    device: int,
    stream: int,
) -> None:
    """Raises `levels` [B, T, T] to those of some more heads, adds to `degrees` [K, B, T]."""
