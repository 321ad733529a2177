"""Which backend serves which op on which device.

A backend is a module beside this one that has a function of the op's name. `auto` takes the first
of the device's backends that has the op; a backend asked for by name never falls back.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

BACKENDS = ("reference", "cpu")
PREFERENCE = {"cpu": ("cpu", "reference")}  # by device type; others: the plain torch definition


@cache
def _module(backend: str) -> Any:
    if backend not in BACKENDS:
        raise _unavailable(f"is unknown; choose auto or one of {', '.join(BACKENDS)}", backend)
    try:
        return import_module(f".{backend}", __package__)
    except ImportError as error:
        raise _unavailable(f"is not built here: {error}", backend) from error


def _unavailable(reason: str, backend: str) -> Exception:
    # Imported here: in a checkout's root another package may import this folder as `kernels`, and
    # should find nothing worse than a package it has no use for.
    from ..errors import BackendError

    return BackendError(f"backend={backend!r} {reason}")


def serving(op: str, device: torch.device | str, backend: str = "auto") -> str:
    """The name of the backend that `op` runs on; BackendError where the one asked for lacks it."""
    if backend == "auto":
        order = PREFERENCE.get(torch.device(device).type, ("reference",))
        return next(name for name in order if hasattr(_module(name), op))
    if not hasattr(_module(backend), op):
        raise _unavailable(f"has no {op}; choose auto or reference", backend)
    return backend


def pick(op: Callable[P, R], device: torch.device | str, backend: str = "auto") -> Callable[P, R]:
    """The function that serves an op, which is named by its definition in `reference`."""
    name = op.__name__
    function: Callable[P, R] = getattr(_module(serving(name, device, backend)), name)
    return function
