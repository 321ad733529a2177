"""Measurements of a GPU bench are printed and written at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

from bench_files import ROOT
from device_record import DeviceRecord

KILLED = """
import os, signal

def test_rows(record):
    record.add("section", "first", ms=1.5)
    record.add("section", "second", ms=2.5)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_row_is_printed_and_written_when_it_is_added(tmp_path: Path) -> None:
    printed: list[str] = []
    record = DeviceRecord(stem=tmp_path / "new" / "found", say=printed.append)
    for number in (1, 2):
        record.add("ops", f"row {number}", x_forward=number, by="torch")
        written = json.loads((tmp_path / "new" / "found.json").read_text())
        assert len(written["sections"]["ops"]) == number == len(printed)
        assert (tmp_path / "new" / "found.md").read_text() == record.page()
    assert printed[0] == "ops | row 1 | x forward 1, by torch"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["found.json", "found.md"]


def test_rows_outlive_a_bench_that_is_killed(tmp_path: Path) -> None:
    """Both in its file and on its output, whatever pytest captures."""
    test, out = tmp_path / "test_killed.py", tmp_path / "out"
    test.write_text(KILLED)
    folders = [str(ROOT / "benches"), str(ROOT / "benches" / "measuring")]
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "conftest", str(test)]
    killed = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OUT": str(out), "PYTHONPATH": os.pathsep.join(folders)},
    )  # fmt: skip
    assert killed.returncode < 0, killed.stderr
    assert "section | first | ms 1.5" in killed.stdout
    rows = json.loads((out / "benches.json").read_text())["sections"]["section"]
    assert [row["ms"] for row in rows] == [1.5, 2.5]
