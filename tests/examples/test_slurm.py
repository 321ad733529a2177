"""The Slurm example, run by hand: two tasks of an array share a scan, one may be requeued."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from byte_model import byte_model, save
from scan_workers import until, write_corpus

from densitrace import open_store

SCRIPT = Path(__file__).parents[2] / "examples/slurm/scan.sbatch"


@pytest.fixture
def setting(tmp_path: Path) -> dict[str, str]:
    """The environment of a task; `densitrace` and `scontrol` as commands of their own."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    commands = {
        "densitrace": f'exec "{sys.executable}" -m densitrace "$@"',
        "scontrol": f'echo "$@" > "{tmp_path}/requeued"',
    }
    for name, line in commands.items():
        path = bin_folder / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    write_corpus(tmp_path / "corpus.jsonl")
    return {
        **os.environ,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "MODEL": str(save(tmp_path / "model", byte_model())),
        "CORPUS": str(tmp_path / "corpus.jsonl"),
        "OUT": str(tmp_path / "traces.zarr"),
        "OMP_NUM_THREADS": "1",
        "SLURM_ARRAY_TASK_MIN": "0",
        "SLURM_ARRAY_TASK_COUNT": "2",
        "SLURM_JOB_ID": "7",
    }


def task(setting: dict[str, str], number: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        ["bash", SCRIPT, "--thresholds", "0.2,0.05", "--context", "16"],
        env=setting | {"SLURM_ARRAY_TASK_ID": str(number)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def test_two_tasks_share_a_scan(setting: dict[str, str], tmp_path: Path) -> None:
    tasks = [task(setting, number) for number in range(2)]
    for each in tasks:
        _, error = each.communicate(timeout=300)
        assert each.returncode == 0, error
    assert open_store(setting["OUT"]).complete
    assert not (tmp_path / "requeued").exists()
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {
        "corpus.jsonl", "traces.zarr.worker-0.jsonl", "traces.zarr.worker-1.jsonl",
    }  # fmt: skip


def test_a_task_that_is_pre_empted_is_put_into_the_queue(
    setting: dict[str, str], tmp_path: Path
) -> None:
    """The second worker waits for a plan that never comes, until it is told to end."""
    waiting = task(setting, 1)
    log = tmp_path / "traces.zarr.worker-1.jsonl"
    until(lambda: log.exists() and "waiting" in log.read_text())
    waiting.send_signal(signal.SIGTERM)
    _, error = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, error
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"


@pytest.mark.parametrize("number", [0, 1])
def test_a_task_out_of_its_time_is_put_into_the_queue(
    setting: dict[str, str], tmp_path: Path, number: int
) -> None:
    """No time at all: no part is begun, which is no failure. The first plans, the other waits."""
    late = task(setting | {"MINUTES": "0"}, number)
    _, error = late.communicate(timeout=300)
    assert late.returncode == 0, error
    if number == 0:
        assert open_store(setting["OUT"]).done_parts() == []
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
