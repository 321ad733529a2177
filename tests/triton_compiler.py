"""Compile every launch of the Triton ops for absent GPUs, and report registers and memory.

    python tests/triton_compiler.py TABLE CAPABILITY

The ops' own host code launches through Triton, under the pinned configurations of the table;
warnings are errors. Prints one JSON object per kernel: op, kind of edge weight, head width, dtype,
registers, and bytes of local and of shared memory.
"""

import json
import re
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from itertools import product

from triton import knobs
from triton.compiler import CompiledKernel
from triton_device import Launched, device

from densitrace.kernels.triton import configs


def used(kernel: CompiledKernel) -> dict[str, int]:
    """Registers, bytes of local memory (where registers spill to) and of shared memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # A frame on the stack is local memory too, and the one that spilled registers go to.
    ((registers, stack, local),) = re.findall(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", report)
    return {
        "registers": int(registers),
        "local": int(stack) + int(local),
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
