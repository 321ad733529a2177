"""Peak memory of one pass over the bundled model, in a process of its own.

    python benches/measuring/peak.py PART LENGTH THREADS

PART is a method of `problems.Work`; what it adds to the memory held before, in bytes, is printed.
"""

import sys
from pathlib import Path

import torch
from problems import bundled_work

SELF = Path("/proc/self")
WARM_UP_TOKENS = 16


def peak_bytes() -> int:
    """The most memory that this process has held since `forget_peak`, or its start.

    From /proc, as getrusage counts what the parent held at the fork.
    """
    lines = (SELF / "status").read_text(encoding="ascii").splitlines()
    kibibytes = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    return 1024 * int(kibibytes)


def forget_peak() -> None:
    """Let the peak be what is held now: loading the model may have held more."""
    (SELF / "clear_refs").write_text("5", encoding="ascii")


def added_bytes(part: str, length: int) -> int:
    """What a pass over a batch adds, what a process needs for its very first pass left out."""
    getattr(bundled_work(WARM_UP_TOKENS), part)()
    work = bundled_work(length)
    forget_peak()
    before = peak_bytes()
    getattr(work, part)()
    return peak_bytes() - before


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    sys.stdout.write(str(added_bytes(sys.argv[1], int(sys.argv[2]))))
