"""Cuts that depend on all in-edges of a node, by histograms and without a sort: METHOD §3.

The weights of a run of targets are written once to a scratch of bounded size, whatever their kind
costs. A program then finds all K cuts of a target in six sweeps of its row: the heaviest weight,
four histograms over the bits of the weights (which order as integers), each of which narrows the
wanted edge of every stratum down to one bin, and the next lighter weight. A bin holds a number of
edges, or the sum of their weights in fixed point: integers, so that no order of addition changes a
result.

Operations: 2 d_k a pair once, then some 10 + 8 K a pair. Bytes: 4 a pair, once written and six
times read; the histograms stay in the cache.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..edges import AttentionEdges
from . import configs
from .arguments import edge_weight, geometry, queries_and_keys
from .tiles import allowed_tile, load_rows
from .weights import alpha_tile, uses_alpha, weight_tile, with_lse

SCRATCH_ELEMENTS = 1 << 25  # float32 weights held at once, 128 MiB; or those of one target
HISTOGRAM_ELEMENTS = 1 << 23  # int64 bins of all programs that run, 64 MiB

FIRST_BITS = tl.constexpr(
    11
)  # of 32 that the first histogram tells apart: sign, exponent, two more
NEXT_BITS = tl.constexpr(7)  # and each of the three after it
FIRST_BINS, NEXT_BINS = tl.constexpr(1 << FIRST_BITS.value), tl.constexpr(1 << NEXT_BITS.value)
FIXED_BITS = tl.constexpr(
    40
)  # of the heaviest weight in fixed point, so that millions can be added


# ---- the weights, written out ----------------------------------------------------------------


@triton.jit
def weight_rows_kernel(
    p_q, p_k, p_lse, p_rows, p_sinks, p_segments,
    p_source, p_target, p_sent, p_positions, p_given,
    s_q_n, s_q_m, s_q_t, s_k_n, s_k_m, s_k_t, s_sent_n, s_sent_m, s_sent_t,
    scale, softcap, length, seed, stream,
    first_target, end_target, first_column, row_columns, side_columns,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, D_K: tl.constexpr, BD: tl.constexpr,
    D_SENT: tl.constexpr, BSENT: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr,
    WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
    HAS_SEGMENTS: tl.constexpr, HAS_TARGET: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    i_t, i_s, i_row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_b, i_h = i_row // HEADS, i_row % HEADS
    o_t = first_target + i_t * BT + tl.arange(0, BT)
    o_s = first_column + i_s * BS + tl.arange(0, BS)
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
        seed, stream, HEADS, GROUPS, D_SENT, BSENT, KIND, HAS_TARGET,
    )  # fmt: skip
    o_row = i_b * (end_target - first_target) + o_t - first_target
    o_column = side_columns + i_h * (end_target - first_column) + o_s - first_column
    m_tile = (o_t < end_target)[:, None] & (o_s < end_target)[None, :]
    tl.store(p_rows + o_row[:, None] * row_columns + o_column[None, :], b_weight, mask=m_tile)


# ---- the cuts of a row -----------------------------------------------------------------------


@triton.jit
def load_weights(p_row, o_column, columns):
    # [BE]: weights, -inf beyond the end
    b_weight = tl.load(p_row + o_column, mask=o_column < columns, other=float("-inf"))
    return tl.where(b_weight == 0, 0.0, b_weight)  # -0 ties with 0


@triton.jit
def keys_of(b_weight):
    # uint32 of the order of the weights
    b_bits = b_weight.to(tl.int32, bitcast=True)
    b_ordered = b_bits ^ ((b_bits >> 31) & 0x7FFFFFFF)
    return b_ordered.to(tl.uint32, bitcast=True) + 0x80000000


@triton.jit
def weights_of(b_key):
    # What `keys_of` came from
    b_ordered = (b_key + 0x80000000).to(tl.int32, bitcast=True)
    b_bits = b_ordered ^ ((b_ordered >> 31) & 0x7FFFFFFF)
    return b_bits.to(tl.float32, bitcast=True)


@triton.jit
def shares_of(b_weight, unit, COUNTED: tl.constexpr):
    # int64: what an edge adds to its bin, 0 if it cannot be kept
    if COUNTED:
        return (b_weight > float("-inf")).to(tl.int64)
    b_fixed = (tl.maximum(b_weight, 0.0).to(tl.float64) * unit + 0.5).to(tl.int64)
    return tl.where(b_weight > 0, tl.maximum(b_fixed, 1), 0)


@triton.jit
def wanted_bin(p_bins, stride, b_wanted, o_k, BINS: tl.constexpr, BB: tl.constexpr):
    # [BK] the highest bin that holds, with those above it, what is wanted; what those above hold
    b_above = tl.zeros_like(b_wanted)
    b_sum = tl.zeros_like(b_wanted)
    b_enough = tl.zeros_like(b_wanted)
    for i_bin in range(BINS - BB, -BB, -BB):
        o_bin = i_bin + tl.arange(0, BB)
        # [BK, BB]; not from the first cache, which the additions went past
        b_bins = tl.load(p_bins + o_k[:, None] * stride + o_bin[None, :], cache_modifier=".cg")
        b_from = b_sum[:, None] + tl.sum(b_bins, 1)[:, None] - tl.cumsum(b_bins, 1) + b_bins
        m_enough = b_from >= b_wanted[:, None]
        b_enough += tl.sum(m_enough.to(tl.int64), 1)
        b_above = tl.maximum(b_above, tl.max(tl.where(m_enough, 0, b_from), 1))
        b_sum += tl.sum(b_bins, 1)
    return tl.maximum(b_enough - 1, 0), b_above


@triton.jit
def clear_bins(p_bins, BINS: tl.constexpr, BE: tl.constexpr):
    for i_bin in range(0, BINS, BE):
        o_bin = i_bin + tl.arange(0, BE)
        tl.store(p_bins + o_bin, tl.zeros([BE], tl.int64), mask=o_bin < BINS)
    tl.debug_barrier()  # of the program alone, as are its bins


@triton.jit
def row_cuts_kernel(
    p_rows, p_wanted, p_total, p_bins, p_cuts, rows, columns, first_target, targets, length, nodes,
    K: tl.constexpr, BK: tl.constexpr, BE: tl.constexpr, BB: tl.constexpr,
    BINS: tl.constexpr, COUNTED: tl.constexpr,
):  # fmt: skip
    o_k, o_e = tl.arange(0, BK), tl.arange(0, BE)
    p_bins += tl.program_id(0).to(tl.int64) * BINS
    for i_row in range(tl.program_id(0), rows, tl.num_programs(0)):
        i_wide = tl.cast(i_row, tl.int64)
        i_node = i_wide // targets * length + first_target + i_wide % targets
        p_row = p_rows + i_wide * columns
        b_top = tl.full([BE], float("-inf"), tl.float32)
        for i_e in range(0, columns, BE):
            b_top = tl.maximum(b_top, load_weights(p_row, i_e + o_e, columns))
        # The unit of the fixed point: a power of two, made from the heaviest weight's exponent
        exponent = (tl.max(b_top, 0).to(tl.int32, bitcast=True) >> 23) & 255
        unit = ((1023 + 127 - exponent + FIXED_BITS).to(tl.int64) << 52).to(
            tl.float64, bitcast=True
        )
        clear_bins(p_bins, FIRST_BINS, BE)
        total = tl.full((), 0, tl.int64)
        for i_e in range(0, columns, BE):
            b_weight = load_weights(p_row, i_e + o_e, columns)
            b_share = shares_of(b_weight, unit, COUNTED)
            b_bin = keys_of(b_weight) >> (32 - FIRST_BITS)
            tl.atomic_add(p_bins + b_bin.to(tl.int64), b_share, mask=b_share > 0, sem="relaxed")
            total += tl.sum(b_share, 0)
        tl.debug_barrier()
        # [BK]
        b_wanted = tl.load(p_wanted + o_k, mask=o_k < K, other=0.0)
        if COUNTED:
            b_wanted = tl.ceil(b_wanted * total.to(tl.float64) - 1e-9)
        else:
            b_wanted = tl.ceil(b_wanted * tl.load(p_total + i_node).to(tl.float64) * unit)
        b_left = tl.minimum(tl.maximum(b_wanted, 1.0), 9e18).to(tl.int64)
        b_left = tl.minimum(b_left, tl.maximum(total, 1))
        b_count = b_left
        b_bin, b_above = wanted_bin(p_bins, 0, b_left, o_k, FIRST_BINS, BB)
        b_left -= b_above
        b_key = b_bin.to(tl.uint32)
        for i_level in tl.static_range(3):
            shift: tl.constexpr = 2 * NEXT_BITS - i_level * NEXT_BITS
            tl.debug_barrier()
            clear_bins(p_bins, NEXT_BINS * BK, BE)
            for i_e in range(0, columns, BE):
                b_weight = load_weights(p_row, i_e + o_e, columns)
                b_share = shares_of(b_weight, unit, COUNTED)
                b_edge = keys_of(b_weight) >> shift
                # [BK, BE]
                m_here = (b_edge >> NEXT_BITS)[None, :] == b_key[:, None]
                m_here &= (b_share > 0)[None, :]
                b_bin = (b_edge & (NEXT_BINS - 1)).to(tl.int64)
                o_bin = (o_k << NEXT_BITS)[:, None] + b_bin[None, :]
                b_shares = tl.broadcast_to(b_share[None, :], [BK, BE])
                tl.atomic_add(p_bins + o_bin, b_shares, mask=m_here, sem="relaxed")
            tl.debug_barrier()
            b_bin, b_above = wanted_bin(p_bins, NEXT_BINS, b_left, o_k, NEXT_BINS, BB)
            b_left -= b_above
            b_key = (b_key << NEXT_BITS) + b_bin.to(tl.uint32)
        tl.debug_barrier()
        # The next lighter weight, and how many are no lighter than the last one kept
        b_last = weights_of(b_key)
        b_next = tl.full([BK], float("-inf"), tl.float32)
        b_heavy = tl.zeros([BK], tl.int64)
        for i_e in range(0, columns, BE):
            b_weight = load_weights(p_row, i_e + o_e, columns)
            m_below = b_weight[None, :] < b_last[:, None]
            b_below = tl.where(m_below, b_weight[None, :], float("-inf"))
            b_next = tl.maximum(b_next, tl.max(b_below, 1))
            b_heavy += BE - tl.sum(m_below.to(tl.int64), 1)
        if COUNTED:
            b_next = tl.where(b_heavy > b_count, b_last, b_next)  # ties with one left out
        b_cut = (b_last + b_next) / 2
        b_cut = tl.where((b_cut >= b_last) & (b_last > b_next), b_next, b_cut)  # rounded up
        b_cut = tl.where((b_next == float("-inf")) | (total == 0), -1.0, b_cut)
        if not COUNTED:
            b_cut = tl.maximum(b_cut, 0.0)
        tl.store(p_cuts + o_k.to(tl.int64) * nodes + i_node, b_cut, mask=o_k < K)


# ---- the host --------------------------------------------------------------------------------


def weight_rows(
    op: str, edges: AttentionEdges | None, side: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Runs of targets and float32 [B, targets, E + H S], their weights; -inf where no edge is."""
    count, batch, length = side.shape
    if edges is None:
        yield slice(0, length), side.permute(1, 2, 0).float().contiguous()
        return
    edges = with_lse(edges) if uses_alpha_of(edges) else edges
    pattern = edges.pattern
    heads = pattern.shape[1]
    shape, weight = geometry(pattern), edge_weight(edges)
    config = configs.launch(op, max(shape["BD"], weight["BSENT"]), pattern.q)
    lse = pattern.q if pattern.lse is None else pattern.lse.contiguous()
    most = max(1, SCRATCH_ELEMENTS // (batch * (count + heads * length)))
    for start in range(0, length, most):
        end = min(length, start + most)
        first = 0 if pattern.window is None else max(0, start - pattern.window + 1)
        columns = count + heads * (end - first)
        scratch = torch.empty(batch, end - start, columns, dtype=torch.float32, device=side.device)
        scratch[..., :count] = side[:, :, start:end].permute(1, 2, 0)
        tiles = triton.cdiv(end - start, config["BT"]), triton.cdiv(end - first, config["BS"])
        weight_rows_kernel[(*tiles, batch * heads)](
            p_lse=lse,
            p_rows=scratch,
            first_target=start,
            end_target=end,
            first_column=first,
            row_columns=columns,
            side_columns=count,
            **queries_and_keys(pattern),
            **shape,
            **weight,
            **config,
        )
        yield slice(start, end), scratch


def uses_alpha_of(edges: AttentionEdges) -> bool:
    """Whether the weights follow from attention weights, and so from their log-sum-exp."""
    return edge_weight(edges)["KIND"] in ("norm", "cosine")


def node_cuts(
    op: str, edges: AttentionEdges | None, side: Tensor, wanted: Tensor, total: Tensor | None
) -> Tensor:
    """Cuts float32 [K, B, T] by shares of the total, or of the number of edges where it is None."""
    _, batch, length = side.shape
    strata = len(wanted)
    cuts = torch.empty(strata, batch, length, dtype=torch.float32, device=side.device)
    width = max(2, int(triton.next_power_of_2(strata)))
    bins = max(FIRST_BINS.value, width * NEXT_BINS.value)
    config = configs.launch("row_cuts", width, cuts)
    most = max(1, HISTOGRAM_ELEMENTS // bins)
    histograms = torch.empty(min(batch * length, most), bins, dtype=torch.int64, device=side.device)
    for targets, weights in weight_rows(op, edges, side):
        columns, run = weights.shape[-1], targets.stop - targets.start
        row_cuts_kernel[(min(batch * run, len(histograms)),)](
            p_rows=weights,
            p_wanted=wanted.double().contiguous(),
            p_total=side if total is None else total.float().contiguous(),
            p_bins=histograms,
            p_cuts=cuts,
            rows=batch * run,
            columns=columns,
            first_target=targets.start,
            targets=run,
            length=length,
            nodes=batch * length,
            K=strata,
            BK=width,
            BINS=bins,
            COUNTED=total is None,
            # A node with few edges is no tile of many.
            **config | {"BE": min(config["BE"], max(32, int(triton.next_power_of_2(columns))))},
        )
    return cuts


def nucleus_cuts(
    edges: AttentionEdges | None, side: Tensor, masses: Tensor, total: Tensor
) -> Tensor:
    return node_cuts("node_cuts", edges, side, masses, total)


def fraction_cuts(edges: AttentionEdges | None, side: Tensor, fractions: Tensor) -> Tensor:
    return node_cuts("node_cuts", edges, side, fractions, None)
