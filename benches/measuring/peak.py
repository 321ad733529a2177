"""Peak memory of one pass over the bundled model, in a process of its own.

    python benches/measuring/peak.py PART LENGTH THREADS

PART is a method of `problems.Work`. Prints the bytes that it adds to the memory held before.
"""

import sys
from pathlib import Path

import torch
from problems import bundled_work

SELF = Path("/proc/self")
WARM_UP_TOKENS = 16


def peak_bytes() -> int:
    """Peak memory of this process since `forget_peak`, or since its start.

    Read from /proc because getrusage includes the parent's memory at the fork.
    """
    lines = (SELF / "status").read_text(encoding="ascii").splitlines()
    kibibytes = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    return 1024 * int(kibibytes)


def forget_peak() -> None:
    """Reset the peak to current usage: loading the model may have used more."""
    (SELF / "clear_refs").write_text("5", encoding="ascii")


def added_bytes(part: str, length: int) -> int:
    """Bytes that a pass over a batch adds, excluding what any first pass needs."""
    getattr(bundled_work(WARM_UP_TOKENS), part)()
    work = bundled_work(length)
    forget_peak()
    before = peak_bytes()
    getattr(work, part)()
    return peak_bytes() - before


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    sys.stdout.write(str(added_bytes(sys.argv[1], int(sys.argv[2]))))
