"""Every Triton kernel under every pinned configuration compiles, for GPUs that are not here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from triton_launches import CALLS

from densitrace.kernels import triton
from densitrace.kernels.triton import configs

TESTS = Path(__file__).parents[1]
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # of one block: CUDA C++ programming guide


# A table of one GPU is for that one, the default for any.
TARGETS = [
    (table, capability)
    for table in configs.available()
    for capability in SHARED_BYTES
    if table in ("default", f"sm_{capability}")
]


@pytest.mark.parametrize(("table", "capability"), TARGETS)
def test_kernels_compile_without_spills(table: str, capability: int) -> None:
    """In a process without the interpreter, which would take the kernels' place."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-P", TESTS / "triton_compiler.py", table, str(capability)],
        env=clean | {"PYTHONPATH": os.pathsep.join([str(TESTS), clean.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["op"] for kernel in kernels} == set(CALLS)
    called = {re.sub("_(live|frozen|split)$", "", name) for name in CALLS}
    assert called | {"nucleus_cuts", "fraction_cuts"} == {*triton.__all__, "node_cuts", "row_cuts"}
    assert all(kernel["spilled"] == 0 for kernel in kernels), kernels
    assert all(kernel["shared"] <= SHARED_BYTES[capability] for kernel in kernels), kernels
