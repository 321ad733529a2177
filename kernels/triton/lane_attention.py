"""Attention output of the masked lanes: METHOD §5.

A program serves LANES lanes of a block of targets of one head. The lanes share a tile of clean
scores and of edge weights (or their logarithms); each live lane adds its own scores, and every lane
its product with the values. The mask is never written: it is the comparison with the lane's cut.
Under norms, live lanes need only the logarithm of the clean weight. Tiles in which every target
attends to every source, which are most, need no other mask.

Operations a pair: 2 d_k for the clean tile, and per lane 2 d_v, plus 2 d_k if live. A tile that
keeps nothing is multiplied too: a test for it would delay the loads of the following tiles.
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..edges import AttentionEdges, Pattern
from .arguments import (
    edge_weight,
    geometry,
    queries_and_keys,
    rows,
    sinks,
    strides,
    tile_width,
    weighing_config,
)
from .tiles import (
    LOG2_E,
    add_product,
    allowed_tile,
    block_and_row,
    first_source,
    load_cut,
    load_rows,
    load_sources,
    log_scores,
    log_unit,
    whole_sources,
)
from .weights import (
    bar_rows,
    cut_rows,
    measure_tile,
    source_columns,
    uses_alpha,
    with_logarithms,
    with_lse,
)


@triton.constexpr_function
def needs_alpha(KIND, LIVE):
    """Whether the clean attention weights are needed, rather than their logarithms alone."""
    return not LIVE or KIND == "cosine"


@triton.jit
def add_tile(
    b_top, b_sum, b_output, b_q, b_shift, b_lane_q, b_bar, i_lane, o_t, o_s, o_d, o_v,
    i_b, i_h, i_g, p_k, p_lane_k, p_v, p_segments,
    p_source, p_target, p_sent, p_positions, p_given,
    s_k_t, s_v_n, s_v_m, s_v_t, s_lane_k_n, s_lane_k_m, s_lane_k_t, s_sent_n, s_sent_m, s_sent_t,
    scale, softcap, length, seed, salt,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, D_K: tl.constexpr, D_V: tl.constexpr,
    BD: tl.constexpr, BV: tl.constexpr, D_SENT: tl.constexpr, BSENT: tl.constexpr,
    LANES: tl.constexpr, WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    HAS_SEGMENTS: tl.constexpr, HAS_TARGET: tl.constexpr, KIND: tl.constexpr,
    LIVE: tl.constexpr, INVERT: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    # Update the lanes' running maxima, sums and outputs with a tile of sources
    unit = log_unit(scale, HAS_SOFTCAP)
    # [BT, BS]
    m_allowed = (o_s[None, :] >= 0) & (o_t[:, None] >= 0)
    if not WHOLE:
        m_allowed = allowed_tile(o_t, o_s, length, p_segments, WINDOW, HAS_SEGMENTS)
    b_source = source_columns(p_source, o_s, i_b, i_h, length, HEADS, KIND, WHOLE)
    b_scores = tl.zeros_like(m_allowed).to(tl.float32)
    if uses_alpha(KIND) or not LIVE:
        b_k = load_sources(p_k, s_k_t, o_s, length, o_d, D_K, BD, WHOLE)
        b_scores = log_scores(b_q, b_k, scale, softcap, HAS_SOFTCAP)
    b_alpha = b_scores
    if needs_alpha(KIND, LIVE):
        b_alpha = tl.exp2(tl.fma(b_scores, tl.zeros_like(b_scores) + unit, -b_shift[:, None]))
        if not WHOLE:
            b_alpha = tl.where(m_allowed, b_alpha, 0.0)
    b_measure = measure_tile(
        b_scores, unit, b_source, b_alpha, m_allowed, o_t, o_s, i_b, i_h, length,
        p_source, p_target, p_sent, s_sent_n, s_sent_m, s_sent_t, p_positions, p_given,
        seed, salt, HEADS, GROUPS, D_SENT, BSENT, KIND, HAS_TARGET,
    )  # fmt: skip
    b_tops, b_sums, b_outputs = (), (), ()
    for i in tl.static_range(LANES):
        b_higher, b_total, b_product, b_own = b_top[i], b_sum[i], b_output[i], b_alpha
        m_kept = b_measure > b_bar[i][:, None]
        if INVERT:
            m_kept = ~m_kept
        if not WHOLE:
            m_kept &= m_allowed
        if LIVE:
            p_own = p_lane_k + i_lane[i] * s_lane_k_n + i_g * s_lane_k_m
            b_own_k = load_sources(p_own, s_lane_k_t, o_s, length, o_d, D_K, BD, WHOLE)
            b_live = log_scores(b_lane_q[i], b_own_k, scale, softcap, HAS_SOFTCAP)
            if not WHOLE:
                b_live = tl.where(m_allowed, b_live, float("-inf"))
            b_higher = tl.maximum(b_higher, tl.max(b_live, 1) * unit)
            b_zero = b_higher
            if not WHOLE:
                b_zero = tl.where(b_higher == float("-inf"), 0.0, b_higher)  # no source so far
            b_own = tl.exp2(tl.fma(b_live, tl.zeros_like(b_live) + unit, -b_zero[:, None]))
            b_fade = tl.exp2(b_top[i] - b_zero)
            b_total = b_total * b_fade + tl.sum(b_own, 1)
            b_product *= b_fade[:, None]
        p_own_v = p_v + i_lane[i] * s_v_n + i_g * s_v_m
        b_v = load_sources(p_own_v, s_v_t, o_s, length, o_v, D_V, BV, WHOLE)
        b_tops += (b_higher,)
        b_sums += (b_total,)
        b_outputs += (add_product(b_product, tl.where(m_kept, b_own, 0.0), b_v),)
    return b_tops, b_sums, b_outputs


@triton.jit(do_not_specialize=["batch", "strata", "seed", "salt"])
def lane_attention_kernel(
    p_q, p_k, p_lse, p_lane_q, p_lane_k, p_v, p_cuts, p_output, p_sinks, p_segments,
    p_source, p_target, p_sent, p_positions, p_given,
    s_q_n, s_q_m, s_q_t, s_k_n, s_k_m, s_k_t, s_v_n, s_v_m, s_v_t,
    s_lane_q_n, s_lane_q_m, s_lane_q_t, s_lane_k_n, s_lane_k_m, s_lane_k_t,
    s_sent_n, s_sent_m, s_sent_t,
    scale, softcap, length, batch, strata, seed, salt,
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
    p_k += i_b * s_k_n + i_g * s_k_m
    p_segments += i_b * length
    b_shift = tl.zeros([BT], tl.float32)
    b_q = b_shift
    if uses_alpha(KIND) or not LIVE:
        b_q = load_rows(p_q + i_b * s_q_n + i_h * s_q_m, s_q_t, o_t, length, o_d, D_K)
        b_shift = tl.load(p_lse + i_row * length + o_t, mask=m_t, other=0.0) * LOG2_E
    b_head = bar_rows(p_lse, p_target, o_t, i_b, i_h, length, HEADS, KIND, HAS_TARGET)
    # One entry a lane
    i_lane, b_bar, b_lane_q, b_top, b_sum, b_output = (), (), (), (), (), ()
    for i in tl.static_range(LANES):
        i_k = tl.minimum(i_first + i, strata - 1)  # excess lanes repeat the last and store nothing
        i_n = i_k * batch + i_b
        i_lane += (i_n,)
        b_bar += (cut_rows(load_cut(p_cuts, i_k, i_b, batch, o_t, length), KIND) + b_head,)
        if LIVE:
            p_own = p_lane_q + i_n * s_lane_q_n + i_h * s_lane_q_m
            b_lane_q += (load_rows(p_own, s_lane_q_t, o_t, length, o_d, D_K),)
        b_top += (tl.full([BT], float("-inf"), tl.float32),)
        b_sum += (tl.zeros([BT], tl.float32),)
        b_output += (tl.zeros([BT, BV], tl.float32),)
    first = first_source(i_t, BT, BS, WINDOW)
    end = tl.minimum((i_t + 1) * BT, length)
    first_whole, end_whole = first, first
    if KIND == "norm":
        first_whole, end_whole = whole_sources(
            i_t, length, p_segments, BT, BS, WINDOW, HAS_SEGMENTS
        )
        for i_s in range(first_whole, end_whole, BS):
            b_top, b_sum, b_output = add_tile(
                b_top, b_sum, b_output, b_q, b_shift, b_lane_q, b_bar, i_lane,
                o_t, i_s + tl.arange(0, BS), o_d, o_v, i_b, i_h, i_g,
                p_k, p_lane_k, p_v, p_segments, p_source, p_target, p_sent, p_positions, p_given,
                s_k_t, s_v_n, s_v_m, s_v_t, s_lane_k_n, s_lane_k_m, s_lane_k_t,
                s_sent_n, s_sent_m, s_sent_t, scale, softcap, length, seed, salt,
                HEADS, GROUPS, D_K, D_V, BD, BV, D_SENT, BSENT, LANES, WINDOW, HAS_SOFTCAP,
                HAS_SEGMENTS, HAS_TARGET, KIND, LIVE, INVERT, True,
            )  # fmt: skip
    before = (first_whole - first) // BS  # tiles
    for i in range(before + tl.cdiv(end - end_whole, BS)):
        i_s = tl.where(i < before, first + i * BS, end_whole + (i - before) * BS)
        b_top, b_sum, b_output = add_tile(
            b_top, b_sum, b_output, b_q, b_shift, b_lane_q, b_bar, i_lane,
            o_t, i_s + tl.arange(0, BS), o_d, o_v, i_b, i_h, i_g,
            p_k, p_lane_k, p_v, p_segments, p_source, p_target, p_sent, p_positions, p_given,
            s_k_t, s_v_n, s_v_m, s_v_t, s_lane_k_n, s_lane_k_m, s_lane_k_t,
            s_sent_n, s_sent_m, s_sent_t, scale, softcap, length, seed, salt,
            HEADS, GROUPS, D_K, D_V, BD, BV, D_SENT, BSENT, LANES, WINDOW, HAS_SOFTCAP,
            HAS_SEGMENTS, HAS_TARGET, KIND, LIVE, INVERT, False,
        )  # fmt: skip
    for i in tl.static_range(LANES):
        b_result = b_output[i]
        if LIVE:
            b_total = b_sum[i]
            if HAS_SINKS:
                sink = tl.load(p_sinks + i_h) * LOG2_E
                b_higher = tl.maximum(b_top[i], sink)
                b_fade = tl.exp2(b_top[i] - b_higher)
                b_total = b_total * b_fade + tl.exp2(sink - b_higher)
                b_result *= b_fade[:, None]
            b_result /= tl.where(m_t, b_total, 1.0)[:, None]  # rows beyond the end have no sources
        o_row = (i_lane[i] * length + o_t) * HEADS + i_h
        end_row = tl.where(i_first + i < strata, length, 0)
        m_output = (o_t < end_row)[:, None] & (o_v < D_V)[None, :]
        b_result = b_result.to(p_output.dtype.element_ty)
        tl.store(p_output + o_row[:, None] * D_V + o_v[None, :], b_result, mask=m_output)


def lane_attention(
    edges: AttentionEdges,
    cuts: Tensor,
    v: Tensor,
    lanes: Pattern | None,
    invert: bool,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    strata, batch, length = cuts.shape
    pattern = with_lse(edges).pattern
    heads, width = pattern.shape[1], v.shape[-1]
    # Tokens before heads in memory, as the output projection reads them.
    output = torch.empty(
        strata, batch, length, heads, width, dtype=dtype, device=v.device
    ).transpose(2, 3)
    own = (
        pattern
        if lanes is None
        else replace(lanes, q=lanes.q.flatten(0, 1), k=lanes.k.flatten(0, 1))
    )
    values = rows(v.flatten(0, 1))
    shape, weight = geometry(pattern), with_logarithms(edge_weight(edges))
    attention = "frozen" if lanes is None else "live"
    config = weighing_config(f"lane_attention_{attention}", pattern, weight, values)
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
        **sinks(pattern),
        **queries_and_keys(own, "lane_"),
        **strides("v", values),
        **shape,
        **weight,
        **config,
    )
    return output
