"""Compile every launch of the Triton ops for absent GPUs, and report registers and memory.

    python tests/triton_compiler.py TABLE CAPABILITY

Launches are intercepted with the arguments from the op's own host code and compiled for the compute
capability under the pinned configurations of the table. Prints one JSON object per kernel: op, head
width, dtype, registers, spilled bytes, and bytes of shared memory.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from densitrace.kernels.triton import configs

TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32",
    torch.int64: "*i64", torch.uint8: "*u8", torch.bool: "*i1", torch.float64: "*fp64",
}  # fmt: skip

OPTIONS = ("num_warps", "num_stages", "maxnreg")  # of a configuration, passed to the compiler

Launch = tuple[JITFunction, dict[str, Any]]


def caught(call: Callable[[], object]) -> list[Launch]:
    """The kernels that a call would launch, with their arguments."""
    launches: list[Launch] = []

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append((self, dict(zip(self.arg_names, args, strict=False)) | kwargs))

    original, JITFunction.run = JITFunction.run, run
    try:
        call()
    finally:
        JITFunction.run = original
    return launches


def source(kernel: JITFunction, arguments: dict[str, Any]) -> ASTSource:
    """The kernel specialised as for a launch: types, constants, and divisibility of arguments."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            if value.data_ptr() % 16 == 0:
                attributes[place,] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        elif value == 1 and not parameter.do_not_specialize:
            signature[parameter.name], constants[parameter.name] = "constexpr", 1
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[place,] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def compiled(launch: Launch, capability: int) -> dict[str, int]:
    """Registers, spilled bytes and shared memory of a launch, from the assembler's report."""
    kernel, arguments = launch
    options = {name: arguments[name] for name in OPTIONS if name in arguments}
    target = GPUTarget("cuda", capability, 32)
    built = triton.compile(source(kernel, arguments), target=target, options=options)
    suffix = "a" if capability == 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(built.asm["ptx"], encoding="utf-8")
        command = [
            get_ptxas(capability).path,
            "-v",
            f"--gpu-name=sm_{capability}{suffix}",
            str(ptx),
        ]
        command += ["-o", os.devnull]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    (registers,) = re.findall(r"Used (\d+) registers", report)
    return {
        "registers": int(registers),
        "spilled": sum(map(int, spills)),
        "shared": built.metadata.shared,
    }


def launches(table: str) -> Iterator[tuple[dict[str, Any], Launch]]:
    """Every op under every pinned configuration, in the dtypes that models have."""
    from triton_launches import CALLS  # next to this file

    configs.table_for = lambda device: table
    for op, call in CALLS.items():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for width in configs.widths(op, dtype, table):
                for launch in caught(partial(call, width, dtype)):
                    kernel, name = launch[0].__name__, str(dtype).removeprefix("torch.")
                    yield {"op": op, "kernel": kernel, "width": width, "dtype": name}, launch


def main(table: str, capability: int) -> None:
    """Print one line of JSON per kernel."""
    for described, launch in launches(table):
        result = described | compiled(launch, capability)
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
