"""BLOOM: LayerNorm, ALiBi, one projection in front; branches that add the residual themselves."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from .alibi import by_position
from .architecture import OwnAttention
from .linear import is_plain
from .llama import llama_like


def _project(attention: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = attention._reshape(attention.query_key_value(states))
    return found


def _values(attention: Any, states: Tensor) -> Tensor:
    """The last of each head's three parts (query, key, value) of the fused projection."""
    fused, size = attention.query_key_value, attention.head_dim
    if not is_plain(fused):
        return _project(attention, states)[2].transpose(1, 2).flatten(2)
    whole = (fused.weight, fused.bias)
    return linear(states, *(part.unflatten(0, (-1, 3, size))[:, 2].flatten(0, 1) for part in whole))


def _key_bias(attention: Any, positions: Tensor, dtype: torch.dtype) -> Tensor:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    table = build_alibi_tensor(torch.ones_like(positions[:1]), attention.num_heads, dtype)
    return by_position(table[:, 0], positions)


def adds_no_residual(name: str) -> Callable[[Any], Callable[[Tensor], Tensor]]:
    """An MLP of this name in a block, which would add a residual that it is given."""

    def of_block(block: Any) -> Callable[[Tensor], Tensor]:
        def mlp(states: Tensor) -> Tensor:
            branch: Tensor = getattr(block, name)(states, states.new_zeros(()))
            return branch

        return mlp

    return of_block


def _unsupported(config: Any) -> str | None:
    if config.apply_residual_connection_post_layernorm:
        return "apply_residual_connection_post_layernorm=True: norms lie in the residual stream"
    return None


BLOOM = replace(
    llama_like("bloom", "bloom"),
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    attention="self_attention",
    output_projection="dense",
    mlp=adds_no_residual("mlp"),
    values=_values,
    norm_kind="layer",
    own_attention=OwnAttention(project=_project, key_bias=_key_bias),
    unsupported=_unsupported,
)
