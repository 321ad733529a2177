"""Sum of the weights of all attention edges into each target.

One sweep over the tiles of weights, one head per program; heads are summed afterwards.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..edges import AttentionEdges
from .arguments import edge_weight, geometry, queries_and_keys, weighing_config
from .tiles import allowed_tile, block_and_row, first_source, load_rows
from .weights import alpha_tile, uses_alpha, weight_tile, with_lse


@triton.jit(do_not_specialize=["seed", "salt"])
def edge_mass_kernel(
    p_q, p_k, p_lse, p_mass, p_segments,
    p_source, p_target, p_sent, p_positions, p_given,
    s_q_n, s_q_m, s_q_t, s_k_n, s_k_m, s_k_t, s_sent_n, s_sent_m, s_sent_t,
    scale, softcap, length, seed, salt,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, D_K: tl.constexpr, BD: tl.constexpr,
    D_SENT: tl.constexpr, BSENT: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr,
    WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SEGMENTS: tl.constexpr,
    HAS_TARGET: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    i_t, i_row = block_and_row(length, BT)
    i_b, i_h = i_row // HEADS, i_row % HEADS
    o_t, o_d = i_t * BT + tl.arange(0, BT), tl.arange(0, BD)
    m_t = o_t < length
    p_q += i_b * s_q_n + i_h * s_q_m
    p_k += i_b * s_k_n + i_h * GROUPS // HEADS * s_k_m
    p_segments += i_b * length
    if uses_alpha(KIND):
        b_q = load_rows(p_q, s_q_t, o_t, length, o_d, D_K)
        b_lse = tl.load(p_lse + i_row * length + o_t, mask=m_t, other=0.0)
    b_mass = tl.zeros([BT], tl.float32)
    for i_s in range(first_source(i_t, BT, BS, WINDOW), tl.minimum((i_t + 1) * BT, length), BS):
        o_s = i_s + tl.arange(0, BS)
        m_allowed = allowed_tile(o_t, o_s, length, p_segments, WINDOW, HAS_SEGMENTS)
        # [BT, BS]
        b_alpha = tl.zeros([BT, BS], tl.float32)
        if uses_alpha(KIND):
            b_alpha = alpha_tile(
                b_q, b_lse, m_allowed, p_k, s_k_t, o_s, o_d, length, scale, softcap,
                D_K, HAS_SOFTCAP,
            )  # fmt: skip
        b_weight = weight_tile(
            b_alpha, m_allowed, o_t, o_s, i_b, i_h, length,
            p_source, p_target, p_sent, s_sent_n, s_sent_m, s_sent_t, p_positions, p_given,
            seed, salt, HEADS, GROUPS, D_SENT, BSENT, KIND, HAS_TARGET,
        )  # fmt: skip
        b_mass += tl.sum(tl.where(b_weight < 0, 0.0, b_weight), 1)  # keeps NaN
    tl.store(p_mass + i_row * length + o_t, b_mass, mask=m_t)


def edge_mass(edges: AttentionEdges) -> Tensor:
    batch, heads, length = edges.pattern.shape
    pattern = with_lse(edges).pattern
    # Per head, then summed in a fixed order: no atomics.
    mass = torch.empty(batch, heads, length, dtype=torch.float32, device=pattern.device)
    shape, weight = geometry(pattern), edge_weight(edges)
    config = weighing_config("edge_mass", pattern, weight)
    edge_mass_kernel[(triton.cdiv(length, config["BT"]) * batch * heads,)](
        p_lse=pattern.lse,
        p_mass=mass,
        **queries_and_keys(pattern),
        **shape,
        **weight,
        **config,
    )
    return mass.sum(1)
