"""Matrices, partial outputs and stored tensors of projections that may be quantised."""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.pytorch_utils import Conv1D

from ...errors import ModelError


def is_plain(module: nn.Module) -> bool:
    """Whether a projection is its weight, an ordinary matrix: not quantised, wrapped or hooked."""
    if type(module) not in (nn.Linear, Conv1D) or is_changed(module):
        return False
    weight = module._parameters.get("weight")
    if weight is None:  # computed from other parameters: pruned, weight norm
        return False
    return not is_traceable_wrapper_subclass(weight) and weight.dtype.itemsize > 1


def is_changed(module: nn.Module) -> bool:
    """Whether hooks or a replaced `forward` may change what a module computes.

    accelerate replaces it in models spread over devices, to move inputs: that changes nothing.
    """
    replaced = "forward" in vars(module) and not hasattr(module, "_hf_hook")
    return bool(module._forward_pre_hooks or module._forward_hooks or replaced)


def matrix(module: nn.Module, dtype: torch.dtype) -> Tensor:
    """The matrix of a projection [outputs, inputs], in the dtype of its weight.

    One that is not plain is evaluated on the unit vectors instead; the result is float32.

    Args:
        module: the projection.
        dtype: of the inputs of a projection that is not plain.

    Raises:
        ModelError: as `domain`.
    """
    if is_plain(module):
        weight = module.get_parameter("weight").detach()
        return weight.T if isinstance(module, Conv1D) else weight
    return evaluated(module, dtype)[0]


def evaluated(module: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """float32 matrix [outputs, inputs] and offset [outputs] of a projection that is not plain.

    Arguments and errors as for `matrix`.
    """
    inputs, device = domain(module)
    with torch.no_grad():
        units = torch.eye(inputs, dtype=dtype, device=device)[None]  # as one sequence
        offset = module(torch.zeros_like(units[:, :1]))
        rows: Tensor = module(units) - offset
    return rows[0].float().T.contiguous(), offset.flatten().float()


def domain(module: nn.Module) -> tuple[int, torch.device]:
    """The number of inputs of a projection, and its device.

    Raises:
        ModelError: it does not say how many inputs it has, or has no tensors.
    """
    inputs: Any = getattr(module, "nx" if isinstance(module, Conv1D) else "in_features", None)
    tensor = next(chain(module.parameters(), module.buffers()), None)
    if inputs is None or tensor is None:
        lacking = "in_features" if inputs is None else "parameters or buffers"
        raise ModelError(
            f"a projection of class {type(module).__name__} cannot be traced: it has no {lacking}"
        )
    return inputs, tensor.device


def outputs(module: nn.Module, states: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
    """Some outputs of a projection; a plain one computes no others.

    Args:
        module: the projection.
        states: [..., inputs].
        pick: selects outputs along the first dimension of a tensor [outputs, ...].

    Returns:
        [..., selected outputs].
    """
    if not is_plain(module):
        whole: Tensor = module(states)
        return pick(whole.movedim(-1, 0)).movedim(0, -1)
    bias = module.bias
    weight = pick(matrix(module, states.dtype))
    return linear(states, weight, pick(bias) if isinstance(bias, Tensor) else None)


def last_outputs(module: nn.Module, states: Tensor, count: int, groups: int = 1) -> Tensor:
    """The last `count` outputs of each of `groups` equal groups of a projection's outputs.

    The values of a fused projection, of all heads together or head by head.

    Args:
        module: the projection.
        states: [..., inputs].

    Returns:
        [..., groups * count].
    """

    def last(by_output: Tensor) -> Tensor:
        by_group: Tensor = by_output.unflatten(0, (groups, -1))
        return by_group[:, -count:].flatten(0, 1)

    return outputs(module, states, last)


def stored(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors stored in memory: of a quantised tensor, its integers and scales."""
    tensor = tensor.detach()
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from stored(getattr(tensor, name))
