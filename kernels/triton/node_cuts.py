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
from .tiles import allowed_tile, block_and_row, load_rows
from .weights import alpha_tile, uses_alpha, weight_tile, with_lse

SCRATCH_ELEMENTS = 1 << 25  # float32 weights held at once, 128 MiB; or those of one target
HISTOGRAM_ELEMENTS = 1 << 23  # int64 bins of all programs that run, 64 MiB

ROW_TILES = 1  # of a program's rows of weights: more where starting a program is what takes time
MOST_ROWS = 4  # of a program otherwise

BITS = tl.constexpr(8)  # of the 32 of a weight that each histogram tells apart
BINS = tl.constexpr(1 << BITS.value)
FIXED_BITS = tl.constexpr(
    40
)  # of the heaviest weight in fixed point, so that millions can be added


# ---- the weights, written out ----------------------------------------------------------------


@triton.jit(do_not_specialize=["seed", "stream", "first_target", "end_target", "first_column"])
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
    i_t, i_row = block_and_row(end_target - first_target, BT)
    i_s = tl.program_id(1)
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
def load_weights(p_rows, o_r, o_e, rows, columns):
    # [BR, BE]: weights, -inf beyond the end
    m_here = (o_r < rows)[:, None] & (o_e < columns)[None, :]
    offsets = o_r.to(tl.int64)[:, None] * columns + o_e[None, :]
    b_weight = tl.load(p_rows + offsets, mask=m_here, other=float("-inf"))
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
def shares_of(b_weight, b_unit, COUNTED: tl.constexpr):
    # int64 [BR, BE]: what an edge adds to its bin, 0 if it cannot be kept
    if COUNTED:
        return (b_weight > float("-inf")).to(tl.int64)
    b_fixed = (tl.maximum(b_weight, 0.0).to(tl.float64) * b_unit[:, None] + 0.5).to(tl.int64)
    return tl.where(b_weight > 0, tl.maximum(b_fixed, 1), 0)


@triton.jit
def wanted_bin(p_bins, stride, b_wanted, o_row, o_k, BB: tl.constexpr):
    # [BR, BK] the highest bin that holds, with those above it, what is wanted; what those hold
    b_above = tl.zeros_like(b_wanted)
    b_sum = tl.zeros_like(b_wanted)
    b_enough = tl.zeros_like(b_wanted)
    p_bins += o_row[:, None, None] + o_k[None, :, None] * stride
    for i_bin in range(BINS - BB, -BB, -BB):
        o_bin = i_bin + tl.arange(0, BB)
        # [BR, BK, BB]; not from the first cache, which the additions went past
        b_bins = tl.load(p_bins + o_bin[None, None, :], cache_modifier=".cg")
        b_held = tl.sum(b_bins, 2)
        b_from = (b_sum + b_held)[:, :, None] - tl.cumsum(b_bins, 2) + b_bins
        m_enough = b_from >= b_wanted[:, :, None]
        b_enough += tl.sum(m_enough.to(tl.int64), 2)
        b_above = tl.maximum(b_above, tl.max(tl.where(m_enough, 0, b_from), 2))
        b_sum += b_held
    return tl.maximum(b_enough - 1, 0), b_above


@triton.jit
def clear_bins(p_bins, bins, BE: tl.constexpr):
    for i_bin in range(0, bins, BE):
        o_bin = i_bin + tl.arange(0, BE)
        tl.store(p_bins + o_bin, tl.zeros([BE], tl.int64), mask=o_bin < bins)
    tl.debug_barrier()  # of the program alone, as are its bins


