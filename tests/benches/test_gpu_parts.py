"""benches/gpu.sh with a fake Python: which parts run, for how long, and what they leave."""

import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from bench_files import ROOT

GPU_TESTS = [f"benches/test_{name}_gpu.py" for name in ("engine", "kernels")]

# Logs its arguments; a part named in $SLOW runs until it is interrupted, and then says so.
PYTHON = r"""#!/usr/bin/env bash
line="$*"
echo "$line" >>"$NOTED"
case $line in
*"import xdist"*) exit 1 ;;
*"import densitrace"*) [[ -e $BUILT ]] ;;
*"pip install"*) echo "$PATH" >"$BUILT" ;;
*-c*) ;;
*"${SLOW:-nothing}"*)
    trap 'echo "interrupted: offline $HF_HUB_OFFLINE"; exit 2' INT
    for ((i = 0; i < 100; i++)); do sleep 0.1; done
    ;;
*"${FAILING:-nothing}"*) exit 3 ;;
*) echo "done, pytest $PYTEST_ADDOPTS" ;;
esac
"""

# pytest deselects tests that need a GPU if there is none.
COLLECTED = """
import sys, pytest, torch

class AsIfThereWereOne:
    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self):
        torch.cuda.is_available = lambda: True

options = ["--collect-only", "-q", "-m", "gpu"]
sys.exit(pytest.main([*options, *sys.argv[1:]], plugins=[AsIfThereWereOne()]))
"""


