"""The compiled parts of the build; everything else is in pyproject.toml.

densitrace._cpu needs a C++ compiler, densitrace._cuda the CUDA compiler, nvcc, too: it is left out
where there is none. Neither is needed to install: plain torch serves what is not built.

With DENSITRACE_SANITIZE=1 in the environment, address and undefined-behaviour sanitizers are built
in: tests/kernels/test_sanitizers.py loads such a build.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError
from setuptools.modified import newer_group

SANITIZERS = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-wrapv",  # Python asks for -fwrapv, under which no overflow is undefined
    "-fno-omit-frame-pointer",
    "-O1",
    "-g1",  # lines, for reports
]
# OpenMP shares torch's threads; without it csrc/cpu/threads.h starts its own.
threads = ["-fopenmp"] if sys.platform == "linux" else ["-pthread"]
extra = SANITIZERS if os.environ.get("DENSITRACE_SANITIZE") == "1" else []


def files(pattern: str) -> list[str]:
    """Of the sources, relative to this file's folder, in which builds run."""
    return sorted(map(str, Path("csrc").glob(pattern)))


# ---- densitrace._cuda --------------------------------------------------------------------------

NVCC_OPTIONS = [
    "-std=c++17",
    "-O3",
    "-fmad=false",  # where a product and its sum are one operation the sources say so
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=[sm_90,compute_90]",  # and for GPUs that come after
    "--threads=0",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-Icsrc",
]


def nvcc() -> str | None:
    """Path of the CUDA compiler, if it is here."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")


class Build(build_ext):
    """Where sources are CUDA's, nvcc compiles them and links the module."""

    def build_extension(self, ext: Extension) -> None:
        kernels = [source for source in ext.sources if source.endswith(".cu")]
        if not kernels:
            super().build_extension(ext)
            return
        path = Path(self.get_ext_fullpath(ext.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        built = Path(self.build_temp, path.name)
        if newer_group([*ext.sources, *ext.depends, __file__], str(built)):
            self.build_module(ext, kernels, built)
        shutil.copy2(built, path)

    def build_module(self, ext: Extension, kernels: list[str], path: Path) -> None:
        bindings = self.compiler.compile(
            [source for source in ext.sources if source not in kernels],
            output_dir=self.build_temp,
            include_dirs=ext.include_dirs,
            extra_postargs=ext.extra_compile_args,
        )
        # The runtime is linked in: importing the module needs neither CUDA nor a driver.
        command = [nvcc(), "-shared", "--cudart=static", *NVCC_OPTIONS, *kernels, *bindings]
        if subprocess.run([*command, "-o", path], check=False).returncode:
            raise CompileError(f"nvcc could not build {ext.name}")


cuda = Pybind11Extension(
    "densitrace._cuda",
    sources=["csrc/cuda/bindings.cpp", *files("cuda/*.cu")],
    depends=files("cuda/*.h"),
    include_dirs=["csrc"],
    extra_compile_args=["-O3"],
    cxx_std=17,
    optional=True,
)

# ---- densitrace._cpu ---------------------------------------------------------------------------

cpu = Pybind11Extension(
    "densitrace._cpu",
    sources=["csrc/bindings.cpp", *files("cpu/*.cpp")],
    depends=files("cpu/*.h"),
    include_dirs=["csrc"],
    # Not -march=native: csrc picks its instructions at run time, so that a wheel runs on other
    # processors too. GCC or Clang: it uses their vector types.
    extra_compile_args=["-O3", *threads, *extra],
    extra_link_args=[*threads, *extra],
    cxx_std=17,
    # Without a compiler plain torch serves every op: kernels/dispatch.py says so.
    optional=not extra,
)

# A build with sanitizers is for the tests of what runs on the host.
modules = [cpu, cuda] if nvcc() and not extra else [cpu]
setup(ext_modules=modules, cmdclass={"build_ext": Build})
