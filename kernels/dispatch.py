"""Which backend serves which op on which device.

A backend is a module beside this one that has a function of the op's name. `auto` takes the first
of the device's backends that has the op; a backend asked for by name never falls back.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

import torch

from ..errors import BackendError

P = ParamSpec("P")
R = TypeVar("R")

BACKENDS = ("reference", "cpu")
PREFERENCE = {"cpu": ("cpu", "reference")}  # by device type; others: the plain torch definition


@cache
def _module(backend: str) -> Any:
    if backend not in BACKENDS:
        raise BackendError(
            f"backend={backend!r} is unknown; choose auto or one of {', '.join(BACKENDS)}"
        )
    try:
        return import_module(f".{backend}", __package__)
    except ImportError as error:
        raise BackendError(f"backend={backend!r} is not built here: {error}") from error


def serving(op: str, device: torch.device | str, backend: str = "auto") -> str:
    """The name of the backend that `op` runs on; BackendError where the one asked for lacks it."""
    if backend == "auto":
        order = PREFERENCE.get(torch.device(device).type, ("reference",))
        return next(name for name in order if hasattr(_module(name), op))
    if not hasattr(_module(backend), op):
        raise BackendError(f"backend={backend!r} has no {op}; choose auto or reference")
    return backend


def pick(op: Callable[P, R], device: torch.device | str, backend: str = "auto") -> Callable[P, R]:
    """The function that serves an op, which is named by its definition in `reference`."""
    name = op.__name__
    function: Callable[P, R] = getattr(_module(serving(name, device, backend)), name)
    return function
