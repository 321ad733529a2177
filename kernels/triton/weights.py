"""Tiles of edge weights, METHOD §2, for the kernels that use cuts: all kinds except proximity.

The kind is a compile-time string: "norm", "cosine", "random" or "given"; `arguments.edge_weight`
makes the other arguments by the names used here. A weight is float32, and -inf where there is no
edge, so that it clears no cut.

Kernels that only compare weights with cuts all compare `measure_tile` with `cut_rows` + `bar_rows`,
so that they keep the same edges. For norms these are logarithms to base 2, log nu + score against
log cut + lse - log target, which need no exponential. The comparison keeps its meaning: nothing
clears a cut of +inf, every weight above 0 clears a cut of 0, and everything clears one below 0.
"""

from dataclasses import replace
from typing import Any

import triton
import triton.language as tl

from ..edges import AttentionEdges
from .attention_stats import attention_stats
from .tiles import LOG2_E, add_product, load_rows, score_tile

PART = tl.constexpr(32)  # columns of the float32 vectors of cosines that are multiplied at a time

# Finite stand-ins for log 0: of a cut, below the logarithm of any weight; of a norm, below that.
NO_CUT = tl.constexpr(-1e30)
NO_NORM = tl.constexpr(-2e30)


@triton.constexpr_function  # not every Triton treats the result of a jitted function as a constant
def uses_alpha(KIND):
    return KIND == "norm" or KIND == "cosine"


@triton.jit
def alpha_tile(
    b_q, b_lse, m_allowed, p_k, s_k_t, o_s, o_d, length, scale, softcap,
    D_K: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
):  # fmt: skip
    # [BT, BS]: attention weights, 0 where there is no edge; `p_k` points to the head's keys
    b_k = load_rows(p_k, s_k_t, o_s, length, o_d, D_K)
    b_scores = score_tile(b_q, b_k, scale, softcap, HAS_SOFTCAP)
    return tl.where(m_allowed, tl.exp(b_scores - b_lse[:, None]), 0.0)


@triton.jit
def mix(b_value):
    # As hashing._mix, whose masks uint32 arithmetic makes unnecessary
    b_value = (b_value ^ (b_value >> 16)) * 0x7FEB352D
    b_value = (b_value ^ (b_value >> 15)) * 0x846CA68B
    return b_value ^ (b_value >> 16)


@triton.jit
def absorb(b_value, item):
    return mix((b_value ^ tl.cast(item, tl.uint32)) + 0x9E3779B9)


@triton.jit
def random_tile(seed, salt, i_h, b_target, b_source):
    # [BT, BS]: as hashing.hash_uniform
    b_value = absorb(absorb(tl.cast(seed, tl.uint32), salt), i_h + 1)
    b_value = absorb(absorb(b_value, b_target)[:, None], b_source[None, :])
    return (b_value >> 8).to(tl.float32) * 5.9604644775390625e-8  # 2^-24


