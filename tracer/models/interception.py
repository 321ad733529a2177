"""How tracing enters a model: our attention function, and what is replaced on modules for a while.

Attention calls ours through transformers' `AttentionInterface`, or, in modules that predate it, in
place of their own method or of torch's SDPA.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface

from ...kernels import Pattern
from .alibi import biased

Attend = Callable[[Pattern, Tensor], Tensor]

NAME = "densitrace"  # of our attention function in transformers' registries
EMPTY_MASK = "densitrace_empty_mask"  # the same, for models that compute with their mask
HOOK = "densitrace_attend"  # attribute of an attention module while it is traced


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    key_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Our attention function for transformers: passes all variants on as one `Pattern`."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if key_bias is not None:
        query, key = biased(query, key, key_bias, scale)
    pattern = Pattern(
        query,
        key,
        scale,
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    output: Tensor = getattr(module, HOOK)(pattern, value)
    return output.transpose(1, 2).to(value.dtype), None


def instead_of_method(
    module: nn.Module, arguments: dict[str, Any], query: Tensor, key: Tensor, value: Tensor, *_: Any
) -> tuple[Tensor, None]:
    """Replaces a method of an attention module that computes attention itself."""
    return _attention(module, query, key, value, **arguments)[0].transpose(1, 2), None


class RedirectSdpa(TorchFunctionMode):
    """Redirect `scaled_dot_product_attention` to such a method while the context is open."""

    def __init__(self, method: Callable[..., tuple[Tensor, None]]) -> None:
        super().__init__()
        self.method = method

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is scaled_dot_product_attention:
            return self.method(*args[:3])[0]
        return func(*args, **(kwargs or {}))


def _no_mask(*_: Any, **__: Any) -> None:
    """Build no T x T mask: the engine handles segments and padding itself."""


def _empty_mask(*_: Any, **__: Any) -> Tensor:
    return torch.empty(1, 1, 0, 0)


def no_choice(*_: Any, **__: Any) -> Tensor:
    """In place of a module that chooses keys: its result is not used."""
    return torch.empty(0)


for _name, _mask in ((NAME, _no_mask), (EMPTY_MASK, _empty_mask)):
    AttentionInterface.register(_name, _attention)
    AttentionMaskInterface.register(_name, _mask)


@contextmanager
def with_implementation(config: Any, name: str) -> Iterator[None]:
    """Set the attention implementation of a config while the context is open."""
    before, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def with_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute on an instance while the context is open, then restore or remove it."""
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
