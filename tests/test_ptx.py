"""The simulated PTX machine: what it computes, and the faults that it detects."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from ptx import Counts, Launch, PtxError, entries, launch

THREADS = 64

HEAD = """
.visible .entry kernel(
    .param .u64 kernel_param_0,
    .param .u64 kernel_param_1
)
{
    .reg .pred %p<9>;
    .reg .b32 %r<99>;
    .reg .f32 %f<9>;
    .reg .b64 %rd<99>;
    .shared .align 16 .b8 memory[1024];
    ld.param.u64 %rd1, [kernel_param_0];
    ld.param.u64 %rd2, [kernel_param_1];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    shl.b32 %r2, %r1, 2;
    mov.u32 %r3, memory;
    add.s32 %r4, %r3, %r2;
"""


def run(
    body: str,
    inputs: NDArray[np.uint32],
    outputs: NDArray[np.uint32],
    blocks: int = 1,
    counts: Counts | None = None,
) -> None:
    """Run a kernel; each thread has its number of `inputs` at %rd4 and of `outputs` at %rd5."""
    (entry,) = entries(HEAD + body + "\nret;\n}\n").values()
    arguments = struct.pack("QQ", inputs.ctypes.data, outputs.ctypes.data)
    arrays = [(array.ctypes.data, array.nbytes, array.ctypes.data) for array in (inputs, outputs)]
    launch(Launch(entry, (blocks, 1, 1), THREADS, arguments), arrays, counts)


def computed(body: str, values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The values of %r6 that a body computes from %r5."""
    outputs = np.zeros(THREADS, np.uint32)
    run(f"ld.global.u32 %r5, [%rd4];\n{body}\nst.global.u32 [%rd5], %r6;\n", values, outputs)
    return outputs


NUMBERS = np.arange(THREADS, dtype=np.uint32)
words = st.lists(st.integers(0, 2**32 - 1), min_size=THREADS, max_size=THREADS).map(
    lambda values: np.array(values, np.uint32)
)

# ---- what it computes --------------------------------------------------------------------------


@given(words, st.integers(0, 31), st.integers(0, 32))
def test_bits(values: NDArray[np.uint32], start: int, length: int) -> None:
    mask = (1 << length) - 1
    assert computed(f"bfe.u32 %r6, %r5, {start}, {length};", values).tolist() == [
        int(x) >> start & mask for x in values
    ]
    assert computed(f"bfi.b32 %r6, %r5, 0, {start}, {length};", values).tolist() == [
        (int(x) & mask) << start & 0xFFFFFFFF for x in values
    ]
    wide = f"""
    mul.wide.u32 %rd6, %r5, -1;
    mov.b64 %rd7, 0x5555555555555555;
    bfi.b64 %rd7, %rd6, %rd7, {start}, {length + 32};
    shr.u64 %rd7, %rd7, 32;
    cvt.u32.u64 %r6, %rd7;
    """
    mask = ((1 << length + 32) - 1 << start) % 2**64
    assert computed(wide, values).tolist() == [
        (int(x) * 0xFFFFFFFF << start & mask | 0x5555555555555555 & ~mask) >> 32 for x in values
    ]
    assert computed(f"shf.l.wrap.b32 %r6, %r5, %r5, {start};", values).tolist() == [
        (int(x) << start | int(x) >> 32 - start) & 0xFFFFFFFF for x in values
    ]


@given(words)
def test_signs(values: NDArray[np.uint32]) -> None:
    signed = values.view(np.int32).astype(int)
    assert computed("shr.s32 %r6, %r5, 5;", values).view(np.int32).tolist() == list(signed >> 5)
    divided = computed("div.s32 %r6, %r5, 7;", values).view(np.int32)
    assert divided.tolist() == [int(x / 7) for x in signed]
    field = computed("bfe.s32 %r6, %r5, 28, 4;", values).view(np.int32)
    assert field.tolist() == list(signed >> 28)


@given(words)
def test_floats(values: NDArray[np.uint32]) -> None:
    floats = values.view(np.float32)
    with np.errstate(all="ignore"):
        expected = (floats.astype(np.float64) * floats + 1).astype(np.float32)
    fused = computed("fma.rn.f32 %r6, %r5, %r5, 0f3F800000;", values).view(np.float32)
    np.testing.assert_array_equal(fused, expected)
    clamped = computed("min.NaN.xorsign.abs.f32 %r6, %r5, 0f40000000;", values).view(np.float32)
    np.testing.assert_array_equal(clamped, np.clip(floats, -2, 2))
    compared = computed("setp.leu.f32 %p1, %r5, 0f40000000;\nselp.u32 %r6, 1, 0, %p1;", values)
    np.testing.assert_array_equal(compared, ~(floats > 2))


def test_byte_permutation() -> None:
    values = np.full(THREADS, 0x81020304, np.uint32)
    assert computed("prmt.b32 %r6, %r5, 0, 0x4012;", values)[0] == 0x00040302
    assert computed("prmt.b32 %r6, %r5, 0, 0xB3;", values)[0] == 0x0404FF81


def test_branches_diverge_and_reconverge() -> None:
    """Threads go round a loop as often as their number says."""
    loop = """
    mov.u32 %r6, 0;
    again: setp.le.u32 %p1, %r5, %r6;
    @%p1 bra done;
    add.u32 %r6, %r6, 1;
    bra.uni again;
    done: add.u32 %r6, %r6, 100;
    """.replace("again: ", "again:\n").replace("done: ", "done:\n")
    np.testing.assert_array_equal(computed(loop, NUMBERS[::-1].copy()), NUMBERS[::-1] + 100)


def test_lanes_exchange_values() -> None:
    exchanged = computed("shfl.sync.bfly.b32 %r6, %r5, 5, 31, -1;", NUMBERS)
    np.testing.assert_array_equal(exchanged, NUMBERS ^ 5)
    exchanged = computed("shfl.sync.up.b32 %r6, %r5, 3, 0, -1;", NUMBERS)
    np.testing.assert_array_equal(exchanged, np.where(NUMBERS % 32 < 3, NUMBERS, NUMBERS - 3))
    exchanged = computed("redux.sync.max.u32 %r6, %r5, -1;", NUMBERS)
    np.testing.assert_array_equal(exchanged, NUMBERS | 31)


def test_memory_is_shared_after_a_barrier() -> None:
    body = """
    st.shared.u32 [%r4], %r5;
    bar.sync 0;
    xor.b32 %r7, %r2, 128;
    add.s32 %r8, %r3, %r7;
    ld.shared.u32 %r6, [%r8];
    """
    np.testing.assert_array_equal(computed(body, NUMBERS), NUMBERS ^ 32)


@pytest.mark.parametrize("other", [4, 128])  # a byte of a lane of its warp, of another warp
def test_a_warp_barrier_orders_accesses_of_its_lanes(other: int) -> None:
    body = f"""
    st.shared.u32 [%r4], %r5;
    bar.warp.sync -1;
    xor.b32 %r7, %r2, {other};
    add.s32 %r8, %r3, %r7;
    ld.shared.u32 %r6, [%r8];
    bar.warp.sync -1;
    st.shared.u32 [%r4], 0;
    """
    if other == 4:
        np.testing.assert_array_equal(computed(body, NUMBERS), NUMBERS ^ 1)
        return
    with pytest.raises(PtxError, match="reads what another thread writes"):
        computed(body, NUMBERS)


def test_a_warp_barrier_does_not_order_other_warps() -> None:
    """A warp barrier does not synchronise with other warps."""
    body = """
    st.shared.u32 [%r4], %r5;
    bar.sync 0;
    ld.shared.u32 %r6, [memory];
    bar.warp.sync -1;
    setp.eq.u32 %p1, %r1, 0;
    @%p1 st.shared.u32 [memory], 77;
    """
    with pytest.raises(PtxError, match="writes what another thread reads"):
        computed(body, NUMBERS)


def test_atomic_additions() -> None:
    sums = np.zeros(THREADS, np.uint32)
    run("red.global.add.u32 [%rd2], 1;", NUMBERS, sums, blocks=3)
    assert sums.tolist() == [3 * THREADS] + [0] * (THREADS - 1)


@given(words)
def test_atomic_minimum(values: NDArray[np.uint32]) -> None:
    body = """
    st.shared.u32 [%r4], -1;
    bar.sync 0;
    red.shared.min.u32 [memory], %r5;
    bar.sync 0;
    ld.shared.u32 %r6, [memory];
    """
    assert set(computed(body, values)) == {values.min()}


def test_lanes_that_add_to_one_word_are_serialised() -> None:
    """Except when adding a constant: lanes that count are served together."""

    def turns(address: str, what: str) -> int:
        counts = Counts()
        body = f"st.shared.u32 [%r4], 0;\nbar.sync 0;\natom.shared.add.u32 %r6, {address}, {what};"
        run(body, NUMBERS, NUMBERS.copy(), counts=counts)
        return counts.turns - THREADS // 32  # without those of the store

    assert turns("[%r4]", "%r1") == turns("[memory]", "1") == THREADS // 32
    assert turns("[memory]", "%r1") == THREADS


# ---- faults that it detects --------------------------------------------------------------------

FAULTS = {
    "outside all arrays": "ld.global.u32 %r6, [%rd4+4];",
    "not aligned": "ld.global.u32 %r6, [%rd4+2];",
    "nobody wrote": "ld.shared.u32 %r6, [%r4];",
    "shared memory of 1024 bytes": "st.shared.u32 [%r4+1000], %r1;",
    "reads what another thread writes": """
        st.shared.u32 [%r4], %r1;
        xor.b32 %r7, %r4, 4;
        ld.shared.u32 %r6, [%r7];""",
    "writes what another thread reads": """
        st.shared.u32 [%r4], %r1;
        bar.sync 0;
        ld.shared.u32 %r6, [%r4];
        xor.b32 %r7, %r4, 4;
        st.shared.u32 [%r7], %r1;""",
    "writes what another thread writes": """
        st.shared.u32 [%r4], %r1;
        xor.b32 %r7, %r4, 4;
        st.shared.u32 [%r7], %r1;""",
    "different numbers to a place": "st.shared.u32 [memory], %r1;",
    "reads global memory that another warp writes": """
        st.global.u32 [%rd5], 7;
        xor.b32 %r7, %r1, 32;
        mad.wide.u32 %rd6, %r7, 4, %rd2;
        ld.global.u32 %r6, [%rd6];""",
    "writes global memory that another warp reads": """
        xor.b32 %r7, %r1, 32;
        mad.wide.u32 %rd6, %r7, 4, %rd2;
        ld.global.u32 %r6, [%rd6];
        st.global.u32 [%rd5], 7;""",
    "combines global memory that another warp writes": """
        st.global.u32 [%rd5], 7;
        red.global.add.u32 [%rd2], 1;""",
    "a copy is on its way": """
        cp.async.ca.shared.global [%r4], [%rd4], 4;
        cp.async.commit_group;
        ld.shared.u32 %r6, [%r4];""",
    "only one barrier is known": "bar.sync 1;",
    "the threads of a warp are not together": """
        setp.lt.u32 %p1, %r1, 7;
        @%p1 bra over;
        bar.sync 0;
        over:
""",
    "others of their warp that are elsewhere": """
        setp.lt.u32 %p1, %r1, 7;
        @%p1 bra over;
        shfl.sync.bfly.b32 %r6, %r1, 1, 31, -1;
        over:
""",
    "not known": "frobnicate.u32 %r6, %r1;",
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults(message: str) -> None:
    with pytest.raises(PtxError, match=message):
        run(FAULTS[message], NUMBERS, np.zeros(THREADS, np.uint32))


@pytest.mark.parametrize("writer", [0, THREADS - 1])
def test_every_reader_is_noted(writer: int) -> None:
    body = f"""
    ld.global.u32 %r6, [%rd2];
    setp.eq.u32 %p1, %r1, {writer};
    @%p1 st.global.u32 [%rd2], 7;
    """
    with pytest.raises(PtxError, match="writes global memory that another warp reads"):
        computed(body, NUMBERS)


def test_blocks_do_not_share_global_memory() -> None:
    """Except by atomic additions; within a block a barrier orders what its warps do."""
    body = """
    mov.u32 %r7, %ctaid.x;
    add.u32 %r7, %r7, 1;
    st.global.u32 [%rd5], %r7;
    bar.sync 0;
    xor.b32 %r7, %r1, 32;
    mad.wide.u32 %rd6, %r7, 4, %rd2;
    ld.global.u32 %r6, [%rd6];
    """
    outputs = np.zeros(THREADS, np.uint32)
    run(body, NUMBERS, outputs)
    assert (outputs == 1).all()
    with pytest.raises(PtxError, match="global memory that another block"):
        run(body, NUMBERS, np.zeros(THREADS, np.uint32), blocks=2)


def test_a_copy_is_readable_after_its_wait() -> None:
    body = """
    cp.async.ca.shared.global [%r4], [%rd4], 4;
    cp.async.commit_group;
    cp.async.wait_group 0;
    ld.shared.u32 %r6, [%r4];
    """
    np.testing.assert_array_equal(computed(body, NUMBERS + 7), NUMBERS + 7)