@dataclass
class Checkout:
    """A minimal checkout for the script; the fake Python logs its calls there."""

    root: Path
    settings: dict[str, str] = field(default_factory=dict)

    def run(self, *before: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        """Run the script under some settings."""
        noted, built = self.root / "noted", self.root / "built"
        noted.unlink(missing_ok=True)
        environment = {
            "PATH": "/usr/bin:/bin", "NOTED": str(noted), "BUILT": str(built),
            "PYTHON": str(self.root / "python"), "OUT": str(self.root / "out"),
        }  # fmt: skip
        return subprocess.run(
            [*before, "bash", str(self.root / "benches/gpu.sh")],
            env=environment | settings, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    @property
    def asked(self) -> list[str]:
        """Python command lines, without those that only probe imports."""
        lines = (self.root / "noted").read_text().splitlines()
        return [line for line in lines if "import " not in line]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    for folder in ("benches", "csrc", "kernels/triton/configs"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "benches/gpu.sh", tmp_path / "benches/gpu.sh")
    for name in ("csrc/kernel.cu", "setup.py", "pyproject.toml"):
        (tmp_path / name).write_text(name)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return Checkout(tmp_path)


def test_everything_that_needs_a_gpu_is_in_a_part(checkout: Checkout) -> None:
    """Each bench is in one part by name; the tests are in four that together leave none out."""
    result = checkout.run(FAILING="-k cuda and")
    asked = " ".join(checkout.asked)
    named = re.findall(r"benches/\S+::\S+", asked)
    command = [sys.executable, "-P", "-c", COLLECTED, *GPU_TESTS]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout
    every = [line for line in done.stdout.splitlines() if "::" in line]
    asked_for = {name: [x for x in every if f"{x}[".startswith(f"{name}[")] for name in named}
    assert all(asked_for.values())
    assert {test for tests in asked_for.values() for test in tests} == set(every) != set()
    chosen = [re.search(r"-k (.*) tests/", line) for line in checkout.asked]
    assert [match[1] for match in chosen if match] == [
        "triton and lane_attention", "triton and not lane_attention", "cuda and not triton",
        "not cuda and not triton",
    ]  # fmt: skip
    # A failing part does not stop the rest.
    assert re.search(
        r"^== tests-cuda FAILED with status 3: tests cuda", result.stdout, re.MULTILINE
    )
    assert re.search(r"^FAILED: tests-cuda", result.stdout, re.MULTILINE)
    assert checkout.asked[-1].startswith("-P benches/scan_gpu.py store --shapes llama-8b")


def test_warnings_do_not_fail_tests(checkout: Checkout) -> None:
    """Those of libraries on a GPU are not known beforehand."""
    result = checkout.run(ONLY="tests-cuda", PYTEST_ADDOPTS="-v")
    assert "done, pytest -v -W default\n" in result.stdout


def test_parts_are_chosen_by_name_or_beginning(checkout: Checkout) -> None:
    listed = checkout.run(LIST="1", ONLY="engine-8b modes scan-1").stdout.split()
    lengths = ("2048", "512", "8192")
    engine = [f"engine-8b-{length}" for length in lengths]
    assert listed == ["build", "built", *engine, "modes-1b", "modes-trained"]
    assert not (checkout.root / "noted").exists()
    result = checkout.run(ONLY="modes-1b")
    assert result.returncode == 0, result.stdout
    assert [line for line in checkout.asked if "pip" not in line] == [
        f"-P benches/scan_gpu.py modes --out {checkout.root}/out/modes-1b"
    ]


@pytest.mark.parametrize("before", [(), ("sh", "-c", 'trap "" INT; exec "$@"', "sh")])
def test_a_part_is_interrupted_at_its_limit(checkout: Checkout, before: tuple[str, ...]) -> None:
    """It reports what it has and the next part runs, also in the background."""
    result = checkout.run(*before, ONLY="modes", LIMIT="1", SLOW="out/modes-1b")
    assert result.returncode == 1
    assert "interrupted: offline 1\n== modes-1b STOPPED: 1 s were not enough" in result.stdout
    assert "-- modes-trained took" in result.stdout
    assert "FAILED: modes-1b (stopped)" in result.stdout
    assert "interrupted" in (checkout.root / "out/modes-1b.log").read_text()


def test_parts_without_time_are_listed(checkout: Checkout) -> None:
    result = checkout.run(ONLY="modes", WITHIN="22", SLOW="out/modes-1b")
    assert "modes-1b STOPPED" in result.stdout
    assert "NOT RUN, for lack of time: modes-trained" in result.stdout


def test_a_scan_ends_before_its_part(checkout: Checkout) -> None:
    for limit, seconds in ("400", 310), ("100", 50), ("0", 360):
        checkout.run(ONLY="scan-8b", LIMIT=limit)
        assert checkout.asked[-1].endswith(f"--time-limit {seconds}")


def test_pack_leaves_two_files(checkout: Checkout) -> None:
    checkout.run(ONLY="modes", PACK="1", FAILING="bundled-8b")
    out = checkout.root / "out"
    assert sorted(path.name for path in out.iterdir()) == ["pages.md", "results.tgz"]
    with tarfile.open(out / "results.tgz") as packed:
        names = {Path(name).name for name in packed.getnames()}
    assert {"build.log", "modes-1b.log", "modes-trained.log"} <= names


def test_an_existing_build_is_reused(checkout: Checkout) -> None:
    """Except when sources changed; the toolkit's compiler is put on the path."""
    toolkit = checkout.root / "toolkit"
    (toolkit / "bin").mkdir(parents=True)
    nvcc = toolkit / "bin/nvcc"
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)

    def builds() -> int:
        checkout.run(ONLY="none", CUDA_HOME=str(toolkit))
        return sum("pip install" in line for line in checkout.asked)

    assert builds() == 1
    assert (checkout.root / "built").read_text().strip().endswith(f":{toolkit}/bin")
    (checkout.root / "noted").write_text("")
    assert builds() == 0
    (checkout.root / "csrc/kernel.cu").write_text("another")
    assert builds() == 1


def test_tuned_entries_are_kept_when_the_tuner_is_stopped(checkout: Checkout) -> None:
    """The tuner writes one entry at a time to the checkout."""
    (checkout.root / "kernels/triton/configs/sm_90.json").write_text("{}")
    arguments = "--op edge_levels --width 128"
    result = checkout.run(ONLY="tune", TUNE="1", TUNE_ARGS=arguments, LIMIT="1", SLOW="tune_gpu")
    assert checkout.asked[-1] == f"-P benches/tune_gpu.py {arguments}"
    assert "FAILED: tune (stopped)" in result.stdout
    assert (checkout.root / "out/sm_90.json").read_text() == "{}"
