"""Workers that are processes: torchrun's ranks, and two of which one dies."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scan_workers import RULE, SECONDS, HeldJob, Job, assert_same_store, until, write_corpus

from densitrace import Tracer, open_store, scan
from densitrace.tracer.parts import claims_of
from densitrace.tracer.storage import Folder

pytestmark = pytest.mark.usefixtures("one_thread")
TOGETHER = '''"""Run a command of this package, after every rank has imported it."""
import os, runpy, sys, time
from pathlib import Path
import densitrace.tracer.scan_cli, transformers.models.llama.modeling_llama
folder, *sys.argv = sys.argv[1:]
(Path(folder) / os.environ["RANK"]).touch()
while len(os.listdir(folder)) < int(os.environ["WORLD_SIZE"]):
    time.sleep(0.01)
runpy.run_path(sys.argv[0], run_name="__main__")
'''


def test_ranks_of_torchrun_share_a_scan(byte_folder: Path, tmp_path: Path) -> None:
    """Planned by rank 0 while the other waits; parts are of the size that the store chooses.

    Both begin at once, and there are more parts than one does before the other has seen the plan.
    """
    corpus = tmp_path / "c.txt"
    options: dict[str, Any] = {"select": RULE, "context": 64, "batch_tokens": 2048}
    corpus.write_text("To be, or not to be, that is the question. " * 4050)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    # Without --, torchrun would take --log for one of several of its own.
    command += ["--nproc-per-node", "2", "--no-python", "--"]
    (tmp_path / "together.py").write_text(TOGETHER)
    (tmp_path / "ready").mkdir()
    command += [sys.executable, str(tmp_path / "together.py"), str(tmp_path / "ready")]
    command += [str(Path(sys.executable).with_name("densitrace")), "scan", str(corpus)]
    command += ["--model", str(byte_folder), "--device", "cpu", "--out", str(tmp_path / "ranks")]
    command += ["--thresholds", "0.2,0.05,0.01", "--context", "64", "--batch-tokens", "2048"]
    command += ["--log", str(tmp_path / "log")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=SECONDS,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    scan(Tracer.from_pretrained(byte_folder, device="cpu"), corpus, tmp_path / "here", **options)
    assert open_store(tmp_path / "ranks").n_parts == 8
    assert_same_store(tmp_path / "ranks", tmp_path / "here")
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len({line["process"] for line in lines if line["message"] == "part done"}) == 2


@pytest.mark.parametrize("killed", [0, 1])
def test_one_of_two_is_killed_and_the_other_finishes(
    byte_folder: Path, tmp_path: Path, killed: int
) -> None:
    """At a part, which the other takes over; it was never asked to wait for anybody.

    Both hold at their first part, lest one do all parts before the other has begun.
    """
    write_corpus(tmp_path / "c.jsonl")
    whole = Job(byte_folder, tmp_path / "c.jsonl", tmp_path / "a")
    job = HeldJob(byte_folder, tmp_path / "c.jsonl", tmp_path / "b")
    whole.finished()
    workers = job.started(2)

    def at_a_part() -> bool:
        claims = claims_of(Folder(job.out)).values() if job.out.exists() else ()
        return workers[killed].pid in {claim.process for claim in claims}

    until(lambda: at_a_part() or not workers[killed].is_alive())
    workers[killed].kill()
    workers[killed].join()
    assert workers[killed].exitcode == -signal.SIGKILL
    assert not open_store(job.out).complete
    job.release()
    other = workers[1 - killed]
    other.join(SECONDS)
    assert other.exitcode == 0
    assert_same_store(job.out, whole.out)
