"""Tiles of attention: code shared by the kernels.

Names in kernels: `i_` program ids and loop counters, `o_` offsets, `p_` pointers, `s_` strides,
`b_` tiles, `m_` masks; BT targets and BS sources of a tile, BD and BV head sizes rounded up to the
width of a tile. Everything computed from the model's tensors is float32.

Kernels are not specialised on counters (`do_not_specialize`): a batch of one sequence or a block of
sixteen rows does not compile another kernel.
"""

import os

import triton
import triton.language as tl

# Triton's interpreter multiplies the bits of bfloat16 as integers, and truncates where it should
# round to bfloat16; products in float32 are exact.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

LOG2_E = tl.constexpr(1.4426950408889634)
SCANNED = tl.constexpr(1024)  # segment ids that a program loads at a time


@triton.jit
def alike(b_left, b_right):
    # The factors of a product: the left one rounded to the right one's dtype; see INTERPRETED
    if INTERPRETED:
        return b_left.to(tl.float32), b_right.to(tl.float32)
    return b_left.to(b_right.dtype), b_right


@triton.jit
def product(b_left, b_right):
    # float32 [m, n]; float32 factors are multiplied as float32, not as tf32 ("ieee")
    b_left, b_right = alike(b_left, b_right)
    return tl.dot(b_left, b_right, input_precision="ieee")


@triton.jit
def add_product(b_sum, b_left, b_right):
    # As `product`, accumulated into float32 [m, n]
    b_left, b_right = alike(b_left, b_right)
    return tl.dot(b_left, b_right, b_sum, input_precision="ieee")


@triton.jit
def rounded_product(b_left, b_right):
    # Elementwise, for `tl.sum`. Where a thread holds one column of a row, a plain product is fused
    # with the sum of it and another thread's: each of the two rounds the other's product only.
    return tl.fma(b_left, b_right, tl.zeros_like(b_left))


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
    # [BS, BC]; WHOLE: all rows are below `length`
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
def load_cut(p_cuts, k, i_b, batch, o_t, length):
    # [BT]; +inf beyond the end, which no edge clears
    p_cuts += (k * batch + i_b) * length
    return tl.load(p_cuts + o_t, mask=o_t < length, other=float("inf"))


@triton.jit
def tanh(b_x):
    # Through e^-2|x|, which never overflows. The absolute error is about 1e-7, for small x too.
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
    # [BT, BS]: scores divided by `log_unit`
    b_scores = product(b_q, tl.trans(b_k))
    if HAS_SOFTCAP:
        b_scores = softcap * tanh(b_scores * (scale / softcap))
    return b_scores


@triton.jit
def log_unit(scale, HAS_SOFTCAP: tl.constexpr):
    # Factor on `log_scores` for use with exp2: it holds both the scale and log2(e)
    return LOG2_E if HAS_SOFTCAP else scale * LOG2_E


@triton.jit
def allowed_tile(o_t, o_s, length, p_segments, WINDOW: tl.constexpr, HAS_SEGMENTS: tl.constexpr):
    # [BT, BS]: which sources a target attends to; `p_segments` points to the sequence's segments
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
    # Block of tokens and row (sequence and head) of a program, both on the grid's first axis: the
    # others are too short for them. The last targets, which attend to the most sources, come first,
    # so that no few long programs run at the end.
    blocks = tl.cdiv(length, BT)
    i_program = tl.program_id(0)
    return blocks - 1 - i_program % blocks, (i_program // blocks).to(tl.int64)


@triton.jit
def first_source(i_t, BT: tl.constexpr, BS: tl.constexpr, WINDOW: tl.constexpr):
    # First source of the tiles that any target of block i_t attends to: a multiple of BS
    first = 0
    if WINDOW > 0:
        first = tl.maximum(i_t * BT - WINDOW + 1, 0) // BS * BS
    return first


@triton.jit
def whole_sources(
    i_t, length, p_segments, BT: tl.constexpr, BS: tl.constexpr, WINDOW: tl.constexpr,
    HAS_SEGMENTS: tl.constexpr,
):  # fmt: skip
    # First source and end of the tiles in which every target of block i_t attends to every source
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
