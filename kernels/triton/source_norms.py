"""Norm of what each source token sends through each head: METHOD §2, 'Norms separate'.

One kernel multiplies the values with the rows of each head's matrix and reduces the product over
these rows as it is produced; no [T, H, D] tensor is written.

- L1: the rows of W_O. Operations: 2 d D a token and head. Bytes: v and W_O once, except that each
  block of tokens reads a head's W_O again where the cache does not hold it.
- L2: d rows with the Gram matrix of W_O suffice: 2 d^2 a token and head.

If values and matrix have the same 16-bit dtype, products are exact and only float32 sums round. If
values are bfloat16 and the matrix is float32 (a norm's gamma is folded in), the matrix is split
into two bfloat16 parts, at twice the operations; they miss at most 2^-17 of an entry. All others
are multiplied in float32: other dtypes, and rows too wide for registers to hold both parts.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .arguments import rows, strides, tile_width
from .tiles import block_and_row, load_rows, product, rounded_product

WIDEST_SPLIT = 256  # a row of both parts


@triton.jit
def source_norms_kernel(
    p_v, p_matrix, p_norms, s_v_n, s_v_m, s_v_t, s_matrix_m, s_matrix_t, length, matrix_rows,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, D_V: tl.constexpr, BV: tl.constexpr,
    BS: tl.constexpr, BR: tl.constexpr, P: tl.constexpr, FACTORS: tl.constexpr,
):  # fmt: skip
    i_s, i_row = block_and_row(length, BS)
    i_b, i_h = i_row // HEADS, i_row % HEADS
    o_s, o_v = i_s * BS + tl.arange(0, BS), tl.arange(0, BV)
    p_v += i_b * s_v_n + i_h * GROUPS // HEADS * s_v_m
    p_matrix += i_h * s_matrix_m
    # [BS, BV]
    b_v = load_rows(p_v, s_v_t, o_s, length, o_v, D_V)
    b_norm = tl.zeros([BS], tl.float32)
    for i_r in range(0, matrix_rows, BR):
        o_r = i_r + tl.arange(0, BR)
        # [BR, BV]
        b_matrix = load_rows(p_matrix, s_matrix_t, o_r, matrix_rows, o_v, D_V)
        # [BS, BR]
        if FACTORS == "alike":
            b_sent = product(b_v, tl.trans(b_matrix))
        elif FACTORS == "split":
            b_upper = b_matrix.to(b_v.dtype)
            b_lower = (b_matrix - b_upper.to(tl.float32)).to(b_v.dtype)
            b_sent = product(b_v, tl.trans(b_upper)) + product(b_v, tl.trans(b_lower))
        else:
            b_sent = product(b_v.to(tl.float32), tl.trans(b_matrix.to(tl.float32)))
        b_norm += tl.sum(tl.abs(b_sent) if P == 1 else rounded_product(b_sent, b_sent), 1)
    if P == 2:
        b_norm = tl.sqrt(b_norm)
    tl.store(p_norms + i_row * length + o_s, b_norm, mask=o_s < length)


def factors(values: torch.dtype, matrix: torch.dtype, width: int) -> str:
    """How values and matrix are multiplied: see the module's docstring."""
    if values == matrix:
        return "alike"
    splits = (values, matrix) == (torch.bfloat16, torch.float32) and width <= WIDEST_SPLIT
    return "split" if splits else "float32"


def source_norms(v: Tensor, w_o: Tensor, p: int) -> Tensor:
    batch, groups, length, width = v.shape
    heads = len(w_o)
    values, matrix = rows(v), rows(w_o)
    norms = torch.empty(batch, heads, length, dtype=torch.float32, device=v.device)
    how = factors(v.dtype, w_o.dtype, width)
    tiles = norms if how == "float32" else values  # has the dtype of the tiles
    op = "source_norms_split" if how == "split" else "source_norms"
    config = configs.launch(op, tile_width(width), tiles)
    source_norms_kernel[(triton.cdiv(length, config["BS"]) * batch * heads,)](
        p_v=values,
        p_matrix=matrix,
        p_norms=norms,
        s_matrix_m=matrix.stride(0),
        s_matrix_t=matrix.stride(1),
        length=length,
        matrix_rows=matrix.shape[1],
        HEADS=heads,
        GROUPS=groups,
        D_V=width,
        BV=tile_width(width),
        P=p,
        FACTORS=how,
        **strides("v", values),
        **config,
    )
    return norms
