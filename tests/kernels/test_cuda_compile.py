"""The CUDA sources compile for GPUs that are not present; the module imports without a driver."""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cuda_host
import pytest
from compiled import CSRC

SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
CAPABILITIES = (80, 90)
SHARED_BYTES = 48 * 1024  # per block, without requesting more

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs the CUDA compiler")

USAGE = re.compile(
    r"(?P<frame>\d+) bytes stack frame, (?P<stored>\d+) bytes spill stores, "
    r"(?P<loaded>\d+) bytes spill loads\n.*Used (?P<registers>\d+) registers"
    r"(?:.*?(?P<shared>\d+) bytes smem)?"
)
IMPORT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("densitrace._cuda", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert module.DEVICE == "cuda"
assert isinstance(module.driver_error(), str)
try:
    module.trace_sizes(0, 0, 0, 1, 1, 0, device=0, stream=0)
    module.trace_sizes(0, 0, 0, 1, 1, 1, device=99, stream=0)
except RuntimeError as error:
    print(error)
"""


def done(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished


@pytest.mark.parametrize("source", SOURCES, ids=[path.name for path in SOURCES])
def test_kernels_compile_without_spills(source: Path, tmp_path: Path) -> None:
    for capability in CAPABILITIES:
        command = [*cuda_host.NVCC, "-cubin", "-Werror=all-warnings", "-Xptxas=-v"]
        said = done([*command, f"-arch=sm_{capability}", "-o", tmp_path / "cubin", source]).stderr
        used = [match.groupdict() for match in USAGE.finditer(said)]
        assert len(used) == said.count("Compiling entry function")
        for kernel in used:
            assert kernel["stored"] == kernel["loaded"] == kernel["frame"] == "0", said
            assert int(kernel["shared"] or 0) <= SHARED_BYTES, said


def test_module_is_imported_without_a_driver() -> None:
    """In a bare Python, as installed; a call reports the missing driver."""
    spec = importlib.util.find_spec("densitrace._cuda")
    assert spec is not None and spec.origin is not None, "nvcc is here: install densitrace again"
    said = done([sys.executable, "-I", "-c", IMPORT, spec.origin]).stdout
    assert said.startswith("CUDA: ")
