"""Tiles of edge weights, METHOD §2: all kinds but the proximity, for the kernels that use cuts.

The kind is a compile-time string: "norm", "cosine", "random" or "given"; `arguments.edge_weight`
gives everything else of it by the names used here. A weight is float32 and -inf where there is no
edge, so that it clears no cut.
"""

from dataclasses import replace

import triton
import triton.language as tl

from ..edges import AttentionEdges
from .attention_stats import attention_stats
from .tiles import load_rows, product, score_tile


@triton.constexpr_function  # what a jitted function returns is no constant in every Triton
def uses_alpha(KIND):
    return KIND == "norm" or KIND == "cosine"


@triton.jit
def alpha_tile(
    b_q, b_lse, m_allowed, p_k, s_k_t, o_s, o_d, length, scale, softcap,
    D_K: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
):  # fmt: skip
    # [BT, BS]: attention weights, 0 where there is no edge; `p_k` is the head's
    b_k = load_rows(p_k, s_k_t, o_s, length, o_d, D_K)
    b_scores = score_tile(b_q, b_k, scale, softcap, HAS_SOFTCAP)
    return tl.where(m_allowed, tl.exp(b_scores - b_lse[:, None]), 0.0)


@triton.jit
def mix(b_value):
    # hashing._mix: uint32 arithmetic wraps as its masks do
    b_value = (b_value ^ (b_value >> 16)) * 0x7FEB352D
    b_value = (b_value ^ (b_value >> 15)) * 0x846CA68B
    return b_value ^ (b_value >> 16)


@triton.jit
def absorb(b_value, item):
    return mix((b_value ^ tl.cast(item, tl.uint32)) + 0x9E3779B9)


@triton.jit
def random_tile(seed, stream, i_h, b_target, b_source):
    # [BT, BS]: hashing.hash_uniform
    b_value = absorb(absorb(tl.cast(seed, tl.uint32), stream), i_h + 1)
    b_value = absorb(absorb(b_value, b_target)[:, None], b_source[None, :])
    return (b_value >> 8).to(tl.float32) * 5.9604644775390625e-8  # 2^-24


@triton.jit
def weight_tile(
    b_alpha, m_allowed, o_t, o_s, i_b, i_h, length,
    p_source, p_target, p_sent, s_sent_n, s_sent_m, s_sent_t, p_positions, p_given, seed, stream,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, D_SENT: tl.constexpr, BSENT: tl.constexpr,
    KIND: tl.constexpr, HAS_TARGET: tl.constexpr,
):  # fmt: skip
    # [BT, BS]; i_b and i_h are int64
    m_t, m_s = o_t < length, o_s < length
    i_row = i_b * HEADS + i_h
    if KIND == "norm":
        b_source = tl.load(p_source + i_row * length + o_s, mask=m_s, other=0.0)
        b_weight = b_alpha * b_source[None, :]
        if HAS_TARGET:
            b_target = tl.load(p_target + i_b * length + o_t, mask=m_t, other=0.0)
            b_weight *= b_target[:, None]
    elif KIND == "cosine":
        o_d = tl.arange(0, BSENT)
        p_target += i_row * length * D_SENT
        p_sent += i_b * s_sent_n + i_h * GROUPS // HEADS * s_sent_m
        b_target = load_rows(p_target, D_SENT, o_t, length, o_d, D_SENT)
        b_sent = load_rows(p_sent, s_sent_t, o_s, length, o_d, D_SENT).to(tl.float32)
        b_source = tl.load(p_source + i_row * length + o_s, mask=m_s, other=0.0)
        b_cosine = product(b_target, tl.trans(b_sent)) * b_source[None, :]
        b_cosine = tl.minimum(tl.maximum(b_cosine, -1.0), 1.0)
        b_weight = tl.where(b_alpha > 0, (1.0 + b_cosine) / 2.0, 0.5)
    elif KIND == "random":
        b_target = tl.load(p_positions + i_b * length + o_t, mask=m_t, other=0)
        b_source = tl.load(p_positions + i_b * length + o_s, mask=m_s, other=0)
        b_weight = random_tile(seed, stream, i_h, b_target, b_source)
    else:
        tl.static_assert(KIND == "given")
        b_weight = load_rows(p_given + i_row * length * length, length, o_t, length, o_s, length)
    return tl.where(m_allowed, b_weight, float("-inf"))


def with_lse(edges: AttentionEdges) -> AttentionEdges:
    """The edges, with the log-sum-exp of their scores, which attention weights follow from."""
    pattern = edges.pattern
    if pattern.lse is not None:
        return edges
    lse = attention_stats(pattern, pattern.k, None).lse
    return replace(edges, pattern=replace(pattern, lse=lse))
