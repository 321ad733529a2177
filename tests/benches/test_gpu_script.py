"""benches/gpu.sh with a Python that only logs its arguments."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTED = """#!/bin/sh
echo "$(basename "$0") $*" >> "$NOTES"
case "$*" in *densitrace._cuda*) exit ${CUDA_STATUS:-0};; esac
"""
STAND_INS = ("python", "nvcc", "compute-sanitizer")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment whose programs log how they are called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in STAND_INS:
        (programs / name).write_text(NOTED)
        (programs / name).chmod(0o755)
    own = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHON": str(programs / "python"),
        "NOTES": str(tmp_path / "notes"),
        "OUT": str(tmp_path / "out"),
    }
    rest = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    return rest | own


def run(environment: dict[str, str], **more: str) -> tuple[int, str, list[str]]:
    """Exit status, output, and the calls made."""
    done = subprocess.run(
        [ROOT / "benches" / "gpu.sh"],
        env=environment | more, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, Path(environment["NOTES"]).read_text().splitlines()


def test_all_parts(environment: dict[str, str]) -> None:
    status, output, calls = run(environment)
    assert status == 0, output
    parts = [line[3:] for line in output.splitlines() if line.startswith("== ")]
    tests = ["triton-lanes", "triton-others", "cuda", "engine"]
    checks = ["sanitizer-cuda", "sanitizer-triton"]
    assert parts[:8] == ["build", "built", *(f"tests-{name}" for name in tests), *checks]
    assert "scan-8b" in parts
    checked = [call for call in calls if call.startswith("compute-sanitizer")]
    for backend in ("cuda", "triton"):
        mine = [call for call in checked if f"-k sanitized and {backend} " in call]
        assert [call.split()[2] for call in mine] == ["memcheck", "racecheck"]
    assert len(checked) == 4
    # However long imports take, and whatever calls libraries expect to fail.
    assert all("--launch-timeout 0 --report-api-errors no" in call for call in checked)


def test_some_parts(environment: dict[str, str]) -> None:
    status, output, calls = run(environment, ONLY="sanitizer-cuda modes")
    assert status == 0, output
    parts = [line[3:] for line in output.splitlines() if line.startswith("== ")]
    assert parts == ["build", "built", "sanitizer-cuda", "modes-1b", "modes-trained"]
    assert not any("triton" in call for call in calls)


def test_cuda_kernels_that_could_be_built_are_there(environment: dict[str, str]) -> None:
    """If they were not built their tests are skipped, so the run must report it and fail."""
    status, output, _ = run(environment, ONLY="modes", CUDA_STATUS="1")
    assert status == 1
    assert "nvcc is here, but CUDA kernels were not built" in output
    assert output.splitlines()[-1] == "FAILED: built"
