"""Level map and in-degrees of a block's attention edges: METHOD §4.

A program goes over a span of sources of a block of targets and, inside, over the heads: the largest
weight of any head stays in registers, and its level is the edge's. Degrees of several spans meet in
integers, whose sums have no order. Operations: 2 d_k a pair and head; bytes: q and k once a tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..edges import AttentionEdges
from ..results import EdgeLevels
from . import configs
from .arguments import edge_weight, geometry, queries_and_keys
from .tiles import allowed_tile, block_and_row, load_rows
from .weights import alpha_tile, uses_alpha, weight_tile, with_lse

FEW_STRATA = 16  # beyond, a program's degrees [BT, BK] leave no registers for tiles as large


@triton.jit
def load_cut(p_cuts, k, i_b, batch, o_t, length):
    # [BT]; beyond the end +inf, which no edge clears
    p_cuts += (k * batch + i_b) * length
    return tl.load(p_cuts + o_t, mask=o_t < length, other=float("inf"))


@triton.jit(do_not_specialize=["batch", "strata", "seed", "stream"])
def edge_levels_kernel(
    p_q, p_k, p_lse, p_cuts, p_levels, p_degrees, p_sinks, p_segments,
    p_source, p_target, p_sent, p_positions, p_given,
    s_q_n, s_q_m, s_q_t, s_k_n, s_k_m, s_k_t, s_sent_n, s_sent_m, s_sent_t,
    scale, softcap, length, batch, strata, seed, stream,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, D_K: tl.constexpr, BD: tl.constexpr,
    D_SENT: tl.constexpr, BSENT: tl.constexpr, BK: tl.constexpr,
    BT: tl.constexpr, BS: tl.constexpr, SPAN: tl.constexpr,
    WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
    HAS_SEGMENTS: tl.constexpr, HAS_TARGET: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    i_t, i_b = block_and_row(length, BT)
    i_span = tl.program_id(1)
    o_t, o_d, o_k = i_t * BT + tl.arange(0, BT), tl.arange(0, BD), tl.arange(0, BK)
    m_t = o_t < length
    p_q += i_b * s_q_n
    p_k += i_b * s_k_n
    p_lse += i_b * HEADS * length
    p_segments += i_b * length
    p_levels += i_b * length * length
    b_lowest = load_cut(p_cuts, strata - 1, i_b, batch, o_t, length)
    b_degrees = tl.zeros([BT, BK], tl.int32)
    for i_s in range(i_span * SPAN, tl.minimum((i_span + 1) * SPAN, length), BS):
        o_s = i_s + tl.arange(0, BS)
        # [BT, BS]
        b_level = tl.zeros([BT, BS], tl.int32)
        m_allowed = allowed_tile(o_t, o_s, length, p_segments, WINDOW, HAS_SEGMENTS)
        if tl.max(m_allowed.to(tl.int32)) > 0:
            b_highest = tl.full([BT, BS], float("-inf"), tl.float32)
            for h in range(HEADS):
                i_h = tl.cast(h, tl.int64)
                b_alpha = tl.zeros([BT, BS], tl.float32)
                if uses_alpha(KIND):
                    b_q = load_rows(p_q + i_h * s_q_m, s_q_t, o_t, length, o_d, D_K)
                    b_lse = tl.load(p_lse + i_h * length + o_t, mask=m_t, other=0.0)
                    b_alpha = alpha_tile(
                        b_q, b_lse, m_allowed, p_k + i_h * GROUPS // HEADS * s_k_m, s_k_t,
                        o_s, o_d, length, scale, softcap, D_K, HAS_SOFTCAP,
                    )  # fmt: skip
                b_weight = weight_tile(
                    b_alpha, m_allowed, o_t, o_s, i_b, i_h, length,
                    p_source, p_target, p_sent, s_sent_n, s_sent_m, s_sent_t, p_positions, p_given,
                    seed, stream, HEADS, GROUPS, D_SENT, BSENT, KIND, HAS_TARGET,
                )  # fmt: skip
                b_highest = tl.maximum(b_highest, b_weight)
                # Most tiles of a sparse trace clear no cut at all.
                if tl.max((b_weight > b_lowest[:, None]).to(tl.int32)) > 0:
                    for k in range(strata):
                        b_cut = load_cut(p_cuts, k, i_b, batch, o_t, length)
                        b_count = tl.sum((b_weight > b_cut[:, None]).to(tl.int32), 1)
                        b_degrees += tl.where(o_k[None, :] == k, b_count[:, None], 0)
            for k in range(strata):
                b_cut = load_cut(p_cuts, k, i_b, batch, o_t, length)
                b_level += (b_highest > b_cut[:, None]).to(tl.int32)
        m_level = m_t[:, None] & (o_s < length)[None, :]
        o_level = o_t.to(tl.int64)[:, None] * length + o_s[None, :]
        tl.store(p_levels + o_level, b_level.to(tl.uint8), mask=m_level)
    o_degree = (o_k.to(tl.int64)[None, :] * batch + i_b) * length + o_t[:, None]
    m_degree = m_t[:, None] & (b_degrees > 0)
    tl.atomic_add(p_degrees + o_degree, b_degrees, mask=m_degree, sem="relaxed")


def edge_levels(edges: AttentionEdges, cuts: Tensor) -> EdgeLevels:
    strata, batch, length = cuts.shape
    pattern = with_lse(edges).pattern
    levels = torch.empty(batch, length, length, dtype=torch.uint8, device=cuts.device)
    degrees = torch.zeros(strata, batch, length, dtype=torch.int32, device=cuts.device)
    shape, weight = geometry(pattern), edge_weight(edges)
    op = "edge_levels" if strata <= FEW_STRATA else "edge_levels_many"
    config = configs.launch(op, max(shape["BD"], weight["BSENT"]), pattern.q)
    grid = triton.cdiv(length, config["BT"]) * batch, triton.cdiv(length, config["SPAN"])
    edge_levels_kernel[grid](
        p_lse=pattern.lse,
        p_cuts=cuts.float().contiguous(),
        p_levels=levels,
        p_degrees=degrees,
        batch=batch,
        strata=strata,
        BK=triton.next_power_of_2(strata),
        **queries_and_keys(pattern),
        **shape,
        **weight,
        **config,
    )
    return EdgeLevels(levels, degrees)
