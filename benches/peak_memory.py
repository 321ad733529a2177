"""Peak resident bytes that one pass adds, measured in a process of its own.

python benches/peak_memory.py scan 512 2
"""

from pathlib import Path

import click
import torch
from test_engine import Work, bundled, tokens


def peak_bytes() -> int:
    """The most memory that this process has held so far.

    From /proc, as getrusage counts what the parent held at the fork.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    kibibytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(kibibytes)


@click.command()
@click.argument("part", type=click.Choice(["sizes", "scan"]))
@click.argument("length", type=int)
@click.argument("threads", type=int)
def main(part: str, length: int, threads: int) -> None:
    """Print the bytes by which PART on 1024 tokens exceeds what a plain forward needed."""
    torch.set_num_threads(threads)
    work = Work(bundled(), tokens(length, 1024 // length))
    work.forward()
    before = peak_bytes()
    getattr(work, part)()
    click.echo(peak_bytes() - before)


if __name__ == "__main__":
    main()
