"""The compiled part of the build; everything else is in pyproject.toml."""

import sys

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

# Not -march=native: a wheel runs on other processors, and csrc picks its instructions at run time.
OPTIONS = ["/O2"] if sys.platform == "win32" else ["-O3", "-pthread"]

setup(
    ext_modules=[
        Pybind11Extension(
            "densitrace._cpu",
            sources=["csrc/bindings.cpp", "csrc/cpu/bottleneck.cpp"],
            depends=["csrc/cpu/bottleneck.h", "csrc/cpu/bottleneck_sweep.h"],
            include_dirs=["csrc"],
            extra_compile_args=OPTIONS,
            cxx_std=17,
        )
    ]
)
