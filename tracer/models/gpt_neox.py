"""GPT-NeoX: attention and MLP in parallel or, by the config, in sequence; LayerNorm."""

from typing import Any

from torch import Tensor, nn

from .architecture import Architecture
from .linear import outputs
from .llama import PRE_NORM


def _values(attention: Any, states: Tensor) -> Tensor:
    """The value part of each head (query, key, value) of the fused projection."""
    return last_of_heads(attention.query_key_value, states, attention.head_size)


def last_of_heads(fused: nn.Module, states: Tensor, size: int) -> Tensor:
    """The last third of each head's outputs of a fused projection; a third has `size` of them."""
    return outputs(fused, states, lambda w: w.unflatten(0, (-1, 3, size))[:, 2].flatten(0, 1))


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
