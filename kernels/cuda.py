"""Ops in CUDA C++ on tensors of a GPU: thin calls into `densitrace._cuda`.

Each op is queued on torch's current stream of the tensors' device. Weights are float32 and computed
for a tile of targets at a time, by products on the matrix units.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import _cuda
from .edges import AttentionEdges, GivenWeight, NormWeight, Pattern, ProximityWeight
from .results import EdgeLevels, EdgeTable
from .runs import edges_in, runs

WEIGHTS = {  # for other kinds `dispatch` picks another backend
    "collect_edges": (NormWeight, GivenWeight),
    "edge_levels": (ProximityWeight,),
    "edge_mass": (ProximityWeight,),
    "fraction_cuts": (NormWeight, GivenWeight, ProximityWeight),
    "nucleus_cuts": (NormWeight, GivenWeight, ProximityWeight),
}

PLANE_WORDS = 1 << 26  # 32-bit words of bit planes held at once by the boolean product: 256 MiB
TILE_ELEMENTS = 1 << 25  # weights held at once: 128 MiB
FEWEST_NODES = 264  # whose cuts are found at once, a block each: two a multiprocessor of an H200
TABLE_ELEMENTS = 1 << 23  # weights of a table: 32 MiB, and 152 MiB of edges if all are kept
SCRATCH_ELEMENTS = 1 << 27  # weights that edge_mass keeps for edge_levels: 512 MiB


def _device_and_stream(device: torch.device) -> tuple[int, int]:
    """A device's index and the address of torch's current stream, for the compiled module."""
    if device.type != _cuda.DEVICE:
        raise ValueError(f"tensors are on {device}; backend='cuda' wants them on a GPU")
    if device.type != "cuda":
        return 0, 0
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream


def _address(name: str, tensor: Tensor, dtype: torch.dtype, *shape: int, on: torch.device) -> int:
    """Check dtype, layout, shape and device of a tensor, which no kernel does; its address."""
    if tensor.dtype != dtype or not tensor.is_contiguous():
        raise TypeError(f"{name} is not a contiguous tensor of {dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; wanted {list(shape)}")
    if tensor.device != on:
        raise ValueError(f"{name} is on {tensor.device}; wanted on {on}, as the others are")
    return tensor.data_ptr()


def _floats(tensor: Tensor) -> Tensor:
    return tensor.float().contiguous()


# ---- bottlenecks -------------------------------------------------------------------------------


def bottleneck(reach: Tensor, levels: Tensor, method: str = "packed") -> Tensor:
    """By `method` "packed" or "boolean", which csrc/cuda/bottleneck.cu describes."""
    batch, length, _ = reach.shape
    result = torch.empty_like(reach, memory_format=torch.contiguous_format)
    if not result.numel():
        return result
    shape, device = (batch, length, length), reach.device
    reach, levels = reach.contiguous(), levels.contiguous()
    maps = (
        _address("reach", reach, torch.uint8, *shape, on=device),
        _address("levels", levels, torch.uint8, *shape, on=device),
    )
    into = (result.data_ptr(), batch, length, *_device_and_stream(device))
    match method:
        case "packed":
            _cuda.bottleneck(*maps, *into)
        case "boolean":
            # The highest level stays on the device: the host does not wait for it.
            highest = levels.amax()
            words = _cuda.plane_words(batch, length)
            capacity = max(1, min(255, PLANE_WORDS // words))
            planes = torch.empty(capacity * words, dtype=torch.int32, device=device)
            _cuda.bottleneck_boolean(*maps, highest.data_ptr(), planes.data_ptr(), capacity, *into)
        case other:
            raise ValueError(f"method={other!r} is neither packed nor boolean")
    return result


def trace_sizes(reach: Tensor, degrees: Tensor) -> Tensor:
    strata, batch, length = degrees.shape
    device = degrees.device
    result = torch.empty(degrees.shape, dtype=torch.int64, device=device)
    reach, degrees = reach.contiguous(), degrees.contiguous()
    _cuda.trace_sizes(
        _address("reach", reach, torch.uint8, batch, length, length, on=device),
        _address("degrees", degrees, torch.int32, strata, batch, length, on=device),
        result.data_ptr(),
        strata,
        batch,
        length,
        *_device_and_stream(device),
    )
    return result


# ---- tiles of weights --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tile:
    """A range of targets and of heads, of all sequences; see csrc/cuda/edges.h."""

    batch: int
    head: int
    heads: int
    rows: slice
    length: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[B, heads, rows, sources]."""
        return self.batch, self.heads, self.rows.stop - self.rows.start, self.rows.stop

    @property
    def key(self) -> tuple[int, ...]:
        """Key of the tile within its edges."""
        return self.head, self.heads, self.rows.start, self.rows.stop

    @property
    def compiled(self) -> "_cuda.Tile":
        """The tile for the compiled module."""
        start, stop = self.rows.start, self.rows.stop
        return _cuda.Tile(self.batch, self.head, self.heads, start, stop - start, self.length)


