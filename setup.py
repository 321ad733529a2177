"""The compiled part of the build; everything else is in pyproject.toml."""

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

setup(
    ext_modules=[
        Pybind11Extension(
            "densitrace._cpu",
            sources=["csrc/bindings.cpp", "csrc/cpu/bottleneck.cpp"],
            depends=["csrc/cpu/bottleneck.h", "csrc/cpu/bottleneck_sweep.h"],
            include_dirs=["csrc"],
            # Not -march=native: csrc picks its instructions at run time, so that a wheel runs
            # on other processors too. GCC or Clang: it uses their vector types.
            extra_compile_args=["-O3", "-pthread"],
            extra_link_args=["-pthread"],
            cxx_std=17,
            # Without a compiler plain torch serves every op: kernels/dispatch.py says so.
            optional=True,
        )
    ]
)
