"""Attention output, log-sum-exp and edge mass in one sweep: METHOD §2.

Flash attention with one more value column: the source norms.
Operations: 2 (d_k + d_v) a pair. Bytes: q, k, v read once and the output written once, except that
k and v are read again where the cache does not hold them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..edges import Pattern
from ..results import AttentionStats
from . import configs
from .arguments import geometry, queries_and_keys, rows, sinks, strides, tile_width
from .tiles import (
    allowed_tile,
    block_and_row,
    first_source,
    load_rows,
    product,
    rounded_product,
    score_tile,
)


@triton.jit
def attention_stats_kernel(
    p_q, p_k, p_v, p_source, p_output, p_lse, p_mass, p_sinks, p_segments,
    s_q_n, s_q_m, s_q_t, s_k_n, s_k_m, s_k_t, s_v_n, s_v_m, s_v_t,
    scale, softcap, length,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, D_K: tl.constexpr, D_V: tl.constexpr,
    BD: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr,
    WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
    HAS_SEGMENTS: tl.constexpr, HAS_SOURCE: tl.constexpr,
):  # fmt: skip
    i_t, i_row = block_and_row(length, BT)
    i_b, i_h = i_row // HEADS, i_row % HEADS
    i_g = i_h * GROUPS // HEADS
    o_t, o_d, o_v = i_t * BT + tl.arange(0, BT), tl.arange(0, BD), tl.arange(0, BV)
    p_q += i_b * s_q_n + i_h * s_q_m
    p_k += i_b * s_k_n + i_g * s_k_m
    p_v += i_b * s_v_n + i_g * s_v_m
    p_source += i_row * length
    p_segments += i_b * length
    # [BT, BD]
    b_q = load_rows(p_q, s_q_t, o_t, length, o_d, D_K)
    b_top = tl.full([BT], float("-inf"), tl.float32)
    b_sum = tl.zeros([BT], tl.float32)
    b_mass = tl.zeros([BT], tl.float32)
    b_output = tl.zeros([BT, BV], tl.float32)
    for i_s in range(first_source(i_t, BT, BS, WINDOW), tl.minimum((i_t + 1) * BT, length), BS):
        o_s = i_s + tl.arange(0, BS)
        if HAS_SOURCE:  # before the products, which the load then overlaps
            b_source = tl.load(p_source + o_s, mask=o_s < length, other=0.0)
        b_k = load_rows(p_k, s_k_t, o_s, length, o_d, D_K)
        # [BT, BS]
        b_scores = score_tile(b_q, b_k, scale, softcap, HAS_SOFTCAP)
        m_allowed = allowed_tile(o_t, o_s, length, p_segments, WINDOW, HAS_SEGMENTS)
        b_scores = tl.where(m_allowed, b_scores, float("-inf"))
        b_higher = tl.maximum(b_top, tl.max(b_scores, 1))
        b_shift = tl.where(b_higher == float("-inf"), 0.0, b_higher)  # -inf: no source so far
        b_weight = tl.exp(b_scores - b_shift[:, None])
        b_fade = tl.exp(b_top - b_shift)
        b_v = load_rows(p_v, s_v_t, o_s, length, o_v, D_V)
        b_output = b_output * b_fade[:, None]
        b_output += product(b_weight, b_v)
        b_sum = b_sum * b_fade + tl.sum(b_weight, 1)
        if HAS_SOURCE:
            b_source = tl.broadcast_to(b_source[None, :], [BT, BS])
            if b_q.dtype == tl.float32:
                b_sent = rounded_product(b_weight, b_source)
            else:  # matrix units give each thread several columns
                b_sent = b_weight * b_source
            b_mass = b_mass * b_fade + tl.sum(b_sent, 1)
        b_top = b_higher
    if HAS_SINKS:
        sink = tl.load(p_sinks + i_h)
        b_higher = tl.maximum(b_top, sink)
        b_fade = tl.exp(b_top - b_higher)
        b_sum = b_sum * b_fade + tl.exp(sink - b_higher)
        b_output = b_output * b_fade[:, None]
        b_mass = b_mass * b_fade
        b_top = b_higher
    m_t = o_t < length
    b_sum = tl.where(m_t, b_sum, 1.0)  # rows beyond the end have no sources
    o_row = i_row * length + o_t
    tl.store(p_lse + o_row, b_top + tl.log(b_sum), mask=m_t)
    if HAS_SOURCE:
        tl.store(p_mass + o_row, b_mass / b_sum, mask=m_t)
    m_output = m_t[:, None] & (o_v < D_V)[None, :]
    p_output += o_row[:, None] * D_V + o_v[None, :]
    tl.store(p_output, b_output / b_sum[:, None], mask=m_output)


def attention_stats(pattern: Pattern, v: Tensor, source: Tensor | None) -> AttentionStats:
    batch, heads, length = pattern.shape
    values = rows(v)
    width = v.shape[-1]
    output = torch.empty(batch, heads, length, width, dtype=torch.float32, device=v.device)
    lse = torch.empty(batch, heads, length, dtype=torch.float32, device=v.device)
    # Per head, then summed in a fixed order: no atomics. Not written without `source`.
    mass = lse if source is None else torch.empty_like(lse)
    shape = geometry(pattern)
    config = configs.launch(
        "attention_stats", max(shape["BD"], tile_width(width)), pattern.q, pattern.k, values
    )
    attention_stats_kernel[(triton.cdiv(length, config["BT"]) * batch * heads,)](
        p_v=values,
        p_source=lse if source is None else source.contiguous(),
        p_output=output,
        p_lse=lse,
        p_mass=mass,
        D_V=width,
        BV=tile_width(width),
        HAS_SOURCE=source is not None,
        **queries_and_keys(pattern),
        **sinks(pattern),
        **strides("v", values),
        **shape,
        **config,
    )
    if source is None:
        return AttentionStats(output, lse, torch.zeros_like(lse[:, 0]))
    return AttentionStats(output, lse, mass.sum(1))
