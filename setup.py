"""The compiled part of the build; everything else is in pyproject.toml."""

from glob import glob

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

setup(
    ext_modules=[
        Pybind11Extension(
            "densitrace._cpu",
            sources=["csrc/bindings.cpp", *sorted(glob("csrc/cpu/*.cpp"))],
            depends=sorted(glob("csrc/cpu/*.h")),
            include_dirs=["csrc"],
            # Not -march=native: csrc picks its instructions at run time, so that a wheel runs
            # on other processors too. GCC or Clang: it uses their vector types.
            extra_compile_args=["-O3", "-fopenmp"],
            extra_link_args=["-fopenmp"],
            cxx_std=17,
        )
    ]
)
