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

LOG2_E = tl.constexpr(1.4426950408889634)
SCANNED = tl.constexpr(1024)  # segments that a program looks at together


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
def add_product(b_sum, b_left, b_right):
    # As `product`, added to float32 [m, n] where that lies
    if INTERPRETED:
        b_left, b_right = b_left.to(tl.float32), b_right.to(tl.float32)
    else:
        b_left = b_left.to(b_right.dtype)
    return tl.dot(b_left, b_right, b_sum, input_precision="ieee")


@triton.jit
def load_rows(p_rows, s_row, o_row, rows, o_column, columns):
    # [rows, columns]
    m_rows = (o_row < rows)[:, None] & (o_column < columns)[None, :]
    offsets = o_row.to(tl.int64)[:, None] * s_row + o_column[None, :]
    return tl.load(p_rows + offsets, mask=m_rows, other=0.0)


@triton.jit
def load_sources(
    p_rows, s_row, o_s, length, o_column, COLUMNS: tl.constexpr, BC: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    # [BS, BC]; of a whole tile all rows are there
    if not WHOLE:
        b_rows = load_rows(p_rows, s_row, o_s, length, o_column, COLUMNS)
    else:
        p_rows += o_s.to(tl.int64)[:, None] * s_row + o_column[None, :]
        if COLUMNS == BC:
            b_rows = tl.load(p_rows)
        else:
            b_rows = tl.load(p_rows, mask=(o_column < COLUMNS)[None, :], other=0.0)
    return b_rows


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
def log_scores(b_q, b_k, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    # [BT, BS]: scores over `log_unit`
    b_scores = product(b_q, tl.trans(b_k))
    if HAS_SOFTCAP:
        b_scores = softcap * tanh(b_scores * (scale / softcap))
    return b_scores


@triton.jit
def log_unit(scale, HAS_SOFTCAP: tl.constexpr):
    # What `log_scores` times this is to the base 2 the scores are to e: one factor for both
    return LOG2_E if HAS_SOFTCAP else scale * LOG2_E


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


@triton.jit
def whole_sources(
    i_t, length, p_segments, BT: tl.constexpr, BS: tl.constexpr, WINDOW: tl.constexpr,
    HAS_SEGMENTS: tl.constexpr,
):  # fmt: skip
    # First and end of the tiles of which every target of block i_t attends to every source
    end = i_t * BT // BS * BS
    first = 0
    if WINDOW > 0:
        first = tl.maximum((i_t + 1) * BT - WINDOW, 0)
    if HAS_SEGMENTS:
        own = tl.load(p_segments + i_t * BT)
        o_t = i_t * BT + tl.arange(0, BT)
        b_target = tl.load(p_segments + o_t, mask=o_t < length, other=own)
        first = tl.maximum(first, tl.max(tl.where(b_target != own, end, 0), 0))
        for i_s in range(0, end, SCANNED):
            o_s = i_s + tl.arange(0, SCANNED)
            b_source = tl.load(p_segments + o_s, mask=o_s < end, other=own)
            first = tl.maximum(first, tl.max(tl.where(b_source != own, o_s + 1, 0), 0))
    return tl.minimum(tl.cdiv(first, BS) * BS, end), end
