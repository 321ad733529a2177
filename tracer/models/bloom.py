"""BLOOM: LayerNorm, ALiBi, a fused projection; branches that add the residual themselves."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .alibi import key_bias
from .architecture import OwnAttention
from .linear import last_outputs
from .llama import llama_like


def _project(attention: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    parts: tuple[Tensor, Tensor, Tensor] = attention._reshape(attention.query_key_value(states))
    return parts


def _values(attention: Any, states: Tensor) -> Tensor:
    """The value part of each head (query, key, value) of the fused projection."""
    heads, size = attention.num_heads, attention.head_dim
    return last_outputs(attention.query_key_value, states, size, groups=heads)


def _key_bias(attention: Any, positions: Tensor, dtype: torch.dtype) -> Tensor:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    return key_bias(build_alibi_tensor, attention.num_heads, positions, dtype)


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
    mlp=lambda block, states: block.mlp(states, states.new_zeros(())),
    values=_values,
    norm_kind="layer",
    own_attention=OwnAttention(project=_project, key_bias=_key_bias),
    unsupported=_unsupported,
)
