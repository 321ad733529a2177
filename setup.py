"""The compiled part of the build; everything else is in pyproject.toml.

With DENSITRACE_SANITIZE=1 in the environment, address and undefined-behaviour sanitizers are built
in: tests/kernels/test_sanitizers.py loads such a build.
"""

import os
import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

SANITIZERS = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-wrapv",  # Python asks for -fwrapv, under which no overflow is undefined
    "-fno-omit-frame-pointer",
    "-O1",
    "-g",
]
# OpenMP shares torch's threads; without it csrc/cpu/threads.h starts its own.
threads = ["-fopenmp"] if sys.platform == "linux" else ["-pthread"]
extra = SANITIZERS if os.environ.get("DENSITRACE_SANITIZE") == "1" else []


def files(pattern: str) -> list[str]:
    """Of the ops, relative to this file's folder, in which builds run."""
    return sorted(map(str, Path("csrc/cpu").glob(pattern)))


setup(
    ext_modules=[
        Pybind11Extension(
            "densitrace._cpu",
            sources=["csrc/bindings.cpp", *files("*.cpp")],
            depends=files("*.h"),
            include_dirs=["csrc"],
            # Not -march=native: csrc picks its instructions at run time, so that a wheel runs
            # on other processors too. GCC or Clang: it uses their vector types.
            extra_compile_args=["-O3", *threads, *extra],
            extra_link_args=[*threads, *extra],
            cxx_std=17,
            # Without a compiler plain torch serves every op: kernels/dispatch.py says so.
            optional=not extra,
        )
    ]
)
