"""Choose the backend that serves an op on a device.

A backend is a module of this package with a function of the op's name. `auto` takes the first of
the device's backends that has the op, skipping those that are not built, with one warning. A
backend requested by name never falls back.

An op runs with its tensors' GPU as the current device, because Triton launches on the current
device and the layers of a model may be spread over several. The same holds each time an iterator
returned by an op is advanced.

A backend that supports only some kinds of edge weight lists their classes in a tuple `WEIGHTS`, or
in a dict of such tuples by op; for other kinds `auto` takes the next backend. One that runs on some
devices only lists their types in `DEVICES`. One whose build may not fit the machine has a function
`unfit` that returns why, or None.
"""

import logging
from collections.abc import Callable, Iterator
from functools import cache, wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar, cast

import torch

from .edges import AttentionEdges

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

BACKENDS = ("reference", "cpu", "triton", "cuda")
PREFERENCE = {  # by device type; other devices use `reference`
    "cpu": ("cpu", "reference"),
    "cuda": ("cuda", "triton", "reference"),
}

REMEDIES = {
    "cpu": "install a C++ compiler and Python's headers, then densitrace again (pip install "
    "--force-reinstall --no-deps --no-cache-dir; with -v it shows why a build fails)",
    "triton": "install Triton (in a checkout: pip install '.[gpu]')",
    "cuda": "put nvcc of the CUDA toolkit on the PATH or name CUDA_HOME, then install densitrace "
    "again (pip install --force-reinstall --no-deps --no-cache-dir; -v shows why a build fails)",
}

log = logging.getLogger(__name__)


@cache
def missing(backend: str) -> str | None:
    """Why a backend is unavailable and how to get it, in one line; None if it is available."""
    try:
        module = import_module(f".{backend}", __package__)
    except ImportError as error:
        return (
            f"backend={backend!r} is not built here: {' '.join(str(error).split())}; "
            f"{REMEDIES[backend]}"
        )
    reason: str | None = getattr(module, "unfit", lambda: None)()
    return reason and f"backend={backend!r} cannot run here: {reason}"


def _module(backend: str) -> Any:
    if backend not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise _unavailable(f"backend={backend!r} is unknown; choose auto or one of {known}")
    if reason := missing(backend):
        raise _unavailable(reason)
    return import_module(f".{backend}", __package__)


def _unavailable(reason: str) -> Exception:
    # Imported late: from a checkout's root another package may import this folder as top-level
    # `kernels`, where a relative import beyond it would fail.
    from ..errors import BackendError

    return BackendError(reason)


def _order(device: torch.device | str) -> tuple[str, ...]:
    return PREFERENCE.get(torch.device(device).type, ("reference",))


def weighs(module: Any, op: str, weight: type) -> bool:
    """Whether a backend's op supports a kind of edge weight."""
    known = getattr(module, "WEIGHTS", object)
    return issubclass(weight, known.get(op, object) if isinstance(known, dict) else known)


def has(module: Any, op: str, edges: AttentionEdges | None) -> bool:
    """Whether a backend has an op and supports the weight of `edges`, if given."""
    return hasattr(module, op) and (edges is None or weighs(module, op, type(edges.weight)))


def serving(
    op: str,
    device: torch.device | str,
    backend: str = "auto",
    edges: AttentionEdges | None = None,
) -> str:
    """The name of the backend that `op` runs on, for the weight of `edges` if given.

    Raises:
        BackendError: `backend` is unknown, not built, lacks the op, or does not support the device
            or the kind of edge weight.
    """
    if backend == "auto":
        built = {name: _module(name) for name in _order(device) if not missing(name)}
        return next(name for name, module in built.items() if has(module, op, edges))
    module = _module(backend)
    if not hasattr(module, op):
        raise _unavailable(f"backend={backend!r} has no {op}; choose auto or reference")
    kind = torch.device(device).type
    if kind not in getattr(module, "DEVICES", (kind,)):
        raise _unavailable(f"backend={backend!r} does not run on {kind}; choose auto or reference")
    if edges is not None and not has(module, op, edges):
        weight = type(edges.weight).__name__
        raise _unavailable(
            f"backend={backend!r} has no {op} for {weight}; choose auto or reference"
        )
    return backend


@cache  # once a process
def _warn_of(reason: str) -> None:
    log.warning("Plain torch serves the compiled ops, slower: %s", reason)


def _run_on(device: torch.device, function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function to run with `device` as the current GPU; one without an index already is."""
    if device.type != "cuda" or device.index is None:
        return function

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.cuda.device(device):
            result = function(*args, **kwargs)
        return cast(R, _iterate_on(device, result)) if isinstance(result, Iterator) else result

    return wrapped


def _iterate_on(device: torch.device, results: Iterator[T]) -> Iterator[T]:
    """Advance an iterator with `device` as the current GPU, holding no result in between."""
    end = object()

    def advance() -> T | object:
        with torch.cuda.device(device):
            return next(results, end)

    return cast(Iterator[T], iter(advance, end))


def pick(
    op: Callable[P, R],
    device: torch.device | str,
    backend: str = "auto",
    edges: AttentionEdges | None = None,
) -> Callable[P, R]:
    """The function of the backend that serves an op, given the op's definition in `reference`."""
    if backend == "auto":
        for reason in filter(None, map(missing, _order(device))):
            _warn_of(reason)
    name = op.__name__
    function: Callable[P, R] = getattr(_module(serving(name, device, backend, edges)), name)
    return _run_on(torch.device(device), function)
