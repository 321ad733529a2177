"""Peak memory of one pass over the bundled model, in a process of its own.

    python benches/measuring/peak.py PART LENGTH THREADS

PART is a method of `problems.Work`. Prints the bytes that it adds to the memory held before.
"""

import sys

import torch
from problems import bundled_work
from process_memory import forget_peak, peak_bytes

WARM_UP_TOKENS = 16


def added_bytes(part: str, length: int) -> int:
    """Bytes that a pass over a batch adds, excluding what any first pass needs."""
    getattr(bundled_work(WARM_UP_TOKENS), part)()
    work = bundled_work(length)
    forget_peak()  # loading the model may have used more
    before = peak_bytes()
    getattr(work, part)()
    return peak_bytes() - before


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    sys.stdout.write(str(added_bytes(sys.argv[1], int(sys.argv[2]))))
