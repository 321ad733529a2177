"""Checks the Triton ops on the machine for PTX: compiled for a GPU that is not here, and run.

    python tests/triton_machine.py TABLE CAPABILITY [SHAPE ...]

Ops run as `kernels/test_gpu.py` checks them on a GPU, in one shape of its own or in the named ones,
or in `all`. Prints the name of each op that holds, and of the shape.
"""

import sys
from pathlib import Path

import torch
from attention_problem import Problem, Shape
from bench_files import module_at
from ptx_launches import triton_on_machine

OWN = {  # several tiles, every variant; numbers as matrix units of each generation take them
    "80": Shape(
        batch=1, heads=2, groups=1, length=70, d_k=40, d_v=24, window=50, softcap=5.0, sinks=True,
        segments=True,
    ),
    "90": Shape(
        batch=1, heads=2, groups=1, length=70, d_k=64, d_v=64, window=50, softcap=5.0, sinks=True,
        segments=True, dtype=torch.bfloat16,
    ),
}  # fmt: skip


def main(table: str, capability: str, *names: str) -> None:
    """Check all ops; print a line each."""
    on_gpu = module_at(Path(__file__).parent / "kernels" / "test_gpu.py")
    shapes = {name: on_gpu.SHAPES[name] for name in (on_gpu.SHAPES if "all" in names else names)}
    for name, shape in (shapes or {"own": OWN[capability]}).items():
        for op in on_gpu.TRITON_OPS:
            with triton_on_machine(int(capability), table):
                on_gpu.CHECKS[op](Problem(shape, backend="triton"))
            sys.stdout.write(f"{op} {name}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
