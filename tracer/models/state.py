"""Fingerprints of weights and modules: whether what was derived from them still holds."""

from collections.abc import Hashable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .linear import stored

_WIDTH = 4096  # words of 8 bytes in a row of the matrix whose rows and columns are summed
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """The parameters and buffers of a module and those within it."""
    return chain(module.parameters(), module.buffers())


@torch.inference_mode(False)  # in which some quantised tensors cannot be read
@torch.no_grad()
def contents(tensors: Iterable[Tensor]) -> tuple[Hashable, ...]:
    """Dtype, shape and checksum of each tensor; tensors on `meta` have no contents.

    A checksum reads the bytes, because torch's version counters miss edits through `.data`.
    """
    pieces = [piece for tensor in tensors for piece in stored(tensor) if not piece.is_meta]
    if not pieces:
        return ()
    sums = [_checksum(piece) for piece in pieces]
    together = torch.stack([total.to(sums[0].device) for total in sums]).tolist()  # synchronises
    kinds = ((piece.device, piece.dtype, piece.shape) for piece in pieces)
    return tuple(zip(kinds, together, strict=True))


def _checksum(tensor: Tensor) -> Tensor:
    """int64 []: sums of rows and columns of the bits, each times an odd number of its own.

    Reads the tensor twice, about ten times as fast as a copy to another dtype.
    """
    data = tensor.contiguous().flatten().view(torch.uint8)
    if data.storage_offset() % 8 != 0:  # as a view of words needs
        data = data.clone()
    end = len(data) // 8 * 8
    words = data[:end].view(torch.int64)
    whole = len(words) // _WIDTH * _WIDTH
    table = words[:whole].view(-1, _WIDTH)
    sums = [table.sum(0), table.sum(1), words[whole:], data[end:].long()]
    terms = torch.cat(sums)
    return (terms * (2 * torch.arange(len(terms), device=terms.device) + 1)).sum()


def settings(module: nn.Module) -> Hashable:
    """What can be seen to decide what a module computes besides tensors: hooks and attributes."""
    return tuple(map(_own_settings, module.modules()))


def _own_settings(module: nn.Module) -> Hashable:
    hooks = (*module._forward_pre_hooks.items(), *module._forward_hooks.items())
    own = ((name, value) for name, value in vars(module).items() if name not in _OF_EVERY_MODULE)
    return id(module), _visible(hooks), _visible(tuple(own))


def _visible(value: Any) -> Hashable:
    """A value that compares equal unless something else was set."""
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, dict):
        return _visible(tuple(value.items()))
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(map(_visible, value))
    return id(value)


def addresses(module: nn.Module) -> Hashable:
    """Where the tensors of a module are in memory."""
    return tuple(piece.data_ptr() for tensor in tensors_of(module) for piece in stored(tensor))
