"""Falcon: one or two norms, few or many key/value heads, ALiBi or rotary; attention by SDPA."""

from typing import Any

import torch
from torch import Tensor

from .alibi import key_bias
from .architecture import Architecture, BlockNorms, OwnAttention
from .llama import ONE_NORM, PRE_NORM


def _values(attention: Any, states: Tensor) -> Tensor:
    """Split by the module's own method, which may repeat values for each query head."""
    values: Tensor = attention._split_heads(attention.query_key_value(states))[2]
    return values.flatten(-2)


def _parallel(config: Any) -> bool:
    return bool(config.new_decoder_architecture or config.parallel_attn)


def _norms(config: Any) -> BlockNorms:
    if not _parallel(config):
        return PRE_NORM
    if config.new_decoder_architecture and config.num_ln_in_parallel_attn == 2:
        return BlockNorms(before_attention="ln_attn", before_mlp="ln_mlp")
    return ONE_NORM


def _key_bias(attention: Any, positions: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The biases, scaled like the scores."""
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor

    if not attention.config.alibi:
        return None
    scaling: float = attention.inv_norm_factor
    return key_bias(build_alibi_tensor, attention.num_heads, positions, dtype) * scaling


def _unsupported(config: Any) -> str | None:
    if config.alibi and config.multi_query and not config.new_decoder_architecture:
        return "alibi=True, multi_query=True: heads with different biases share their keys"
    return None


FALCON = Architecture(
    name="falcon",
    model_types=("falcon",),
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    attention="self_attention",
    output_projection="dense",
    mlp="mlp",
    values=_values,
    norms=_norms,
    norm_kind="layer",
    own_attention=OwnAttention(key_bias=_key_bias),
    parallel=_parallel,
    unsupported=_unsupported,
)
