"""DBRX: LayerNorm, a fused projection whose outputs are clipped, experts."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from .architecture import BlockNorms
from .linear import last_outputs
from .llama import llama_like


def _values(attention: Any, states: Tensor) -> Tensor:
    """The values are the last part of the fused projection, after queries and keys."""
    size, bound = attention.num_key_value_heads * attention.head_dim, attention.clip_qkv
    return last_outputs(attention.Wqkv, states, size).clamp(-bound, bound)


DBRX = replace(
    llama_like("dbrx", "dbrx"),
    blocks="transformer.blocks",
    final_norm="transformer.norm_f",
    attention="norm_attn_norm.attn",
    output_projection="out_proj",
    mlp="ffn",
    values=_values,
    norms=BlockNorms(before_attention="norm_attn_norm.norm_1", before_mlp="norm_attn_norm.norm_2"),
    norm_kind="layer",
)
