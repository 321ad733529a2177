"""Tiles of attention: what the kernels that look at it share.

Names in kernels: `i_` program ids and loop counters, `o_` offsets, `p_` pointers, `s_` strides,
`b_` tiles, `m_` masks; BT targets and BS sources of a tile, BD and BV head sizes rounded up to what
a product takes. Everything is float32 once it has left the tensors of the model.

Counters are not specialised on (`do_not_specialize`): a batch of one sequence or a block of sixteen
rows is no other kernel.
"""

import os

import triton
import triton.language as tl

# Triton's interpreter multiplies bfloat16 as if it were integers, and truncates where it should
# round to it; in float32 products are exact.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def product(b_left, b_right):
    # float32 [m, n], the left rounded to the right's dtype; "ieee": float32 inputs are multiplied
    # as float32, not as tf32
    if INTERPRETED:
        b_left, b_right = b_left.to(tl.float32), b_right.to(tl.float32)
    else:
        b_left = b_left.to(b_right.dtype)
    return tl.dot(b_left, b_right, input_precision="ieee")


@triton.jit
def load_rows(p_rows, s_row, o_row, rows, o_column, columns):
    # [rows, columns]
    m_rows = (o_row < rows)[:, None] & (o_column < columns)[None, :]
    offsets = o_row.to(tl.int64)[:, None] * s_row + o_column[None, :]
    return tl.load(p_rows + offsets, mask=m_rows, other=0.0)


@triton.jit
def tanh(b_x):
    # Through e^-2|x|, which never overflows; errs by some 1e-7, however small x is.
    b_e = tl.exp(-2.0 * tl.abs(b_x))
    b_size = (1.0 - b_e) / (1.0 + b_e)
    return tl.where(b_x < 0, -b_size, b_size)


@triton.jit
def score_tile(b_q, b_k, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    # [BT, BS]
    b_scores = product(b_q, tl.trans(b_k)) * scale
    if HAS_SOFTCAP:
        b_scores = softcap * tanh(b_scores / softcap)
    return b_scores


@triton.jit
def allowed_tile(o_t, o_s, length, p_segments, WINDOW: tl.constexpr, HAS_SEGMENTS: tl.constexpr):
    # [BT, BS]: which sources a target attends to; `p_segments` is the sequence's
    m_allowed = (o_s[None, :] <= o_t[:, None]) & (o_t < length)[:, None]
    if WINDOW > 0:
        m_allowed &= o_t[:, None] - o_s[None, :] < WINDOW
    if HAS_SEGMENTS:
        b_target = tl.load(p_segments + o_t, mask=o_t < length, other=0)
        b_source = tl.load(p_segments + o_s, mask=o_s < length, other=0)
        m_allowed &= b_target[:, None] == b_source[None, :]
    return m_allowed


@triton.jit
def block_and_row(length, BT: tl.constexpr):
    # Of a program's place on the grid's first axis, which alone has room for every head of every
    # sequence: the block of tokens, the last ones first, and the row. The last targets attend to
    # the most sources: were they to come last, a few programs would run on alone.
    blocks = tl.cdiv(length, BT)
    i_program = tl.program_id(0)
    return blocks - 1 - i_program % blocks, (i_program // blocks).to(tl.int64)


@triton.jit
def first_source(i_t, BT: tl.constexpr, BS: tl.constexpr, WINDOW: tl.constexpr):
    # Of the tiles that any target of block i_t attends to: a multiple of BS
    first = 0
    if WINDOW > 0:
        first = tl.maximum(i_t * BT - WINDOW + 1, 0) // BS * BS
    return first
