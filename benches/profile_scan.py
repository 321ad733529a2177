"""Where does the time of a full scan go, and how far is each part from what the machine allows?

    python benches/profile_scan.py --out benches/results/profile-NAME

Times every op and every linear layer of a scan of the bundled model; the rest is norms,
activations, residual sums and the engine. A part's limit is the longer of two times: its operations
at the rate of a large matrix product, and its bytes at the rate of a large copy, both measured in
the same run.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent / "measuring"))
from costs import moved_bytes
from device_timing import Part, parts_of
from ledger import figure, machine, table, write_record
from problems import Work, bundled, bundled_work
from timing import Run, seconds

ROUNDS = 5


Profile = dict[str, Part]


@contextmanager
def profiled(work: Work, profile: Profile) -> Iterator[None]:
    """Add the times of ops and linear layers to `profile` while the context is open."""
    started: list[float] = []

    def before(module: nn.Module, inputs: tuple[Tensor]) -> None:
        started.append(time.perf_counter())

    def after(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        part, weight = profile["linear layers"], module.get_parameter("weight")
        part.seconds += time.perf_counter() - started.pop()
        part.operations += 2 * output.numel() * weight.shape[1]
        part.bytes += moved_bytes(inputs[0], weight, output)

    layers = [module for module in work.model.modules() if isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_pre_hook(before) for layer in layers]
    hooks += [layer.register_forward_hook(after) for layer in layers]
    try:
        with parts_of(work.ids.device, work.costs, len(work.ids)) as parts:
            yield
        for name, part in parts.items():
            profile[name].seconds += part.seconds
            profile[name].operations += part.operations
            profile[name].bytes += part.bytes
    finally:
        for hook in hooks:
            hook.remove()


def profile_of(work: Work) -> Profile:
    """Mean of `ROUNDS` scans by part; `all` is the whole."""
    work.scan()
    profile: Profile = defaultdict(Part)
    for _ in range(ROUNDS):
        with profiled(work, profile):
            profile["all"].seconds += seconds(work.scan)
    parts = {
        name: Part(part.seconds / ROUNDS, part.operations // ROUNDS, part.bytes // ROUNDS)
        for name, part in profile.items()
    }
    whole = parts.pop("all")
    rest = whole.seconds - sum(part.seconds for part in parts.values())
    ordered = dict(sorted(parts.items(), key=lambda item: -item[1].seconds))
    return {**ordered, "norms, activations, sums, engine": Part(rest), "all": whole}


def ceilings() -> tuple[float, float]:
    """Operations a second of a large matrix product, and bytes a second of a large copy."""

    def best(run: Run) -> float:
        return min(seconds(run) for _ in range(7))

    square = torch.randn(1536, 1536)
    product = torch.empty_like(square)
    large = torch.randn(1 << 26)
    target = torch.empty_like(large)
    rate = 2 * 1536**3 / best(lambda: torch.mm(square, square, out=product))
    return rate, 2 * large.nbytes / best(lambda: target.copy_(large))


HEADER = ("part", "ms", "share", "GFLOP", "MB", "GFLOP/s", "limit, ms", "time / limit")


def profile_table(profile: Profile, rate: float, bandwidth: float) -> list[str]:
    """The table of one scan in Markdown."""
    whole = profile["all"].seconds
    rows = []
    for name, part in profile.items():
        limit = max(part.operations / rate, part.bytes / bandwidth)
        cells = [name, figure(part.seconds * 1e3), f"{part.seconds / whole:.1%}"]
        if part.operations:
            cells += [
                figure(part.operations / 1e9),
                figure(part.bytes / 1e6),
                figure(part.operations / part.seconds / 1e9),
                figure(limit * 1e3),
                figure(part.seconds / limit),
            ]
        rows.append(cells + [""] * (len(HEADER) - len(cells)))
    return table(HEADER, rows)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="without suffix")
def main(out: Path) -> None:
    """Measure, and write OUT.json and OUT.md."""
    bundled()
    rate, bandwidth = ceilings()
    info = machine()
    record: dict[str, Any] = {
        "date": str(date.today()),
        "machine": info,
        "matrix product, GFLOP/s": rate / 1e9,
        "copy, GB/s": bandwidth / 1e9,
        "scans": [],
    }
    lines = [
        f"# Profile of a full scan, {date.today()}",
        "",
        f"`python benches/profile_scan.py` on {info['processor']}, {info['threads']} threads, "
        f"torch {info['torch']}. Bundled model, 12 strata, means of {ROUNDS} scans. A product of "
        f"1536 x 1536 matrices runs at {figure(rate / 1e9)} GFLOP/s, a copy of 256 MiB at "
        f"{figure(bandwidth / 1e9)} GB/s (read and written).",
    ]
    for length, attention in ((512, "live"), (512, "frozen"), (2048, "live")):
        work = bundled_work(length, attention=attention)
        profile = profile_of(work)
        lines += ["", f"## {len(work.ids)} x {length} tokens, {attention}", ""]
        lines += profile_table(profile, rate, bandwidth)
        parts = {
            name: {"seconds": part.seconds, "operations": part.operations, "bytes": part.bytes}
            for name, part in profile.items()
        }
        record["scans"].append({"length": length, "attention": attention, "parts": parts})
    write_record(out, record, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
