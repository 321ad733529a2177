"""Check the Triton ops, and a model, on the simulated PTX machine: compiled for an absent GPU, run.

    python tests/machine_checks.py TABLE CAPABILITY [SHAPE ...]

Ops run under the checks of `kernels/test_gpu.py`. Without SHAPE: in one shape, sums for wide
heads, and then a model's goldens under each cut rule with all Triton and CUDA kernels. With SHAPE:
only the ops, in the named shapes or in `all`. Prints the op, or kind of edge weight, and the shape
of every check that passes.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from attention_problem import OTHER_KINDS, Problem, Shape, assert_lanes_keep_what_levels_count
from bench_files import module_at
from golden import CUT_RULES, GOLDENS
from ptx_launches import kernels_on_machine, triton_on_machine

from densitrace import Tracer
from densitrace.kernels.triton import configs

FAMILY = "mistral"  # golden model with grouped heads and a window
OWN = {  # several tiles, every variant; dtypes as each generation's matrix units take them
    "80": Shape(
        batch=1, heads=2, groups=1, length=70, d_k=40, d_v=24, window=50, softcap=5.0, sinks=True,
        segments=True,
    ),
    "90": Shape(
        batch=1, heads=2, groups=1, length=70, d_k=64, d_v=64, window=50, softcap=5.0, sinks=True,
        segments=True, dtype=torch.bfloat16,
    ),
}  # fmt: skip
SUMS = ("attention_stats", "source_norms")  # of products, by threads that hold a column or two


def report(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(table: str, capability: str, *names: str) -> None:
    """Run the checks and print a line for each that passes."""
    on_machine = partial(triton_on_machine, int(capability), table)
    on_gpu = module_at(Path(__file__).parent / "kernels" / "test_gpu.py")
    shapes = {name: on_gpu.SHAPES[name] for name in (on_gpu.SHAPES if "all" in names else names)}
    for name, shape in (shapes or {"own": OWN[capability]}).items():
        for op in on_gpu.TRITON_OPS:
            with on_machine():
                on_gpu.CHECKS[op](Problem(shape, backend="triton"))
            report(f"{op} {name}")
        for kind in OTHER_KINDS:
            with on_machine():
                on_gpu.check_kind(kind, Problem(shape, backend="triton"))
            report(f"{kind} {name}")
        with on_machine():
            on_gpu.check_few_strata(Problem(shape, backend="triton"))
        report(f"few_strata {name}")
    if not names:
        for width in configs.widths("attention_stats", torch.float32, table):
            shape = Shape(batch=1, heads=2, groups=1, length=35, d_k=width, d_v=width)
            for op in SUMS:
                with on_machine():
                    on_gpu.CHECKS[op](Problem(shape, backend="triton"))
                report(f"{op} {width} wide")
        for live in (False, True):
            with on_machine():
                assert_lanes_keep_what_levels_count(live, OWN[capability].dtype)
            report(f"agreement {live}")
        with kernels_on_machine(int(capability), table):
            tracer = Tracer.from_pretrained(GOLDENS / FAMILY, device="cpu")
            vars(on_gpu)["tracer_on"] = lambda family: tracer
            for rule in CUT_RULES:
                on_gpu.test_goldens(FAMILY, rule)
                report(f"goldens {FAMILY} {rule}")


if __name__ == "__main__":
    main(*sys.argv[1:])
