"""Cuts that depend on all in-edges of a node, by histograms instead of a sort: METHOD §3.

The weights of a run of targets are written once to a scratch of bounded size, one contiguous row
per target, so that even costly kinds of weight are computed once. A program then finds all K cuts
of a target in three sweeps of its row: the first finds the heaviest and the lightest weight; the
second makes a histogram between them, shared by all strata; the third moves the weights of the bins
in which strata end to the front. Only those few are swept again, by one histogram per stratum that
narrows a bin down to a single weight, and once more for the next lighter weight.

A weight's depth is the number of floats between it and the heaviest weight of its node. A bin holds
a number of edges, or the sum of their weights in fixed point: integers, so that the order of
additions does not change a result.

Operations: 2 d_k a pair once, then about 60 a pair, and 25 K for each weight moved (about one in
ten). Bytes: 4 a pair, written once and read three times; the histograms stay in the cache.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..edges import AttentionEdges, CosineWeight, NormWeight
from . import configs
from .arguments import edge_weight, geometry, queries_and_keys, weighing_config
from .tiles import allowed_tile, block_and_row, load_rows
from .weights import alpha_tile, uses_alpha, weight_tile, with_lse

SCRATCH_ELEMENTS = 1 << 25  # float32 weights held at once: 128 MiB, or one target's if more
HISTOGRAM_ELEMENTS = 1 << 23  # int64 bins of all programs of a launch: 64 MiB

ROW_TILES = 1  # factor on a program's rows; tests raise it where launching programs is slow
MOST_ROWS = 4  # of a tile: more than one where nodes have few edges and strata are few
FEW_EDGES, FEW_STRATA = 512, 64
ALIGNED = tl.constexpr(16)  # weights: rows and their attention edges begin at multiples of this

HALF_BITS = tl.constexpr(20)  # half the fixed-point bits of the heaviest of few weights
LOG_FEW = tl.constexpr(21)  # of more than 2^LOG_FEW weights, the sum keeps below 2^62 by fewer bits


# ---- the weights, written out ----------------------------------------------------------------


@triton.jit(do_not_specialize=["seed", "salt", "first_target", "end_target", "first_source"])
def weight_rows_kernel(
    p_q, p_k, p_lse, p_rows, p_segments,
    p_source, p_target, p_sent, p_positions, p_given,
    s_q_n, s_q_m, s_q_t, s_k_n, s_k_m, s_k_t, s_sent_n, s_sent_m, s_sent_t,
    scale, softcap, length, seed, salt,
    first_target, end_target, first_source, columns, first_edge,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, D_K: tl.constexpr, BD: tl.constexpr,
    D_SENT: tl.constexpr, BSENT: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr,
    WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SEGMENTS: tl.constexpr,
    HAS_TARGET: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    i_t, i_row = block_and_row(end_target - first_target, BT)
    i_s = tl.program_id(1)
    if first_source + i_s * BS >= first_target + (i_t + 1) * BT:
        return  # all of these sources come after the targets
    i_b, i_h = i_row // HEADS, i_row % HEADS
    o_t = first_target + i_t * BT + tl.arange(0, BT)
    o_s = first_source + i_s * BS + tl.arange(0, BS)
    o_d = tl.arange(0, BD)
    p_segments += i_b * length
    m_allowed = allowed_tile(o_t, o_s, length, p_segments, WINDOW, HAS_SEGMENTS)
    # [BT, BS]
    b_alpha = tl.zeros([BT, BS], tl.float32)
    if uses_alpha(KIND):
        p_q += i_b * s_q_n + i_h * s_q_m
        p_k += i_b * s_k_n + i_h * GROUPS // HEADS * s_k_m
        b_q = load_rows(p_q, s_q_t, o_t, length, o_d, D_K)
        b_lse = tl.load(p_lse + i_row * length + o_t, mask=o_t < length, other=0.0)
        b_alpha = alpha_tile(
            b_q, b_lse, m_allowed, p_k, s_k_t, o_s, o_d, length, scale, softcap, D_K, HAS_SOFTCAP
        )
    b_weight = weight_tile(
        b_alpha, m_allowed, o_t, o_s, i_b, i_h, length,
        p_source, p_target, p_sent, s_sent_n, s_sent_m, s_sent_t, p_positions, p_given,
        seed, salt, HEADS, GROUPS, D_SENT, BSENT, KIND, HAS_TARGET,
    )  # fmt: skip
    o_row = i_b * (end_target - first_target) + o_t - first_target
    # Tiles of sources outermost, then heads: the sources up to a target lie at the row's front.
    o_column = first_edge + (i_s * HEADS + i_h) * BS + tl.arange(0, BS)
    p_rows += o_row[:, None] * columns + o_column[None, :]
    tl.store(p_rows, b_weight + 0.0, mask=(o_t < end_target)[:, None])  # + 0.0 turns -0 into 0


# ---- the cuts of a row -----------------------------------------------------------------------


@triton.jit
def load_weights(p_row, o_e, b_end):
    # [BR, BE]; -inf beyond the end
    m_here = o_e[None, :] < b_end[:, None]
    return tl.load(p_row[:, None] + o_e[None, :], mask=m_here, other=float("-inf"))


@triton.jit
def can_be_kept(b_weight, COUNTED: tl.constexpr):
    return b_weight > (float("-inf") if COUNTED else 0.0)


@triton.jit
def keys_of(b_weight, COUNTED: tl.constexpr):
    # uint32 ordered as the weights; if not COUNTED, as the weights from 0 on
    b_bits = b_weight.to(tl.int32, bitcast=True)
    if COUNTED:
        b_bits ^= ((b_bits >> 31) & 0x7FFFFFFF) ^ -0x80000000
    return b_bits.to(tl.uint32, bitcast=True)


@triton.jit
def weights_of(b_key, COUNTED: tl.constexpr):
    # Inverse of `keys_of`
    b_bits = b_key.to(tl.int32, bitcast=True)
    if COUNTED:
        b_bits ^= ((~b_bits >> 31) & 0x7FFFFFFF) ^ -0x80000000
    return b_bits.to(tl.float32, bitcast=True)


@triton.jit
def shares_of(b_weight, b_unit, COUNTED: tl.constexpr):
    # int64 [BR, BE], at least 1: what an edge that can be kept adds to its bin, in fixed point
    if COUNTED:
        return tl.full(b_weight.shape, 1, tl.int64)
    b_high = tl.maximum(b_weight, 0.0) * b_unit[:, None]
    b_whole = b_high.to(tl.int32)
    b_low = (b_high - b_whole.to(tl.float32)) * 2.0**HALF_BITS
    return (b_whole.to(tl.int64) << HALF_BITS) + tl.ceil(b_low).to(tl.int32)


@triton.jit
def shared_bins(b_weight, b_heaviest, b_deepest, b_bits, COUNTED: tl.constexpr):
    # [BR, BE]: whether the shared histogram holds an edge, and (int32) in which bin
    b_depth = b_heaviest[:, None] - keys_of(b_weight, COUNTED)
    m_held = can_be_kept(b_weight, COUNTED) & (b_depth <= b_deepest[:, None])
    return m_held, (b_depth >> b_bits[:, None]).to(tl.int32)


@triton.jit
def clear_bins(p_bins, bins, BE: tl.constexpr):
    for i_bin in range(0, bins, BE):
        o_bin = i_bin + tl.arange(0, BE)
        tl.store(p_bins + o_bin, tl.zeros([BE], tl.int64), mask=o_bin < bins)
    tl.debug_barrier()  # of this program, which alone uses these bins


@triton.jit
def add_up_bins(p_bins, HISTOGRAMS: tl.constexpr, BINS: tl.constexpr, BB: tl.constexpr):
    # Replace bins by their running sums within a histogram; returns the totals, int64 [HISTOGRAMS]
    tl.debug_barrier()
    p_bins += (tl.arange(0, HISTOGRAMS) * BINS)[:, None]
    b_sum = tl.zeros([HISTOGRAMS], tl.int64)
    for i_bin in range(0, BINS, BB):
        p_here = p_bins + (i_bin + tl.arange(0, BB))[None, :]
        b_bins = tl.load(p_here, cache_modifier=".cg")  # atomics bypass the L1 cache
        tl.debug_barrier()  # all threads have read: with few bins, several read the same
        tl.store(p_here, b_sum[:, None] + tl.cumsum(b_bins, 1))
        b_sum += tl.sum(b_bins, 1)
    tl.debug_barrier()
    return b_sum


@triton.jit
def first_bin(p_bins, o_sums, b_wanted, BITS: tl.constexpr):
    # int32 [BR, BK]: the first bin whose running sum reaches b_wanted; else the last bin
    b_bin = tl.zeros(b_wanted.shape, tl.int32)
    for i_bit in tl.static_range(BITS):
        step = 1 << (BITS - 1 - i_bit)
        b_held = tl.load(p_bins + (o_sums + b_bin + (step - 1)), cache_modifier=".cg")
        b_bin += tl.where(b_held < b_wanted, step, 0)
    return b_bin


@triton.jit
def sums_around(p_bins, o_sums, b_bin):
    # int64 [BR, BK]: running sums before a bin, and including it
    b_before = tl.load(p_bins + (o_sums + b_bin - 1), mask=b_bin > 0, other=0, cache_modifier=".cg")
    return b_before, tl.load(p_bins + (o_sums + b_bin), cache_modifier=".cg")


@triton.jit
def extent(p_row, b_end, end, BR: tl.constexpr, BE: tl.constexpr, COUNTED: tl.constexpr):
    # [BR]: the heaviest and the lightest weight that can be kept, and their sum (COUNTED: number)
    b_top = tl.full([BR, BE], float("-inf"), tl.float32)
    b_low = tl.full([BR, BE], float("inf"), tl.float32)
    b_all = tl.zeros([BR, BE], tl.int32 if COUNTED else tl.float32)
    for i_e in range(0, end, BE):
        b_weight = load_weights(p_row, i_e + tl.arange(0, BE), b_end)
        m_some = can_be_kept(b_weight, COUNTED)
        b_top = tl.maximum(b_top, b_weight)
        b_low = tl.minimum(b_low, tl.where(m_some, b_weight, float("inf")))
        b_all += m_some.to(tl.int32) if COUNTED else tl.where(m_some, b_weight, 0.0)
    return tl.max(b_top, 1), tl.min(b_low, 1), tl.sum(b_all, 1)


@triton.jit
def bits_beyond(b_number, BITS: tl.constexpr):
    # uint32 [BR]: how many bits a number has beyond BITS
    b_bits = (b_number.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 126 - BITS
    return tl.maximum(b_bits, 0).to(tl.uint32)


@triton.jit
def fixed_point_unit(b_top, b_end):
    # [BR]: times this, the heaviest of few weights is 2^HALF_BITS to 2^(HALF_BITS + 1), if that is
    # in range
    b_exponent = (b_top.to(tl.int32, bitcast=True) >> 23) & 255
    b_exponent += bits_beyond(b_end, LOG_FEW).to(tl.int32)
    b_unit = tl.minimum(-b_exponent + (254 + HALF_BITS), 254)
    return (b_unit << 23).to(tl.float32, bitcast=True)


@triton.jit
def add_to_shared_bins(
    p_row, p_bins, o_shared, b_end, end, b_heaviest, b_deepest, b_bits, b_unit,
    BE: tl.constexpr, COUNTED: tl.constexpr,
):  # fmt: skip
    # Add the edges of a row to the histogram that all strata share
    for i_e in range(0, end, BE):
        b_weight = load_weights(p_row, i_e + tl.arange(0, BE), b_end)
        m_held, o_bin = shared_bins(b_weight, b_heaviest, b_deepest, b_bits, COUNTED)
        p_bin = p_bins + (o_shared + o_bin)
        tl.atomic_add(p_bin, shares_of(b_weight, b_unit, COUNTED), m_held, "relaxed")


@triton.jit
def move_to_front(
    p_row, p_bins, o_shared, b_end, end, b_heaviest, b_deepest, b_bits,
    BR: tl.constexpr, BE: tl.constexpr, COUNTED: tl.constexpr,
):  # fmt: skip
    # Move the weights whose bins are marked with -1 to the front of their row. [BR]: their number,
    # and the heaviest weight without a bin
    b_moved = tl.zeros([BR], tl.int32)
    b_lighter = tl.full([BR, BE], float("-inf"), tl.float32)
    for i_e in range(0, end, BE):
        b_weight = load_weights(p_row, i_e + tl.arange(0, BE), b_end)
        m_held, o_bin = shared_bins(b_weight, b_heaviest, b_deepest, b_bits, COUNTED)
        b_lighter = tl.maximum(b_lighter, tl.where(m_held, float("-inf"), b_weight))
        p_bin = p_bins + (o_shared + o_bin)
        m_moved = tl.load(p_bin, mask=m_held, other=0, cache_modifier=".cg") < 0
        o_moved = b_moved[:, None] + tl.cumsum(m_moved.to(tl.int32), 1) - 1
        tl.debug_barrier()  # all threads have read before any weight is overwritten
        tl.store(p_row[:, None] + o_moved, b_weight, mask=m_moved)
        b_moved += tl.sum(m_moved.to(tl.int32), 1)
    return b_moved, tl.max(b_lighter, 1)


@triton.jit
def add_to_own_bins(
    p_row, p_bins, o_own, b_moved, end, b_heaviest, b_prefix, b_bits, b_fewer, b_unit,
    BM: tl.constexpr, COUNTED: tl.constexpr,
):  # fmt: skip
    # Add the edges whose depth starts with a stratum's prefix to its histogram, by the next bits:
    # b_bits low bits of a depth are not known yet, of which this step leaves b_fewer
    for i_m in range(0, end, BM):
        o_m = i_m + tl.arange(0, BM)
        b_weight = load_weights(p_row, o_m, b_moved)
        b_depth = b_heaviest[:, None] - keys_of(b_weight, COUNTED)
        b_share = shares_of(b_weight, b_unit, COUNTED)[:, :, None]
        # [BR, BM, BK]
        m_here = (b_depth >> b_bits[:, None])[:, :, None] == b_prefix[:, None, :]
        m_here &= (o_m[None, :] < b_moved[:, None])[:, :, None]
        o_bin = (b_depth >> b_fewer[:, None]) & ((1 << (b_bits - b_fewer)) - 1)[:, None]
        p_each = p_bins + (o_own[:, None, :] + o_bin.to(tl.int32)[:, :, None])
        tl.atomic_add(p_each, tl.broadcast_to(b_share, m_here.shape), m_here, "relaxed")


@triton.jit
def heaviest_below(
    p_row, b_moved, end, b_last, BR: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr
):
    # [BR, BK]: the heaviest moved weight that is lighter than b_last
    b_below = tl.full([BR, BM, BK], float("-inf"), tl.float32)
    for i_m in range(0, end, BM):
        b_weight = load_weights(p_row, i_m + tl.arange(0, BM), b_moved)[:, :, None]
        m_below = b_weight < b_last[:, None, :]
        b_below = tl.maximum(b_below, tl.where(m_below, b_weight, float("-inf")))
    return tl.max(b_below, 1)


@triton.jit
def cut_between(b_last, b_next, COUNTED: tl.constexpr):
    # [BR, BK]: the midpoint of the last weight kept and the next one; below all weights without one
    b_cut = (b_last + b_next) / 2
    b_cut = tl.where((b_cut >= b_last) & (b_last > b_next), b_next, b_cut)  # it rounded up
    b_cut = tl.where(b_next == float("-inf"), -1.0, b_cut)
    if not COUNTED:
        b_cut = tl.maximum(b_cut, 0.0)
    return b_cut


@triton.jit(
    do_not_specialize=["rows", "first_row", "first_target", "first_source", "targets", "nodes"]
)
def row_cuts_kernel(
    p_rows, p_wanted, p_total, p_bins, p_cuts,
    rows, first_row, columns, first_edge, first_source, first_target, targets, length, nodes,
    K: tl.constexpr, BK: tl.constexpr, LOG_K: tl.constexpr, BITS: tl.constexpr,
    BE: tl.constexpr, BM: tl.constexpr, BB: tl.constexpr, BR: tl.constexpr, BS: tl.constexpr,
    HEADS: tl.constexpr, COUNTED: tl.constexpr,
):  # fmt: skip
    BINS: tl.constexpr = 1 << BITS  # per stratum
    o_k = tl.arange(0, BK)
    p_bins += tl.program_id(0).to(tl.int64) * (BK * BINS * BR)
    # Offsets of the shared histogram of BK * BINS bins, and of one per stratum in the same memory
    o_shared = (tl.arange(0, BR) * (BK * BINS))[:, None]  # [BR, 1]
    o_own = o_shared + (o_k << BITS)[None, :]  # [BR, BK]
    b_shares = tl.load(p_wanted + o_k, mask=o_k < K, other=0.0)
    o_r = first_row + tl.program_id(0) * BR + tl.arange(0, BR)
    o_target = first_target + o_r % targets
    o_node = (o_r // targets).to(tl.int64) * length + o_target
    p_row = p_rows + o_r.to(tl.int64) * columns
    b_end = first_edge + ((o_target - first_source) // BS + 1) * (BS * HEADS)
    b_end = tl.multiple_of(tl.where(o_r < rows, b_end, 0), ALIGNED)
    end = tl.max(b_end, 0)

    # First sweep: the range of weights
    b_top, b_low, b_all = extent(p_row, b_end, end, BR, BE, COUNTED)  # [BR]
    b_heaviest = keys_of(b_top, COUNTED)
    b_deepest = b_heaviest - keys_of(tl.minimum(b_low, b_top), COUNTED)
    b_unit = fixed_point_unit(b_top, b_end)
    # [BR, BK]
    if COUNTED:
        b_wanted = tl.ceil(b_shares[None, :] * b_all.to(tl.float64)[:, None] - 1e-9)
    else:
        b_total = tl.load(p_total + o_node, mask=o_r < rows, other=0.0).to(tl.float64)
        b_wanted = tl.ceil(b_shares[None, :] * (b_total * b_unit * 2.0**HALF_BITS)[:, None])
        # Edges below b_light get no bin: all of them together are less than any stratum drops.
        b_spare = b_all.to(tl.float64) * (1 - 2**-10) - tl.max(b_shares, 0) * b_total
        b_light = (b_spare / tl.maximum(b_end, 1)).to(tl.float32)
        b_deep = b_heaviest - keys_of(tl.minimum(b_light, b_top), COUNTED)
        b_deepest = tl.where(b_light > 0, tl.minimum(b_deep, b_deepest), b_deepest)
    b_bits = bits_beyond(b_deepest, LOG_K + BITS)  # of a depth, which bins do not resolve

    # Second sweep: the shared histogram, and the bins in which strata end
    clear_bins(p_bins, BK * BINS * BR, BE * BR)
    add_to_shared_bins(
        p_row, p_bins, o_shared, b_end, end, b_heaviest, b_deepest, b_bits, b_unit, BE, COUNTED
    )
    b_sum = add_up_bins(p_bins, BR, BK * BINS, BK * BB)[:, None]
    b_left = tl.minimum(tl.maximum(b_wanted, 1.0), 9e18).to(tl.int64)
    b_left = tl.minimum(b_left, b_sum)
    b_bin = first_bin(p_bins, o_shared, b_left, LOG_K + BITS)
    b_before, b_held = sums_around(p_bins, o_shared, b_bin)
    b_following = first_bin(p_bins, o_shared, b_held + 1, LOG_K + BITS)
    b_more = b_held - b_left  # excess over what is wanted
    b_left -= b_before
    b_prefix = b_bin.to(tl.uint32)

    # Third sweep: move the weights of these bins, and of the following ones, to the front.
    tl.debug_barrier()
    b_mark = tl.full([BR, BK], -1, tl.int64)
    tl.store(p_bins + (o_shared + b_bin), b_mark, mask=(o_k < K)[None, :])
    tl.store(p_bins + (o_shared + b_following), b_mark, mask=(o_k < K)[None, :])
    tl.debug_barrier()
    b_moved, b_lighter = move_to_front(
        p_row, p_bins, o_shared, b_end, end, b_heaviest, b_deepest, b_bits, BR, BE, COUNTED
    )
    end = tl.max(b_moved, 0)

    # Narrow down each stratum's last weight, by one histogram per stratum
    while tl.max(b_bits, 0) > 0:
        b_fewer = tl.where(b_bits > BITS, b_bits - BITS, 0).to(tl.uint32)
        tl.debug_barrier()
        clear_bins(p_bins, BK * BINS * BR, BE * BR)
        add_to_own_bins(
            p_row, p_bins, o_own, b_moved, end, b_heaviest, b_prefix, b_bits, b_fewer, b_unit,
            BM, COUNTED,
        )  # fmt: skip
        add_up_bins(p_bins, BR * BK, BINS, BB)
        b_bin = first_bin(p_bins, o_own, b_left, BITS)
        b_before, b_held = sums_around(p_bins, o_own, b_bin)
        b_more = b_held - b_left
        b_left -= b_before
        b_prefix = (b_prefix << (b_bits - b_fewer)[:, None]) + b_bin.to(tl.uint32)
        b_bits = b_fewer

    # Find the next lighter weight, and put the cut between the two
    tl.debug_barrier()
    b_last = weights_of(b_heaviest[:, None] - b_prefix, COUNTED)
    b_next = heaviest_below(p_row, b_moved, end, b_last, BR, BM, BK)
    b_next = tl.maximum(b_next, b_lighter[:, None])
    if COUNTED:
        b_next = tl.where(b_more > 0, b_last, b_next)  # it ties with an edge left out
    b_cut = cut_between(b_last, b_next, COUNTED)
    p_out = p_cuts + o_k.to(tl.int64)[None, :] * nodes + o_node[:, None]
    tl.store(p_out, b_cut, mask=(o_r < rows)[:, None] & (o_k < K)[None, :])


# ---- the host --------------------------------------------------------------------------------


class RowWeights(NamedTuple):
    """Weights of the in-edges of a run of targets, -inf where there is no edge."""

    targets: slice
    weights: Tensor  # float32 [B, targets, columns], may be overwritten
    first_edge: int  # column of the first attention edge: tiles of sources, each of all heads
    first_source: int = 0
    tile: int = 1  # sources
    heads: int = 0


def weight_rows(edges: AttentionEdges | None, side: Tensor) -> Iterator[RowWeights]:
    """Runs of targets with their weights, which the caller may overwrite."""
    count, batch, length = side.shape
    first_edge = triton.cdiv(count, ALIGNED.value) * ALIGNED.value

    def rows(start: int, end: int, columns: int) -> Tensor:
        weights = side.new_empty(batch, end - start, columns, dtype=torch.float32)
        weights[..., :count] = side[:, :, start:end].permute(1, 2, 0) + 0.0
        weights[..., count:first_edge] = -torch.inf
        return weights

    if edges is None:
        yield RowWeights(slice(0, length), rows(0, length, first_edge), first_edge)
        return
    if isinstance(edges.weight, NormWeight | CosineWeight):
        edges = with_lse(edges)
    pattern = edges.pattern
    heads = pattern.shape[1]
    shape, weight = geometry(pattern), edge_weight(edges)
    config = weighing_config("node_cuts", pattern, weight)
    lse = pattern.q if pattern.lse is None else pattern.lse
    most = max(1, SCRATCH_ELEMENTS // (batch * (first_edge + heads * length)))
    for start in range(0, length, most):
        end = min(length, start + most)
        first = 0 if pattern.window is None else max(0, start - pattern.window + 1)
        tiles = triton.cdiv(end - first, config["BS"])
        scratch = rows(start, end, first_edge + tiles * heads * config["BS"])
        blocks = triton.cdiv(end - start, config["BT"]) * batch * heads
        weight_rows_kernel[(blocks, tiles)](
            p_lse=lse,
            p_rows=scratch,
            first_target=start,
            end_target=end,
            first_source=first,
            columns=scratch.shape[-1],
            first_edge=first_edge,
            **queries_and_keys(pattern),
            **shape,
            **weight,
            **config,
        )
        yield RowWeights(slice(start, end), scratch, first_edge, first, config["BS"], heads)


def node_cuts(
    edges: AttentionEdges | None, side: Tensor, wanted: Tensor, total: Tensor | None
) -> Tensor:
    """Cuts float32 [K, B, T] by `wanted` shares of the total; if None, of the number of edges."""
    _, batch, length = side.shape
    strata = len(wanted)
    cuts = torch.empty(strata, batch, length, dtype=torch.float32, device=side.device)
    width = max(2, int(triton.next_power_of_2(strata)))
    config = configs.launch("row_cuts", width, cuts)
    counted = total is None
    wanted = wanted.double().contiguous()
    total = side if total is None else total.float().contiguous()  # not read if `counted`
    for run in weight_rows(edges, side):
        _, targets, columns = run.weights.shape
        narrow = max(32, int(triton.next_power_of_2(columns)))
        tile = narrow if columns <= FEW_EDGES else config["BE"]
        several = max(1, min(MOST_ROWS, FEW_EDGES // tile, FEW_STRATA // width))
        rows = ROW_TILES * several
        bits = min(config["BITS"], tile.bit_length() - 1)
        bins = width << bits
        programs = triton.cdiv(batch * targets, rows)
        programs = min(programs, max(1, HISTOGRAM_ELEMENTS // (bins * rows)))
        histograms = torch.empty(programs, rows, bins, dtype=torch.int64, device=side.device)
        for first in range(0, batch * targets, programs * rows):
            row_cuts_kernel[(programs,)](
                p_rows=run.weights,
                p_wanted=wanted,
                p_total=total,
                p_bins=histograms,
                p_cuts=cuts,
                rows=batch * targets,
                first_row=first,
                columns=columns,
                first_edge=run.first_edge,
                first_source=run.first_source,
                first_target=run.targets.start,
                targets=targets,
                length=length,
                nodes=batch * length,
                K=strata,
                BK=width,
                LOG_K=width.bit_length() - 1,
                BR=rows,
                BS=run.tile,
                HEADS=run.heads,
                COUNTED=counted,
                **config
                | {
                    "BITS": bits,
                    "BE": tile,
                    "BM": min(tile, config["BM"] // several),
                    "BB": min(1 << bits, config["BB"] // several),
                },
            )
    return cuts


def nucleus_cuts(
    edges: AttentionEdges | None, side: Tensor, masses: Tensor, total: Tensor
) -> Tensor:
    return node_cuts(edges, side, masses, total)


def fraction_cuts(edges: AttentionEdges | None, side: Tensor, fractions: Tensor) -> Tensor:
    return node_cuts(edges, side, fractions, None)
