"""Compiler outputs that several test processes use: made once, kept under build/tests."""

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
FOLDER = ROOT / "build" / "tests"


def compiled(name: str, command: Sequence[str | Path]) -> Path:
    """Run a compiler, unless it ran before with the same command and the same csrc/.

    Args:
        name: of the output.
        command: without `-o`.
    """
    words = [str(word) for word in command]
    key = hashlib.sha256("\0".join(words).encode())
    for source in sorted(path for path in CSRC.rglob("*") if path.is_file()):
        key.update(source.read_bytes())
    path = FOLDER / f"{key.hexdigest()[:16]}-{name}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            partial = path.with_name(f"partial-{path.name}")
            done = subprocess.run(
                [*words, "-o", str(partial)], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            partial.replace(path)
    return path
