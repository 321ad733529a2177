"""Norm of what each source token would send through each head: METHOD §2, 'Norms separate'.

One kernel multiplies the values with the rows of a matrix of each head and reduces the product over
these rows as it is produced; nothing of [T, H, D] is written.

- L1: the rows are W_O's, reduced by sum |.|. Operations: 2 d D a token and head, twice that for
  bfloat16 values, for which W_O goes in two bfloat16 parts: what they leave of an entry is at most
  2^-17 of it, and nothing where it was bfloat16 to begin with. Other values are multiplied in
  float32. Bytes: v and W_O once, but for what the cache does not hold of W_O (a block of tokens
  reads a head's anew).
- L2: the rows are the Gram matrix's, G = W_O^T W_O, made in float64, and the product is reduced
  with the values themselves: nu^2 = v^T G v, in float32. Operations: 2 d^2 a token and head, and
  2 d^2 D a head for G.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .arguments import rows, strides, tile_width
from .tiles import block_and_row, load_rows, product


@triton.jit
def source_norms_kernel(
    p_v, p_matrix, p_norms, s_v_n, s_v_m, s_v_t, length, matrix_rows,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, D_V: tl.constexpr, BV: tl.constexpr,
    BS: tl.constexpr, BR: tl.constexpr, GRAM: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    i_s, i_row = block_and_row(length, BS)
    i_b, i_h = i_row // HEADS, i_row % HEADS
    o_s, o_v = i_s * BS + tl.arange(0, BS), tl.arange(0, BV)
    p_v += i_b * s_v_n + i_h * GROUPS // HEADS * s_v_m
    p_matrix += i_h * matrix_rows * D_V
    # [BS, BV]
    b_v = load_rows(p_v, s_v_t, o_s, length, o_v, D_V)
    b_norm = tl.zeros([BS], tl.float32)
    for i_r in range(0, matrix_rows, BR):
        o_r = i_r + tl.arange(0, BR)
        # [BR, BV]
        b_matrix = load_rows(p_matrix, D_V, o_r, matrix_rows, o_v, D_V)
        # [BS, BR]
        if SPLIT:
            b_upper = b_matrix.to(b_v.dtype)
            b_lower = (b_matrix - b_upper.to(tl.float32)).to(b_v.dtype)
            b_sent = product(b_v, tl.trans(b_upper)) + product(b_v, tl.trans(b_lower))
        else:
            b_sent = product(b_v.to(tl.float32), tl.trans(b_matrix))
        if GRAM:
            b_sent *= load_rows(p_v, s_v_t, o_s, length, o_r, D_V).to(tl.float32)
        else:
            b_sent = tl.abs(b_sent)
        b_norm += tl.sum(b_sent, 1)
    if GRAM:
        b_norm = tl.sqrt(tl.maximum(b_norm, 0.0))  # rounding may take a zero vector's below 0
    tl.store(p_norms + i_row * length + o_s, b_norm, mask=o_s < length)


def source_norms(v: Tensor, w_o: Tensor, p: int) -> Tensor:
    batch, groups, length, width = v.shape
    heads = len(w_o)
    values = rows(v)
    matrix = w_o.float().contiguous()
    if p == 2:
        wide = w_o.double()
        matrix = (wide.transpose(1, 2) @ wide).float()
    split = p == 1 and v.dtype == torch.bfloat16
    norms = torch.empty(batch, heads, length, dtype=torch.float32, device=v.device)
    tiles = values if split else matrix  # what the products are of
    config = configs.launch("source_norms", tile_width(width), tiles)
    source_norms_kernel[(triton.cdiv(length, config["BS"]) * batch * heads,)](
        p_v=values,
        p_matrix=matrix,
        p_norms=norms,
        length=length,
        matrix_rows=matrix.shape[1],
        HEADS=heads,
        GROUPS=groups,
        D_V=width,
        BV=tile_width(width),
        GRAM=p == 2,
        SPLIT=split,
        **strides("v", values),
        **config,
    )
    return norms
