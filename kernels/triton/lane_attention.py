"""Attention output of the masked lanes: METHOD §5.

A program serves LANES lanes of a block of targets of one head. They share a tile of clean attention
weights and edge weights; a live lane adds its own scores, a frozen one only its product with the
values. The mask is never written: it is the comparison of the clean weight with the lane's cut. A
tile that keeps nothing reads no values. Operations a pair: 2 d_k for the clean tile, and for each
lane 2 d_v, live 2 d_k more.
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..edges import AttentionEdges, Pattern
from . import configs
from .arguments import edge_weight, geometry, queries_and_keys, rows, strides, tile_width
from .edge_levels import load_cut
from .tiles import allowed_tile, block_and_row, first_source, load_rows, product, score_tile
from .weights import alpha_tile, uses_alpha, weight_tile, with_lse


@triton.jit
def add_kept(b_output, b_alpha, m_kept, p_v, s_v_t, o_s, length, o_v, D_V: tl.constexpr):
    # [BT, BV]
    if tl.max(m_kept.to(tl.int32)) > 0:
        b_v = load_rows(p_v, s_v_t, o_s, length, o_v, D_V)
        b_output += product(tl.where(m_kept, b_alpha, 0.0), b_v)
    return b_output


@triton.jit(do_not_specialize=["batch", "strata", "seed", "stream"])
def lane_attention_kernel(
    p_q, p_k, p_lse, p_lane_q, p_lane_k, p_v, p_cuts, p_output, p_sinks, p_segments,
    p_source, p_target, p_sent, p_positions, p_given,
    s_q_n, s_q_m, s_q_t, s_k_n, s_k_m, s_k_t, s_v_n, s_v_m, s_v_t,
    s_lane_q_n, s_lane_q_m, s_lane_q_t, s_lane_k_n, s_lane_k_m, s_lane_k_t,
    s_sent_n, s_sent_m, s_sent_t,
    scale, softcap, length, batch, strata, seed, stream,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, D_K: tl.constexpr, D_V: tl.constexpr,
    BD: tl.constexpr, BV: tl.constexpr, D_SENT: tl.constexpr, BSENT: tl.constexpr,
    BT: tl.constexpr, BS: tl.constexpr, LANES: tl.constexpr,
    WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
    HAS_SEGMENTS: tl.constexpr, HAS_TARGET: tl.constexpr, KIND: tl.constexpr,
    LIVE: tl.constexpr, INVERT: tl.constexpr,
):  # fmt: skip
    i_t, i_row = block_and_row(length, BT)
    i_first = tl.program_id(1).to(tl.int64) * LANES
    i_b, i_h = i_row // HEADS, i_row % HEADS
    i_g = i_h * GROUPS // HEADS
    o_t, o_d, o_v = i_t * BT + tl.arange(0, BT), tl.arange(0, BD), tl.arange(0, BV)
    m_t = o_t < length
    p_q += i_b * s_q_n + i_h * s_q_m
    p_k += i_b * s_k_n + i_g * s_k_m
    p_segments += i_b * length
    if uses_alpha(KIND) or not LIVE:
        b_q = load_rows(p_q, s_q_t, o_t, length, o_d, D_K)
        b_lse = tl.load(p_lse + i_row * length + o_t, mask=m_t, other=0.0)
    # One entry a lane
    i_lane, b_cut, b_lane_q, b_top, b_sum, b_output = (), (), (), (), (), ()
    for i in tl.static_range(LANES):
        i_k = tl.minimum(i_first + i, strata - 1)  # a lane too many repeats the last, unstored
        i_n = i_k * batch + i_b
        i_lane += (i_n,)
        b_cut += (load_cut(p_cuts, i_k, i_b, batch, o_t, length),)
        if LIVE:
            p_own = p_lane_q + i_n * s_lane_q_n + i_h * s_lane_q_m
            b_lane_q += (load_rows(p_own, s_lane_q_t, o_t, length, o_d, D_K),)
        b_top += (tl.full([BT], float("-inf"), tl.float32),)
        b_sum += (tl.zeros([BT], tl.float32),)
        b_output += (tl.zeros([BT, BV], tl.float32),)
    for i_s in range(first_source(i_t, BT, BS, WINDOW), tl.minimum((i_t + 1) * BT, length), BS):
        o_s = i_s + tl.arange(0, BS)
        m_allowed = allowed_tile(o_t, o_s, length, p_segments, WINDOW, HAS_SEGMENTS)
        # [BT, BS]
        b_alpha = tl.zeros([BT, BS], tl.float32)
        if uses_alpha(KIND) or not LIVE:
            b_alpha = alpha_tile(
                b_q, b_lse, m_allowed, p_k, s_k_t, o_s, o_d, length, scale, softcap,
                D_K, HAS_SOFTCAP,
            )  # fmt: skip
        b_weight = weight_tile(
            b_alpha, m_allowed, o_t, o_s, i_b, i_h, length,
            p_source, p_target, p_sent, s_sent_n, s_sent_m, s_sent_t, p_positions, p_given,
            seed, stream, HEADS, GROUPS, D_SENT, BSENT, KIND, HAS_TARGET,
        )  # fmt: skip
        b_tops, b_sums, b_outputs = (), (), ()
        for i in tl.static_range(LANES):
            b_higher, b_total, b_product = b_top[i], b_sum[i], b_output[i]
            b_own = b_alpha
            if LIVE:
                p_own = p_lane_k + i_lane[i] * s_lane_k_n + i_g * s_lane_k_m
                b_own_k = load_rows(p_own, s_lane_k_t, o_s, length, o_d, D_K)
                b_scores = score_tile(b_lane_q[i], b_own_k, scale, softcap, HAS_SOFTCAP)
                b_scores = tl.where(m_allowed, b_scores, float("-inf"))
                b_higher = tl.maximum(b_higher, tl.max(b_scores, 1))
                b_shift = tl.where(b_higher == float("-inf"), 0.0, b_higher)  # no source so far
                b_own = tl.exp(b_scores - b_shift[:, None])
                b_fade = tl.exp(b_top[i] - b_shift)
                b_total = b_total * b_fade + tl.sum(b_own, 1)
                b_product *= b_fade[:, None]
            m_kept = b_weight > b_cut[i][:, None]
            if INVERT:
                m_kept = m_allowed & ~m_kept
            p_own_v = p_v + i_lane[i] * s_v_n + i_g * s_v_m
            b_product = add_kept(b_product, b_own, m_kept, p_own_v, s_v_t, o_s, length, o_v, D_V)
            b_tops += (b_higher,)
            b_sums += (b_total,)
            b_outputs += (b_product,)
        b_top, b_sum, b_output = b_tops, b_sums, b_outputs
    for i in tl.static_range(LANES):
        b_result = b_output[i]
        if LIVE:
            b_total = b_sum[i]
            if HAS_SINKS:
                sink = tl.load(p_sinks + i_h)
                b_higher = tl.maximum(b_top[i], sink)
                b_fade = tl.exp(b_top[i] - b_higher)
                b_total = b_total * b_fade + tl.exp(sink - b_higher)
                b_result *= b_fade[:, None]
            b_result /= tl.where(m_t, b_total, 1.0)[:, None]  # rows beyond the end have no source
        o_row = (i_lane[i] * length + o_t) * HEADS + i_h
        end = tl.where(i_first + i < strata, length, 0)
        m_output = (o_t < end)[:, None] & (o_v < D_V)[None, :]
        tl.store(p_output + o_row[:, None] * D_V + o_v[None, :], b_result, mask=m_output)


def lane_attention(
    edges: AttentionEdges, cuts: Tensor, v: Tensor, lanes: Pattern | None, invert: bool
) -> Tensor:
    strata, batch, length = cuts.shape
    pattern = with_lse(edges).pattern
    heads, width = pattern.shape[1], v.shape[-1]
    # Tokens before heads in memory, as the output projection reads them.
    output = torch.empty(
        strata, batch, length, heads, width, dtype=torch.float32, device=v.device
    ).transpose(2, 3)
    own = (
        pattern
        if lanes is None
        else replace(lanes, q=lanes.q.flatten(0, 1), k=lanes.k.flatten(0, 1))
    )
    values = rows(v.flatten(0, 1))
    shape, weight = geometry(pattern), edge_weight(edges)
    widest = max(shape["BD"], weight["BSENT"], tile_width(width))
    attention = "frozen" if lanes is None else "live"
    config = configs.launch(f"lane_attention_{attention}", widest, values)
    config["LANES"] = min(config["LANES"], strata)
    programs = (
        triton.cdiv(length, config["BT"]) * batch * heads,
        triton.cdiv(strata, config["LANES"]),
    )
    lane_attention_kernel[programs](
        p_lse=pattern.lse,
        p_v=values,
        p_cuts=cuts.float().contiguous(),
        p_output=output,
        batch=batch,
        strata=strata,
        D_V=width,
        BV=tile_width(width),
        LIVE=lanes is not None,
        INVERT=invert,
        **queries_and_keys(pattern),
        **queries_and_keys(own, "lane_"),
        **strides("v", values),
        **shape,
        **weight,
        **config,
    )
    return output
