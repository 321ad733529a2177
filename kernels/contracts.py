"""Checks what the ops are given, in the words of their contracts, before any backend sees it."""

from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from .edges import (
    AttentionEdges,
    CosineWeight,
    GivenWeight,
    NormWeight,
    Pattern,
    ProximityWeight,
    RandomWeight,
)

P = ParamSpec("P")
R = TypeVar("R")
# By name: a tensor and its dimensions ("B H T"), with "?" after them if there may be none.
Given = dict[str, tuple[object, str]]


def refusal(message: str) -> Exception:
    """An InputError, imported late: see `dispatch`."""
    from ..errors import InputError

    return InputError(message)


def op(function: Callable[P, R]) -> Callable[P, R]:
    """A public op: it computes no gradients, and a backend's ValueError becomes an InputError."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with torch.no_grad():
                return function(*args, **kwargs)
        except ValueError as error:
            refused = refusal(str(error))
            if isinstance(error, type(refused)):
                raise
            raise refused from error

    return wrapped


def check(given: Given) -> None:
    """Check that tensors have their dimensions, those of one name one size, and are on one device.

    Raises:
        InputError: they do not; or the query heads are no multiple of the key/value heads.

    Example:
        >>> check({"reach": (torch.zeros(1, 2, 2), "B T T"), "degrees": (None, "K B T?")})
    """
    sizes: dict[str, int] = {}
    device: torch.device | None = None
    for name, (tensor, dimensions) in given.items():
        if tensor is None and dimensions.endswith("?"):
            continue
        if not isinstance(tensor, Tensor):
            raise refusal(f"{name} is a {type(tensor).__name__}; wanted a tensor")
        names, shape = _names(dimensions), tensor.shape
        fits = len(names) == len(shape)
        for each, size in zip(names, shape, strict=False):
            fits = fits and sizes.setdefault(each, size) == size
        if not fits:
            wanted = ", ".join(str(sizes.get(each, each)) for each in names)
            raise refusal(f"{name} has shape {list(shape)}; wanted [{wanted}]")
        if 0 in shape and names[-1].startswith("d_"):
            raise refusal(f"{name} has shape {list(shape)}; wanted at least one number")
        if device is None:
            device = tensor.device
        elif tensor.device != device:
            raise refusal(f"{name} is on {tensor.device}; wanted on {device}, as the others are")
    heads, groups = sizes.get("H", 1), sizes.get("G", 1)
    if heads % groups:
        raise refusal(f"{heads} query heads are no multiple of {groups} key/value heads")


@cache
def _names(dimensions: str) -> tuple[str, ...]:
    return tuple(dimensions.rstrip("?").split())


def check_dtype(dtype: torch.dtype, **given: Tensor) -> None:
    """Check the dtype of tensors of whole numbers, which backends do not convert.

    Raises:
        InputError: it is another.
    """
    for name, tensor in given.items():
        if tensor.dtype != dtype:
            raise refusal(f"{name} is of {tensor.dtype}; wanted {dtype}")


def of_pattern(pattern: Pattern) -> Given:
    """The tensors of a pattern with their dimensions."""
    if not isinstance(pattern, Pattern):
        raise refusal(f"pattern is a {type(pattern).__name__}; wanted a Pattern")
    return {
        "q": (pattern.q, "B H T d_k"),
        "k": (pattern.k, "B G T d_k"),
        "sinks": (pattern.sinks, "H?"),
        "segments": (pattern.segments, "B T?"),
        "lse": (pattern.lse, "B H T?"),
    }


def of_edges(edges: AttentionEdges | None) -> Given:
    """The tensors of attention edges with their dimensions; none if there are no such edges."""
    if edges is None:
        return {}
    if not isinstance(edges, AttentionEdges):
        raise refusal(f"edges is a {type(edges).__name__}; wanted AttentionEdges")
    own: Given
    match edges.weight:
        case NormWeight(source, target):
            own = {"source": (source, "B H T"), "target": (target, "B T?")}
        case CosineWeight(direction, source, v):
            own = {
                "direction": (direction, "B H T d_v"),
                "source": (source, "B H T"),
                "weight.v": (v, "B G T d_v"),
            }
        case ProximityWeight(node, v, w_o, target):
            own = {
                "node": (node, "B T D"),
                "weight.v": (v, "B G T d_v"),
                "w_o": (w_o, "H D d_v"),
                "target": (target, "B T?"),
            }
        case RandomWeight(_, _, positions):
            own = {"positions": (positions, "B T")}
        case GivenWeight(weight):
            own = {"weight": (weight, "B H T T")}
        case other:
            raise refusal(f"weight is a {type(other).__name__}; wanted an edge weight")
    return of_pattern(edges.pattern) | own