def _tiles(batch: int, head: int, heads: int, length: int, targets: int = 1) -> Iterator[_Tile]:
    """Tiles over all targets of heads [head, head + heads), as large as TILE_ELEMENTS allows.

    `targets`: of a sequence, at least.
    """
    block = max(targets, TILE_ELEMENTS // max(1, batch * heads * length))
    for start in range(0, length, block):
        yield _Tile(batch, head, heads, slice(start, min(length, start + block)), length)


class _Weighing:
    """Weights of attention edges, tile by tile. Keeps the tensors alive that the kernels read."""

    def __init__(self, edges: AttentionEdges) -> None:
        pattern = edges.pattern
        self.batch, self.heads, self.length = pattern.shape
        self.groups, self.device = pattern.k.shape[1], pattern.device
        self.where = _device_and_stream(self.device)
        self.tensors: list[Tensor] = []
        # `_logsumexp` weighs by scores, which need no lse; everything later reads this one.
        self.lse = pattern.lse if pattern.lse is not None else self._logsumexp(pattern)
        self.pattern = self._pattern(replace(pattern, lse=self.lse))
        self.weights = self._weights(edges)

    def weigh(self, tile: _Tile, share: Tensor | None = None) -> Tensor:
        """Weights of a tile, float32; for proximity upper bounds, and alpha / rho into `share`."""
        return self._weigh(self.pattern, self.weights, tile, share)

    def _weigh(
        self, pattern: "_cuda.Pattern", weights: "_cuda.Weights", tile: _Tile, share: Tensor | None
    ) -> Tensor:
        weight = torch.empty(tile.shape, dtype=torch.float32, device=self.device)
        into = 0 if share is None else share.data_ptr()
        _cuda.weigh(pattern, weights, tile.compiled, weight.data_ptr(), into, *self.where)
        return weight

    def _logsumexp(self, pattern: Pattern) -> Tensor:
        lse = torch.empty(pattern.shape, dtype=torch.float32, device=self.device)
        compiled = self._pattern(replace(pattern, lse=lse))
        for tile in _tiles(self.batch, 0, self.heads, self.length):
            scores = self._weigh(compiled, _cuda.Weights.scores(), tile, None)
            source = torch.arange(tile.rows.stop, device=self.device)
            beyond = source > source[tile.rows, None]  # above the diagonal: may be unwritten
            lse[:, :, tile.rows] = scores.masked_fill_(beyond, -torch.inf).logsumexp(-1)
        if pattern.sinks is not None:
            lse = torch.logaddexp(lse, pattern.sinks.float()[None, :, None])
        return lse

    def address(self, name: str, tensor: Tensor | None, *shape: int) -> int:
        """Address of a float32 copy that lives as long as this object; 0 for None."""
        if tensor is None:
            return 0
        self.tensors.append(_floats(tensor))
        return _address(name, self.tensors[-1], torch.float32, *shape, on=self.device)

    def factors(self, left: Tensor, right: Tensor) -> tuple[int, int, int]:
        """Addresses of [B, H, T, d] and [B, G, T, d] as bfloat16 for weigh.cu, and their new d.

        The kernel reads 16 bytes at a time, so rows are padded with zeros to a multiple of 8 and
        start at multiples of 16 bytes.
        """
        left, right = _split_factors(left, right, -1)
        depth = left.shape[-1] + -left.shape[-1] % 8
        return (
            self._factor(left, self.heads, depth),
            self._factor(right, self.groups, depth),
            depth,
        )

    def _factor(self, tensor: Tensor, heads: int, depth: int) -> int:
        if tensor.shape[-1] < depth:
            tensor = pad(tensor, (0, depth - tensor.shape[-1]))
        tensor = tensor.contiguous()
        self.tensors.append(tensor if tensor.data_ptr() % 16 == 0 else tensor.clone())
        shape = (self.batch, heads, self.length, depth)
        return _address("a factor", self.tensors[-1], torch.bfloat16, *shape, on=self.device)

    def _pattern(self, pattern: Pattern) -> "_cuda.Pattern":
        q, k, depth = self.factors(pattern.q, pattern.k)
        segments = 0
        if pattern.segments is not None:
            self.tensors.append(pattern.segments.to(torch.int32).contiguous())
            shape = (self.batch, self.length)
            segments = _address("segments", self.tensors[-1], torch.int32, *shape, on=self.device)
        return _cuda.Pattern(
            q,
            k,
            self.address("lse", pattern.lse, *pattern.shape),
            segments,
            self.batch,
            self.heads,
            self.groups,
            self.length,
            depth,
            pattern.window or 0,
            pattern.scale,
            pattern.softcap or 0.0,
        )

    def _weights(self, edges: AttentionEdges) -> "_cuda.Weights":
        shape = edges.pattern.shape
        targets = (self.batch, self.length)
        match edges.weight:
            case NormWeight(source, target):
                return _cuda.Weights.norm(
                    self.address("source", source, *shape),
                    self.address("target", target, *targets),
                )
            case GivenWeight(given):
                return _cuda.Weights.given(
                    self.address("weight", given, *shape, self.length),
                )
            case ProximityWeight(node, v, w_o, target):
                along, values, depth = self.factors(_along(node, w_o), v)
                return _cuda.Weights.proximity(
                    along, values, self.address("target", target, *targets), depth
                )
        raise TypeError(f"no kernel weighs edges by a {type(edges.weight).__name__}")


def _along(node: Tensor, w_o: Tensor) -> Tensor:
    """float32 [B, H, T, d_v]: W_O^T sign(n), whose product with v_s bounds what s adds to t.

    An entry 0 counts as positive, as in csrc/cuda/proximity.cu. A NaN or infinite entry gives NaN.
    """
    heads, hidden, width = w_o.shape
    signs = torch.where(node < 0, -1.0, 1.0).add_(node - node)  # node - node: 0, or NaN
    every = w_o.transpose(0, 1).reshape(hidden, heads * width)
    along = product(signs.bfloat16().flatten(0, 1), every)
    return along.view(*node.shape[:2], heads, width).transpose(1, 2)


def product(left: Tensor, right: Tensor) -> Tensor:
    """float32 [..., n, m] from [..., n, d] and [..., d, m], as precise as float32.

    One bfloat16 product on the matrix units (cuBLAS), independent of torch's TF32 settings.
    """
    left, right = _split_factors(left, right, -2)
    multiply = torch.mm if left.dim() == 2 else torch.bmm
    if left.is_cpu:  # out_dtype exists on GPUs only
        return multiply(left.float(), right.float())
    return multiply(left, right, out_dtype=torch.float32)


def _split_factors(left: Tensor, right: Tensor, inner: int) -> tuple[Tensor, Tensor]:
    """Two factors as bfloat16, whose product with float32 sums is as precise as float32.

    Each factor is split into bfloat16 pieces whose products are exact. The pieces are concatenated
    along the inner dimension, the last of `left` and dimension `inner` of `right`.
    """
    lefts, rights = _pieces(left), _pieces(right)
    # The smallest products come first; those left out are below the rounding of float32.
    pairs = [(i, j) for i in range(len(lefts)) for j in range(len(rights)) if i + j < 3]
    pairs.sort(key=sum, reverse=True)
    if len(pairs) == 1:
        return lefts[0], rights[0]
    return (
        torch.cat([lefts[i] for i, _ in pairs], -1),
        torch.cat([rights[j] for _, j in pairs], inner),
    )


def _pieces(tensor: Tensor) -> list[Tensor]:
    """Split a tensor into a sum of one, two or three bfloat16 tensors, of 8 bits each."""
    pieces, rest = [tensor.bfloat16()], tensor
    for _ in range({torch.bfloat16: 0, torch.float16: 1}.get(tensor.dtype, 2)):
        rest = rest.float() - pieces[-1]
        pieces.append(rest.bfloat16())
    return pieces


# ---- cuts of nodes -----------------------------------------------------------------------------


def nucleus_cuts(
    edges: AttentionEdges | None, side: Tensor, masses: Tensor, total: Tensor
) -> Tensor:
    return _node_cuts(edges, side, masses, total)


def fraction_cuts(edges: AttentionEdges | None, side: Tensor, fractions: Tensor) -> Tensor:
    return _node_cuts(edges, side, fractions, None)


def _node_cuts(
    edges: AttentionEdges | None, side: Tensor, wanted: Tensor, total: Tensor | None
) -> Tensor:
    """Cuts by `wanted` shares of the total; if that is None, of the number of edges."""
    sides, batch, length = side.shape
    device, where = side.device, _device_and_stream(side.device)
    cuts = torch.empty(len(wanted), batch, length, dtype=torch.float32, device=device)
    side, wanted = _floats(side), wanted.double().contiguous()
    total = None if total is None else _floats(total)
    window = 0 if edges is None else edges.pattern.window or 0
    arguments = (
        _address("side", side, torch.float32, sides, batch, length, on=device),
        sides,
        _address("shares", wanted, torch.float64, len(wanted), on=device),
        len(wanted),
        0 if total is None else _address("total", total, torch.float32, batch, length, on=device),
        cuts.data_ptr(),
        *where,
    )
    if edges is None:
        alone = _Tile(batch, 0, 0, slice(0, length), length)
        _cuda.node_cuts(0, alone.compiled, window, *arguments)
        return cuts
    for tile, weight in _whole_nodes(edges):
        _cuda.node_cuts(weight.data_ptr(), tile.compiled, window, *arguments)
    return cuts


def _whole_nodes(edges: AttentionEdges) -> Iterator[tuple[_Tile, Tensor]]:
    """Tiles of targets with the weights of all heads, which the caller may overwrite."""
    if isinstance(edges.weight, ProximityWeight):
        yield from _Proximity(edges).whole_nodes()
        return
    weighing = _Weighing(edges)
    for tile in _node_tiles(weighing.batch, weighing.heads, weighing.length):
        yield tile, weighing.weigh(tile)


def _node_tiles(batch: int, heads: int, length: int) -> Iterator[_Tile]:
    """Tiles of all heads, with enough targets to occupy a GPU."""
    return _tiles(batch, 0, heads, length, targets=-(-FEWEST_NODES // max(1, batch)))


# ---- the kept edges as tables ------------------------------------------------------------------


def collect_edges(edges: AttentionEdges, cuts: Tensor) -> Iterator[EdgeTable]:
    pattern, cuts = edges.pattern, _floats(cuts)
    batch, _, length = pattern.shape
    _address("cuts", cuts, torch.float32, len(cuts), batch, length, on=pattern.device)
    if pattern.lse is None:
        edges = replace(edges, pattern=replace(pattern, lse=_Weighing(edges).lse))
    for run in runs(pattern.shape, pattern.k.shape[1], TABLE_ELEMENTS):
        table = _table(edges_in(edges, run), cuts[:, run.sequences], run.rows)
        if table is not None:
            table.sequence.add_(run.sequences.start)
            table.head.add_(run.heads.start)
            yield table
        del table  # free this table before the next one is made


def _table(edges: AttentionEdges, cuts: Tensor, rows: slice) -> EdgeTable | None:
    """The kept edges into targets `rows`; None if there are none."""
    weighing = _Weighing(edges)
    batch, heads, length = edges.pattern.shape
    device, where = weighing.device, weighing.where
    every_cut = weighing.address("cuts", cuts, len(cuts), batch, length)
    floor = weighing.address("cuts", cuts[-1], batch, length)
    tile = _Tile(batch, 0, heads, rows, length)
    weight = weighing.weigh(tile)
    # Per row of the tile: first how many edges it keeps, then where they start in the table.
    places = torch.empty(batch, heads, length, dtype=torch.int64, device=device)
    _cuda.count_edges(weight.data_ptr(), floor, tile.compiled, heads, places.data_ptr(), *where)
    counts = places[:, :, rows].flatten()
    ends = counts.cumsum(0)
    total = int(ends[-1])  # the host waits: the table's size depends on it
    if not total:
        return None
    places[:, :, rows] = (ends - counts).view(batch, heads, -1)

    def column(dtype: torch.dtype) -> Tensor:
        return torch.empty(total, dtype=dtype, device=device)

    table = EdgeTable(
        column(torch.int32),
        column(torch.int16),
        column(torch.int32),
        column(torch.int32),
        column(torch.float32),
        column(torch.uint8),
    )
    _cuda.write_edges(
        weight.data_ptr(),
        every_cut,
        len(cuts),
        tile.compiled,
        heads,
        places.data_ptr(),
        (
            table.sequence.data_ptr(),
            table.head.data_ptr(),
            table.source.data_ptr(),
            table.target.data_ptr(),
            table.weight.data_ptr(),
            table.stratum.data_ptr(),
        ),
        *where,
    )
    return table


# ---- proximity ---------------------------------------------------------------------------------


class _Proximity:
    """Proximity of attention edges, tile by tile: METHOD §2.

    With `cuts` [K, B, T] a weight is exact only where that decides its level, and otherwise an
    upper bound of the same level; without cuts all weights are exact.
    """

    def __init__(self, edges: AttentionEdges, cuts: Tensor | None = None) -> None:
        assert isinstance(edges.weight, ProximityWeight)
        self.edges, self.weight = edges, edges.weight
        self.strata = 0 if cuts is None else len(cuts)
        self.shape, self.device = edges.pattern.shape, edges.pattern.device
        self.cuts = 0
        if cuts is not None:
            self.cut_values, shape = _floats(cuts), (self.strata, self.shape[0], self.shape[2])
            self.cuts = _address("cuts", self.cut_values, torch.float32, *shape, on=self.device)
        # Per row: the sum of its weights (without cuts only); its number of edges, and how many of
        # them were summed entry by entry.
        self.sums = torch.empty(self.shape, dtype=torch.float32, device=self.device)
        counts = edges.scratch.pop("counts", None) if self.strata else None
        if counts is None:
            counts = torch.empty(2, *self.shape, dtype=torch.int32, device=self.device)
        self.edge_counts, self.summed_counts = self.counts = counts

    @cached_property
    def weighing(self) -> _Weighing:
        """Made on first use: not needed if all tiles were kept by `keep_weights`."""
        return _Weighing(self.edges)

    def tiles(self, rows: slice | None = None) -> Iterator[tuple[_Tile, Tensor]]:
        """Tiles, a few heads at a time, with their weights float32 [B, heads, rows, sources].

        Over all targets, or over `rows` only, whose weights of all heads fit TILE_ELEMENTS.
        """
        batch, heads, length = self.shape
        widest = max(1, batch * length * max(length, self.weight.node.shape[-1]))
        together = max(1, TILE_ELEMENTS // widest)
        for head in range(0, heads, together):
            chunk = range(head, min(heads, head + together))
            sent: Tensor | None = None
            alone = None if rows is None else _Tile(batch, head, len(chunk), rows, length)
            for tile in _tiles(batch, head, len(chunk), length) if alone is None else [alone]:
                weight = None
                if self.strata:  # edge_levels is the last op to need them: it frees each tile
                    weight = self.edges.scratch.pop(tile.key, None)
                elif alone is not None:
                    weight = self.edges.scratch.get(tile.key)
                if weight is None:
                    if sent is None:
                        sent = self._sent(chunk)
                        largest = torch.linalg.vector_norm(sent, torch.inf, dim=-1)
                    share = torch.empty(tile.shape, dtype=torch.float32, device=self.device)
                    weight = self.weighing.weigh(tile, share)
                    self._refine_bounds(tile, weight, share, sent, largest)
                yield tile, weight

    def whole_nodes(self) -> Iterator[tuple[_Tile, Tensor]]:
        """Tiles of targets with the weights of all heads."""
        batch, heads, length = self.shape
        for tile in _node_tiles(batch, heads, length):
            weight = torch.empty(tile.shape, dtype=torch.float32, device=self.device)
            for part, weight_of_part in self.tiles(tile.rows):
                weight[:, part.head : part.head + part.heads] = weight_of_part
            yield tile, weight

    def keep_weights(self) -> None:
        """Compute all weights; keep as many tiles as SCRATCH_ELEMENTS allows for `edge_levels`.

        Exact weights give the same levels there as bounds would.
        """
        scratch, room = self.edges.scratch, SCRATCH_ELEMENTS
        scratch.clear()
        scratch["counts"] = self.counts
        for tile, weight in self.tiles():
            if weight.numel() <= room:
                scratch[tile.key] = weight
                room -= weight.numel()

    def _sent(self, heads: range) -> Tensor:
        """float32 [heads, B, T, D]: W_O v, what each source sends through these heads."""
        groups, of_model = self.weight.v.shape[1], self.shape[1]
        values = torch.stack([self.weight.v[:, head * groups // of_model] for head in heads])
        w_o = self.weight.w_o[heads.start : heads.stop].transpose(1, 2)
        return product(values.flatten(1, 2), w_o).view(*values.shape[:3], -1)

    def _refine_bounds(
        self, tile: _Tile, weight: Tensor, share: Tensor, sent: Tensor, largest: Tensor
    ) -> None:
        """Replace bounds in `weight` by exact weights where a level needs them, in place."""
        batch, heads, length = self.shape
        hidden, device = self.weight.node.shape[-1], self.device
        entry, dimension = self.weight.ranked
        shape = (tile.heads, batch, length)
        _cuda.refine_bounds(
            (
                _address("node", entry, torch.float32, batch, length, hidden, on=device),
                _address("node", dimension, torch.int32, batch, length, hidden, on=device),
            ),
            _address("sent", sent, torch.float32, *shape, hidden, on=device),
            largest.data_ptr(),
            share.data_ptr(),
            self.cuts,
            self.strata,
            weight.data_ptr(),
            tile.compiled,
            heads,
            hidden,
            (self.sums.data_ptr(), self.edge_counts.data_ptr(), self.summed_counts.data_ptr()),
            *self.weighing.where,
        )


def edge_levels(edges: AttentionEdges, cuts: Tensor) -> EdgeLevels:
    batch, _, length = edges.pattern.shape
    proximity = _Proximity(edges, cuts)
    levels = torch.zeros(batch, length, length, dtype=torch.uint8, device=cuts.device)
    degrees = torch.zeros(cuts.shape, dtype=torch.int32, device=cuts.device)
    for tile, weight in proximity.tiles():
        _cuda.update_levels(
            weight.data_ptr(),
            proximity.cuts,
            proximity.strata,
            tile.compiled,
            levels.data_ptr(),
            degrees.data_ptr(),
            *_device_and_stream(cuts.device),
        )
    evaluated = proximity.summed_counts.sum() / proximity.edge_counts.sum()
    return EdgeLevels(levels, degrees, evaluated)


def edge_mass(edges: AttentionEdges) -> Tensor:
    proximity = _Proximity(edges)
    proximity.keep_weights()
    return proximity.sums.sum(1)
