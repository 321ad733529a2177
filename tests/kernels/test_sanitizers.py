"""Rerun the tests of the C++ ops on a build with address and undefined-behaviour sanitizers.

They run in a child process that preloads the sanitizers' libraries before Python.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
TESTS = [HERE / name for name in ("test_bottleneck.py", "test_cpu.py", "test_ops.py")]
# Of the many variants of each op, those that end within strips, panels and vectors.
CHOSEN = "bottleneck or test_cpu or (cpu and (long or all or token or scattered or errors))"

GCC = {"CC": "gcc", "CXX": "g++"}  # the libraries are gcc's: another compiler has others
# libstdc++, so that the address sanitizer finds the exception-throwing functions at startup.
LIBRARIES = ("libasan.so", "libubsan.so", "libstdc++.so")

CHILD = """
import importlib.util, sys
import densitrace, pytest
built, *arguments = sys.argv[1:]
spec = importlib.util.spec_from_file_location("densitrace._cpu", built)
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = densitrace._cpu = module
spec.loader.exec_module(module)
status = pytest.main(arguments)
print("ran on", sys.modules["densitrace.kernels.cpu"]._cpu.__file__)
sys.exit(status)
"""


def library(name: str) -> str:
    """Path of one of the compiler's libraries, which must exist."""
    command = ["g++", f"-print-file-name={name}"]
    path = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    assert path.is_file(), f"g++ has no {name}"
    return str(path)


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build densitrace._cpu with sanitizers in a temporary folder."""
    folder = tmp_path_factory.mktemp("sanitized")
    command = [sys.executable, "setup.py", "--quiet", "build_ext"]
    command += [f"--build-lib={folder}", f"--build-temp={folder / 'temp'}"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | GCC | {"DENSITRACE_SANITIZE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = (folder / "densitrace").glob("_cpu.*.so")
    for symbol in (b"__asan_report_store", b"__ubsan_handle"):
        assert symbol in built.read_bytes()
    return built


def test_kernel_tests_pass_under_sanitizers(extension: Path) -> None:
    # Reports go to file descriptor 2 and end the process: pytest must not capture that one.
    options = ["-q", "--capture=sys", "--hypothesis-profile=few", "-k", CHOSEN]
    options += ["-p", "no:cacheprovider", "-p", "no:faulthandler"]
    done = subprocess.run(
        # -P keeps the root off sys.path, where kernels/ would shadow another package.
        [sys.executable, "-P", "-c", CHILD, extension, *options, *TESTS],
        cwd=ROOT,
        env=os.environ
        | {
            "LD_PRELOAD": " ".join(map(library, LIBRARIES)),
            "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaks
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"\nran on {extension}\n")