@triton.jit(do_not_specialize=["rows", "first_target", "targets", "nodes"])
def row_cuts_kernel(
    p_rows, p_wanted, p_total, p_bins, p_cuts, rows, columns, first_target, targets, length, nodes,
    K: tl.constexpr, BK: tl.constexpr, BE: tl.constexpr, BB: tl.constexpr, BR: tl.constexpr,
    COUNTED: tl.constexpr,
):  # fmt: skip
    o_k, o_e = tl.arange(0, BK), tl.arange(0, BE)
    o_own = tl.arange(0, BR) * (BINS * BK)  # a row's bins among the program's
    p_bins += tl.program_id(0).to(tl.int64) * (BINS * BK * BR)
    for i_r in range(tl.program_id(0) * BR, rows, tl.num_programs(0) * BR):
        o_r = i_r + tl.arange(0, BR)
        o_node = (o_r // targets).to(tl.int64) * length + first_target + o_r % targets
        b_top = tl.full([BR, BE], float("-inf"), tl.float32)
        for i_e in range(0, columns, BE):
            b_top = tl.maximum(b_top, load_weights(p_rows, o_r, i_e + o_e, rows, columns))
        # [BR]: the units of the fixed point, powers of two, from the heaviest weights' exponents
        b_exponent = (tl.max(b_top, 1).to(tl.int32, bitcast=True) >> 23) & 255
        b_unit = ((1023 + 127 - b_exponent + FIXED_BITS).to(tl.int64) << 52).to(
            tl.float64, bitcast=True
        )
        # In the first histogram a row's strata share their bins.
        clear_bins(p_bins, BINS * BK * BR, BE * BR)
        b_sum = tl.zeros([BR], tl.int64)
        for i_e in range(0, columns, BE):
            b_weight = load_weights(p_rows, o_r, i_e + o_e, rows, columns)
            b_share = shares_of(b_weight, b_unit, COUNTED)
            o_bin = o_own[:, None] + (keys_of(b_weight) >> (32 - BITS)).to(tl.int32)
            tl.atomic_add(p_bins + o_bin, b_share, mask=b_share > 0, sem="relaxed")
            b_sum += tl.sum(b_share, 1)
        tl.debug_barrier()
        # [BR, BK]
        b_wanted = tl.load(p_wanted + o_k, mask=o_k < K, other=0.0)[None, :]
        if COUNTED:
            b_wanted = tl.ceil(b_wanted * b_sum.to(tl.float64)[:, None] - 1e-9)
        else:
            b_total = tl.load(p_total + o_node, mask=o_r < rows, other=0.0).to(tl.float64)
            b_wanted = tl.ceil(b_wanted * (b_total * b_unit)[:, None])
        b_left = tl.minimum(tl.maximum(b_wanted, 1.0), 9e18).to(tl.int64)
        b_left = tl.minimum(b_left, tl.maximum(b_sum, 1)[:, None])
        b_count = b_left
        b_bin, b_above = wanted_bin(p_bins, 0, b_left, o_own, o_k, BB)
        b_left -= b_above
        b_key = b_bin.to(tl.uint32)
        for i_level in tl.static_range(3):
            tl.debug_barrier()
            clear_bins(p_bins, BINS * BK * BR, BE * BR)
            for i_e in range(0, columns, BE):
                b_weight = load_weights(p_rows, o_r, i_e + o_e, rows, columns)
                b_share = shares_of(b_weight, b_unit, COUNTED)
                b_edge = keys_of(b_weight) >> (BITS * (2 - i_level))
                # [BR, BK, BE]
                m_here = (b_edge >> BITS)[:, None, :] == b_key[:, :, None]
                m_here &= (b_share > 0)[:, None, :]
                o_bin = o_own[:, None] + (b_edge & (BINS - 1)).to(tl.int32)
                o_bin = o_bin[:, None, :] + (o_k * BINS)[None, :, None]
                b_shares = tl.broadcast_to(b_share[:, None, :], [BR, BK, BE])
                tl.atomic_add(p_bins + o_bin, b_shares, mask=m_here, sem="relaxed")
            tl.debug_barrier()
            b_bin, b_above = wanted_bin(p_bins, BINS, b_left, o_own, o_k, BB)
            b_left -= b_above
            b_key = (b_key << BITS) + b_bin.to(tl.uint32)
        tl.debug_barrier()
        # The next lighter weight, and how many are no lighter than the last one kept
        b_last = weights_of(b_key)
        b_next = tl.full([BR, BK], float("-inf"), tl.float32)
        b_heavy = tl.zeros([BR, BK], tl.int32)
        for i_e in range(0, columns, BE):
            b_weight = load_weights(p_rows, o_r, i_e + o_e, rows, columns)[:, None, :]
            m_below = b_weight < b_last[:, :, None]
            b_next = tl.maximum(b_next, tl.max(tl.where(m_below, b_weight, float("-inf")), 2))
            if COUNTED:
                b_heavy += BE - tl.sum(m_below.to(tl.int32), 2)
        if COUNTED:
            b_next = tl.where(b_heavy > b_count, b_last, b_next)  # ties with one left out
        b_cut = (b_last + b_next) / 2
        b_cut = tl.where((b_cut >= b_last) & (b_last > b_next), b_next, b_cut)  # rounded up
        b_cut = tl.where((b_next == float("-inf")) | (b_sum == 0)[:, None], -1.0, b_cut)
        if not COUNTED:
            b_cut = tl.maximum(b_cut, 0.0)
        p_out = p_cuts + o_k.to(tl.int64)[None, :] * nodes + o_node[:, None]
        tl.store(p_out, b_cut, mask=(o_r < rows)[:, None] & (o_k < K)[None, :])


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
        blocks = triton.cdiv(end - start, config["BT"]) * batch * heads
        weight_rows_kernel[(blocks, triton.cdiv(end - first, config["BS"]))](
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
    config = configs.launch("row_cuts", width, cuts)
    for targets, weights in weight_rows(op, edges, side):
        columns, run = weights.shape[-1], targets.stop - targets.start
        # Where nodes have few edges a tile holds those of several, and fewer bins of each.
        tile = min(config["BE"], max(32, int(triton.next_power_of_2(columns))))
        several = min(MOST_ROWS, config["BE"] // tile)
        rows = ROW_TILES * several
        bins = BINS.value * width * rows
        programs = min(triton.cdiv(batch * run, rows), max(1, HISTOGRAM_ELEMENTS // bins))
        histograms = torch.empty(programs, bins, dtype=torch.int64, device=side.device)
        row_cuts_kernel[(programs,)](
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
            BR=rows,
            COUNTED=total is None,
            **config | {"BE": tile, "BB": config["BB"] // several},
        )
    return cuts


def nucleus_cuts(
    edges: AttentionEdges | None, side: Tensor, masses: Tensor, total: Tensor
) -> Tensor:
    return node_cuts("node_cuts", edges, side, masses, total)


def fraction_cuts(edges: AttentionEdges | None, side: Tensor, fractions: Tensor) -> Tensor:
    return node_cuts("node_cuts", edges, side, fractions, None)
