"""GPT-NeoX: attention and MLP in parallel or, by the config, in sequence; LayerNorm."""

from typing import Any

from torch import Tensor

from .architecture import Architecture
from .linear import last_outputs
from .llama import PRE_NORM


def _values(attention: Any, states: Tensor) -> Tensor:
    """The value part of each head (query, key, value) of the fused projection."""
    heads, size = attention.config.num_attention_heads, attention.head_size
    return last_outputs(attention.query_key_value, states, size, groups=heads)


GPT_NEOX = Architecture(
    name="gpt_neox",
    model_types=("gpt_neox",),
    blocks="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    attention="attention",
    output_projection="dense",
    mlp="mlp",
    values=_values,
    norms=PRE_NORM,
    norm_kind="layer",
    parallel=lambda config: config.use_parallel_residual,
)
