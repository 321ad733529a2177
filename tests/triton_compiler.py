"""Compile every launch of the Triton ops for absent GPUs, and report registers and memory.

    python tests/triton_compiler.py TABLE CAPABILITY

The ops' own host code launches through Triton, under the pinned configurations of the table;
warnings are errors. Prints one JSON object per kernel: op, kind of edge weight, head width, dtype,
registers, spilled bytes, and bytes of shared memory.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from itertools import product
from pathlib import Path

from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import CompiledKernel
from triton_device import Launched, device

from densitrace.kernels.triton import configs


def used(kernel: CompiledKernel) -> dict[str, int]:
    """Registers, spilled bytes and shared memory of a kernel, from the assembler's report."""
    capability = kernel.metadata.target.arch
    suffix = "a" if capability >= 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(kernel.asm["ptx"], encoding="utf-8")
        command = [get_ptxas(capability).path, "-v", f"--gpu-name=sm_{capability}{suffix}"]
        command += [str(ptx), "-o", os.devnull]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    (registers,) = re.findall(r"Used (\d+) registers", report)
    return {
        "registers": int(registers),
        "spilled": sum(map(int, spills)),
        "shared": kernel.metadata.shared,
    }


def main(table: str, capability: int) -> None:
    """Print one line of JSON per kernel: every op under every pinned configuration and dtype."""
    from attention_problem import OTHER_KINDS  # next to this file, as is the other
    from triton_launches import CALLS, WEIGHING, WIDE, torch_dtype

    configs.table_for = lambda device: table
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", DeprecationWarning)  # of Python, about Triton's own code
    every = [(op, "norm", dtype) for op in CALLS for dtype in ("float32", "bfloat16", "float16")]
    every += [(op, "norm", WIDE) for op in ("attention_stats", *WEIGHING)]
    every += product(WEIGHING, OTHER_KINDS, ("float32", "bfloat16"))
    for op, kind, dtype in every:
        call = partial(CALLS[op], kind=kind) if op in WEIGHING else CALLS[op]
        # Beyond the widths of its own, an op that splits a factor multiplies in float32.
        for width in configs.widths(op.removesuffix("_split"), torch_dtype(dtype), table):
            launches: list[Launched] = []
            with device(capability, launches.append):
                call(width, dtype)
            for kernel in {id(launch.kernel): launch.kernel for launch in launches}.values():
                described = {"op": op, "kind": kind, "kernel": kernel.name, "width": width}
                described |= {"dtype": dtype} | used(kernel)
                sys.stdout.write(json.dumps(described) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