@triton.jit
def weight_tile(
    b_alpha, m_allowed, o_t, o_s, i_b, i_h, length,
    p_source, p_target, p_sent, s_sent_n, s_sent_m, s_sent_t, p_positions, p_given, seed, salt,
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
        BPART: tl.constexpr = min(BSENT, PART)
        p_target += i_row * length * D_SENT
        p_sent += i_b * s_sent_n + i_h * GROUPS // HEADS * s_sent_m
        b_cosine = tl.zeros_like(b_alpha)
        for i_d in tl.static_range(0, BSENT, BPART):
            o_d = i_d + tl.arange(0, BPART)
            b_target = load_rows(p_target, D_SENT, o_t, length, o_d, D_SENT)
            b_sent = load_rows(p_sent, s_sent_t, o_s, length, o_d, D_SENT).to(tl.float32)
            b_cosine = add_product(b_cosine, b_target, tl.trans(b_sent))
        b_cosine *= tl.load(p_source + i_row * length + o_s, mask=m_s, other=0.0)[None, :]
        b_cosine = tl.clamp(b_cosine, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
        b_weight = tl.where(b_alpha > 0, (1.0 + b_cosine) / 2.0, 0.5)
    elif KIND == "random":
        b_target = tl.load(p_positions + i_b * length + o_t, mask=m_t, other=0)
        b_source = tl.load(p_positions + i_b * length + o_s, mask=m_s, other=0)
        b_weight = random_tile(seed, salt, i_h, b_target, b_source)
    else:
        tl.static_assert(KIND == "given")
        b_weight = load_rows(p_given + i_row * length * length, length, o_t, length, o_s, length)
    return tl.where(m_allowed, b_weight, float("-inf"))


@triton.jit
def source_columns(
    p_source, o_s, i_b, i_h, length, HEADS: tl.constexpr, KIND: tl.constexpr, WHOLE: tl.constexpr
):
    # [BS]: logarithms that `measure_tile` adds under norms. Loaded before the scores, whose product
    # the load then overlaps.
    b_source = tl.zeros_like(o_s).to(tl.float32)
    if KIND == "norm":
        p_source += (i_b * HEADS + i_h) * length
        if WHOLE:
            b_source = tl.load(p_source + o_s)
        else:
            b_source = tl.load(p_source + o_s, mask=o_s < length, other=0.0)
    return b_source


@triton.jit
def measure_tile(
    b_scores, unit, b_source, b_alpha, m_allowed, o_t, o_s, i_b, i_h, length,
    p_source, p_target, p_sent, s_sent_n, s_sent_m, s_sent_t, p_positions, p_given, seed, salt,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, D_SENT: tl.constexpr, BSENT: tl.constexpr,
    KIND: tl.constexpr, HAS_TARGET: tl.constexpr,
):  # fmt: skip
    # [BT, BS]. For norms it is finite where there is no edge, too.
    if KIND == "norm":
        # An explicit fma, so that every kernel rounds alike
        b_measure = tl.fma(b_scores, tl.zeros_like(b_scores) + unit, b_source[None, :])
    else:
        b_measure = weight_tile(
            b_alpha, m_allowed, o_t, o_s, i_b, i_h, length,
            p_source, p_target, p_sent, s_sent_n, s_sent_m, s_sent_t, p_positions, p_given,
            seed, salt, HEADS, GROUPS, D_SENT, BSENT, KIND, HAS_TARGET,
        )  # fmt: skip
    return b_measure


@triton.jit
def log_or(b_number, b_nothing):
    # log2(b_number) where it is above 0, else b_nothing
    m_some = b_number > 0
    return tl.where(m_some, tl.log2(tl.where(m_some, b_number, 1.0)), b_nothing)


@triton.jit
def cut_rows(b_cut, KIND: tl.constexpr):
    # [BT]: the part of the bar that all heads share
    if KIND == "norm":
        b_nothing = tl.where(b_cut < 0, float("-inf"), b_cut + NO_CUT)  # keeps NaN
        b_cut = log_or(b_cut, b_nothing)
    return b_cut


@triton.jit
def bar_rows(
    p_lse, p_target, o_t, i_b, i_h, length, HEADS: tl.constexpr, KIND: tl.constexpr,
    HAS_TARGET: tl.constexpr,
):  # fmt: skip
    # [BT]: the head's part; an edge clears a cut iff its measure exceeds the sum of both parts
    b_bar = tl.zeros_like(o_t).to(tl.float32)
    if KIND == "norm":
        m_t = o_t < length
        p_lse += (i_b * HEADS + i_h) * length
        b_lse = tl.load(p_lse + o_t, mask=m_t, other=0.0)
        b_bar = tl.fma(b_lse, tl.zeros_like(b_lse) + LOG2_E, tl.zeros_like(b_lse))
        if HAS_TARGET:
            b_target = tl.load(p_target + i_b * length + o_t, mask=m_t, other=1.0)
            b_bar -= log_or(b_target, NO_NORM)
    return b_bar


def with_logarithms(weight: dict[str, Any]) -> dict[str, Any]:
    """`arguments.edge_weight` for `source_columns` and `measure_tile`: norms as logarithms."""
    if weight["KIND"] != "norm":
        return weight
    return weight | {"p_source": weight["p_source"].log2().clamp(min=NO_NORM.value)}


def with_lse(edges: AttentionEdges) -> AttentionEdges:
    """The edges with a contiguous `pattern.lse`, computed if it is None."""
    pattern, lse = edges.pattern, edges.pattern.lse
    if lse is None:
        lse = attention_stats(pattern, pattern.k, None).lse
    return replace(edges, pattern=replace(pattern, lse=lse.contiguous()))
