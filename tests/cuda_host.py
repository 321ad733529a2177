"""The CUDA kernels on CPU tensors: their sources, built for the host by a C++ compiler.

`csrc/cuda/grid.h` explains how one source serves both. The build is only for tests, and made when
an op is first called. Importing this module puts a copy of `kernels/cuda` on
top of it: the backend `cuda_host`, which tests enable with `switch_on`.
"""

import importlib.util
import os
import sys
import sysconfig
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pybind11
import pytest
from compiled import CSRC, compiled

import densitrace
from densitrace import kernels
from densitrace.kernels import dispatch

NAME = "cuda_host"
# As in setup.py
NVCC = ["nvcc", "-std=c++17", "-O3", "-fmad=false", f"-I{CSRC}"]
FLAGS = ["-std=c++17", "-O2", "-shared", "-fPIC", "-fvisibility=hidden"]
# As for nvcc: a multiply and an add fuse only where the sources say so.
FLAGS += ["-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]


def loaded(name: str, path: Path) -> ModuleType:
    """Load a module or a package from a file under another name."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert isinstance(spec, ModuleSpec) and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a package's modules look there
    spec.loader.exec_module(module)
    return module


@cache
def built() -> ModuleType:
    """Compile densitrace._cuda_host."""
    include = [CSRC, pybind11.get_include(), sysconfig.get_path("include")]
    command = [os.environ.get("CXX", "g++"), *FLAGS, "-DDENSITRACE_HOST"]
    command += [f"-I{folder}" for folder in include] + ["-xc++"]
    sources = [CSRC / "cuda" / "bindings.cpp", *sorted((CSRC / "cuda").glob("*.cu"))]
    return loaded("densitrace._cuda_host", compiled("_cuda_host.so", [*command, *sources]))


class Deferred(ModuleType):
    """Stands in for the build, which is made on first attribute access."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(built(), name)


extension: Any = Deferred("densitrace._cuda")
with mock.patch.object(densitrace, "_cuda", extension, create=True):
    _package = Path(kernels.__file__).parent / "cuda" / "__init__.py"
    ops: Any = loaded(f"{kernels.__name__}.{NAME}", _package)
budgets: Any = ops.budgets


def switch_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `backend="cuda_host"` available for one test."""
    monkeypatch.setattr(dispatch, "BACKENDS", (*dispatch.BACKENDS, NAME))
