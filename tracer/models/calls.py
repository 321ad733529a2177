"""The keyword arguments of a block's call: cut to some rows, or moved to the block's device."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

KeysAndValues = tuple[Tensor | None, Tensor]

# Keywords of ours: positions, for ALiBi, and keys and values [N, G, T, d] that blocks share.
POSITIONS = "densitrace_positions"
SHARED = "densitrace_shared"


def call_on(call: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move a block's keyword arguments to its device; what blocks share, in place."""

    def moved(value: Any) -> Any:
        return _map_tensors(value, lambda tensor: tensor.to(device))

    shared = call.get(SHARED, {})
    for entry, tensors in shared.items():
        shared[entry] = moved(tensors)
    return {name: moved(value) for name, value in call.items()}


def part_of_call(
    call: dict[str, Any], states: Tensor, rows: slice | Tensor, columns: int | None = None
) -> dict[str, Any]:
    """Slice a block's keyword arguments for some rows and columns of its states [N, T, D].

    Rotary tables and position ids start with dimensions N, T or 1, T; others are passed unchanged.
    The keys and values that blocks share are in a new mapping; see `gather_shared`.
    """
    front = states.shape[:2]

    def narrow(tensor: Tensor) -> Tensor:
        if tensor.shape[:2] == front:
            tensor = tensor[rows]
        elif tensor.shape[:2] != (1, front[1]):
            return tensor
        return tensor[:, :columns]

    part = {name: _map_tensors(value, narrow) for name, value in call.items()}
    if SHARED in call:
        part[SHARED] = {
            entry: tuple(tensor[rows][:, :, :columns] for tensor in tensors)
            for entry, tensors in call[SHARED].items()
        }
    return part


def gather_shared(
    entry: Hashable,
    call: dict[str, Any],
    part: dict[str, Any],
    states: Tensor,
    rows: slice | Tensor,
    columns: int | None = None,
) -> None:
    """Copy the keys and values that a block shares from `part_of_call` into the whole call.

    Args:
        entry: where they are in the mapping; None if the block shares none.
        call, states, rows, columns: as they were given to `part_of_call`.
        part: its result, into which the block has put keys and values. Frozen lanes have no keys,
            and none of their blocks reads any.
    """
    if entry is None:
        return
    parts: KeysAndValues = part[SHARED][entry]
    if entry not in call[SHARED]:
        lanes, length = states.shape[:2]
        call[SHARED][entry] = tuple(
            tensor.new_empty(lanes, tensor.shape[1], length, tensor.shape[3])
            for tensor in parts
            if tensor is not None
        )
    for whole, tensor in zip(call[SHARED][entry], parts, strict=True):
        if tensor is not None:
            whole[rows, :, :columns] = tensor


def _map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to a tensor, or to all tensors in nested tuples.

    A module function, not a recursive closure: a closure that refers to itself is a reference
    cycle, and would keep the captured states alive until the garbage collector runs.
    """
    if isinstance(value, tuple):
        return tuple(_map_tensors(part, change) for part in value)
    return change(value) if isinstance(value, Tensor) else value
