"""Every Triton kernel compiles under every pinned configuration, for GPUs that are not present."""

import json
import re

import pytest
from attention_problem import OTHER_KINDS
from triton_device import SHARED_BYTES
from triton_launches import CALLS, WEIGHING
from without_interpreter import lines_of

from densitrace.kernels import triton
from densitrace.kernels.triton import configs

HALF = ("bfloat16", "float16")
FEWEST_BYTES = 99 * 1024  # of shared memory, on GPUs of compute capability 8.6 and 8.9

# A GPU's table is for that GPU, the default for any.
TARGETS = [
    (table, capability)
    for table in configs.available()
    for capability in SHARED_BYTES
    if table in ("default", f"sm_{capability}")
]


@pytest.mark.parametrize(("table", "capability"), TARGETS)
def test_kernels_compile_without_spills(table: str, capability: int) -> None:
    kernels = [json.loads(line) for line in lines_of("triton_compiler.py", table, str(capability))]
    assert {kernel["op"] for kernel in kernels} == set(CALLS)
    for op in WEIGHING:
        kinds = {kernel["kind"] for kernel in kernels if kernel["op"] == op}
        assert kinds == {"norm", *OTHER_KINDS}
    called = {re.sub("_(live|frozen|split)$", "", name) for name in CALLS}
    assert called | {"nucleus_cuts", "fraction_cuts"} == {*triton.__all__, "node_cuts", "row_cuts"}
    assert [kernel for kernel in kernels if kernel["local"]] == []
    assert [kernel for kernel in kernels if kernel["shared"] > SHARED_BYTES[capability]] == []
    if table == "default" and capability == 80:
        small = [each for each in kernels if each["dtype"] in HALF or each["width"] <= 128]
        assert [kernel for kernel in small if kernel["shared"] > FEWEST_BYTES] == []
