"""Run scripts of the tests in a process where Triton's interpreter is off."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def lines_of(script: str, *arguments: str) -> list[str]:
    """Lines printed by a script, given by its path from this folder; it must succeed."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-P", TESTS / script, *arguments],
        env=clean | {"PYTHONPATH": os.pathsep.join([str(TESTS), clean.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
