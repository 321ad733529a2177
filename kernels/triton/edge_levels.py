"""Level map and in-degrees of a block's attention edges: METHOD §4.

A program owns one tile of targets and sources and loops over the heads. For every pair and cut it
counts the heads whose edge clears the cut, in bit fields of a few integers: the number of non-zero
fields is the level, and the sums over sources are the degrees. Degrees of different tiles are added
by integer atomics, whose order does not matter. Under norms logarithms are compared (`weights`), so
no exponential is needed. More than GROUP cuts are processed in groups, whose levels add up.

Operations: 2 d_k a pair and head, and two a cut; bytes: q and k once a tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..edges import AttentionEdges
from ..results import EdgeLevels
from .arguments import edge_weight, geometry, queries_and_keys, weighing_config
from .tiles import LOG2_E, allowed_tile, block_and_row, load_cut, load_rows, log_scores, log_unit
from .weights import (
    bar_rows,
    cut_rows,
    measure_tile,
    source_columns,
    uses_alpha,
    with_logarithms,
    with_lse,
)

BITS = tl.constexpr(5)  # of a field, which counts heads
FIELDS = tl.constexpr(6)  # of an integer
GROUP = 2 * FIELDS.value  # cuts counted together: more would run out of registers
MOST_HEADS = tl.constexpr((1 << BITS.value) - 1)
HALF = tl.constexpr(BITS.value * FIELDS.value // 2)  # bits from a field to its fellow
LOW = tl.constexpr((1 << HALF.value) - 1)
FIRST = tl.constexpr(MOST_HEADS.value << HALF.value | MOST_HEADS.value)  # a field and its fellow
# 1 in every field
ONES = tl.constexpr(sum(1 << BITS.value * field for field in range(FIELDS.value)))


@triton.constexpr_function
def integers(cuts):
    """Number of integers that hold the fields of `cuts` cuts."""
    return -(-cuts // FIELDS.value)


@triton.constexpr_function
def integer_of(k):
    """Index of the integer that holds the field of cut k."""
    return k // FIELDS.value


@triton.constexpr_function
def cut_of(integer, field, fellow=False):
    """The cut that a field of an integer, or its fellow, belongs to."""
    return FIELDS.value * integer + field + (FIELDS.value // 2 if fellow else 0)


@triton.constexpr_function
def one_of(k):
    """A count of one head in the field of cut k."""
    return 1 << k % FIELDS.value * BITS.value


@triton.jit
def fields_used(b_field):
    # int32: number of non-zero fields, through one bit per field that is set if it is non-zero
    b_used = (((b_field & (ONES * 15)) + ONES * 15) | b_field) >> 4 & ONES
    return b_used * ONES >> (BITS * (FIELDS - 1)) & MOST_HEADS


@triton.jit
def add_degrees(p_degrees, b_degree, k: tl.constexpr, i_b, batch, o_t, length, CUTS: tl.constexpr):
    if k < CUTS:
        p_degrees += (k * batch + i_b) * length
        m_degree = (o_t < length) & (b_degree > 0)
        tl.atomic_add(p_degrees + o_t, b_degree, mask=m_degree, sem="relaxed")


@triton.jit(do_not_specialize=["batch", "seed", "salt"])
def edge_levels_kernel(
    p_q, p_k, p_lse, p_cuts, p_levels, p_degrees, p_segments,
    p_source, p_target, p_sent, p_positions, p_given,
    s_q_n, s_q_m, s_q_t, s_k_n, s_k_m, s_k_t, s_sent_n, s_sent_m, s_sent_t,
    scale, softcap, length, batch, seed, salt,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, D_K: tl.constexpr, BD: tl.constexpr,
    D_SENT: tl.constexpr, BSENT: tl.constexpr, CUTS: tl.constexpr, ADDED: tl.constexpr,
    BT: tl.constexpr, BS: tl.constexpr,
    WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SEGMENTS: tl.constexpr,
    HAS_TARGET: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    i_t, i_b = block_and_row(length, BT)
    i_s = tl.program_id(1)
    o_t, o_s, o_d = i_t * BT + tl.arange(0, BT), i_s * BS + tl.arange(0, BS), tl.arange(0, BD)
    m_t = o_t < length
    m_level = m_t[:, None] & (o_s < length)[None, :]
    p_levels += i_b * length * length + o_t.to(tl.int64)[:, None] * length + o_s[None, :]
    # [BT, BS]
    b_level = tl.zeros([BT, BS], tl.int32)
    any_edge = i_s * BS < (i_t + 1) * BT
    if WINDOW > 0:
        any_edge &= (i_s + 1) * BS + WINDOW > i_t * BT + 1
    if any_edge:
        p_q += i_b * s_q_n
        p_k += i_b * s_k_n
        m_allowed = allowed_tile(o_t, o_s, length, p_segments + i_b * length, WINDOW, HAS_SEGMENTS)
        unit = log_unit(scale, HAS_SOFTCAP)
        b_cut = ()
        for k in tl.static_range(CUTS):
            b_cut += (cut_rows(load_cut(p_cuts, k, i_b, batch, o_t, length), KIND),)
        for i_first in range(0, HEADS, MOST_HEADS):
            b_fields = ()
            for _ in tl.static_range(integers(CUTS)):
                b_fields += (tl.zeros([BT, BS], tl.int32),)
            for h in range(i_first, tl.minimum(i_first + MOST_HEADS, HEADS)):
                i_h = tl.cast(h, tl.int64)
                b_head = bar_rows(p_lse, p_target, o_t, i_b, i_h, length, HEADS, KIND, HAS_TARGET)
                b_source = source_columns(p_source, o_s, i_b, i_h, length, HEADS, KIND, False)
                b_scores = tl.zeros([BT, BS], tl.float32)
                b_alpha = b_scores
                if uses_alpha(KIND):
                    p_own = p_k + i_h * GROUPS // HEADS * s_k_m
                    b_q = load_rows(p_q + i_h * s_q_m, s_q_t, o_t, length, o_d, D_K)
                    b_k = load_rows(p_own, s_k_t, o_s, length, o_d, D_K)
                    b_scores = log_scores(b_q, b_k, scale, softcap, HAS_SOFTCAP)
                if KIND == "cosine":
                    o_lse = (i_b * HEADS + i_h) * length + o_t
                    b_lse = tl.load(p_lse + o_lse, mask=m_t, other=0.0) * LOG2_E
                    b_alpha = tl.exp2(b_scores * unit - b_lse[:, None])
                b_measure = measure_tile(
                    b_scores, unit, b_source, b_alpha, m_allowed, o_t, o_s, i_b, i_h, length,
                    p_source, p_target, p_sent, s_sent_n, s_sent_m, s_sent_t, p_positions, p_given,
                    seed, salt, HEADS, GROUPS, D_SENT, BSENT, KIND, HAS_TARGET,
                )  # fmt: skip
                b_counted = ()
                for j in tl.static_range(integers(CUTS)):
                    b_field = b_fields[j]
                    for k in tl.static_range(CUTS):
                        if integer_of(k) == j:
                            m_kept = b_measure > (b_cut[k] + b_head)[:, None]
                            b_field = tl.where(m_kept, b_field + one_of(k), b_field)
                    b_counted += (b_field,)
                b_fields = b_counted
            b_highest = tl.zeros([BT, BS], tl.int32)
            for j in tl.static_range(integers(CUTS)):
                b_field = tl.where(m_allowed, b_fields[j], 0)
                b_highest += fields_used(b_field)
                for f in tl.static_range(FIELDS // 2):
                    # Sums over 31 heads and hundreds of sources fit below the fellow field.
                    b_sums = tl.sum((b_field >> (BITS * f)) & FIRST, 1)
                    b_low, b_high = b_sums & LOW, b_sums >> HALF
                    add_degrees(p_degrees, b_low, cut_of(j, f), i_b, batch, o_t, length, CUTS)
                    add_degrees(
                        p_degrees, b_high, cut_of(j, f, True), i_b, batch, o_t, length, CUTS
                    )
            b_level = tl.maximum(b_level, b_highest)
    if ADDED:
        b_level += tl.load(p_levels, mask=m_level, other=0).to(tl.int32)
    tl.store(p_levels, b_level.to(tl.uint8), mask=m_level)


def edge_levels(edges: AttentionEdges, cuts: Tensor) -> EdgeLevels:
    strata, batch, length = cuts.shape
    pattern = with_lse(edges).pattern
    levels = torch.empty(batch, length, length, dtype=torch.uint8, device=cuts.device)
    degrees = torch.zeros(strata, batch, length, dtype=torch.int32, device=cuts.device)
    cuts = cuts.float().contiguous()
    shape, weight = geometry(pattern), with_logarithms(edge_weight(edges))
    config = weighing_config("edge_levels", pattern, weight)
    grid = triton.cdiv(length, config["BT"]) * batch, triton.cdiv(length, config["BS"])
    for first in range(0, strata, GROUP):
        group = slice(first, min(strata, first + GROUP))
        edge_levels_kernel[grid](
            p_lse=pattern.lse,
            p_cuts=cuts[group],
            p_levels=levels,
            p_degrees=degrees[group],
            batch=batch,
            CUTS=group.stop - group.start,
            ADDED=first > 0,
            **queries_and_keys(pattern),
            **shape,
            **weight,
            **config,
        )
    return EdgeLevels(levels, degrees)
