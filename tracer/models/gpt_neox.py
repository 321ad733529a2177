"""GPT-NeoX: attention and MLP in parallel (or in sequence, as the config says), LayerNorm."""

from typing import Any

from torch import Tensor, nn

from .architecture import Architecture
from .linear import outputs
from .llama import PRE_NORM


def _values(attention: Any, states: Tensor) -> Tensor:
    """The last of each head's three parts (query, key, value) of the fused projection."""
    return last_of_heads(attention.query_key_value, states, attention.head_size)


def last_of_heads(fused: nn.Module, states: Tensor, size: int) -> Tensor:
    """The last of each head's three parts of a fused projection, each of some size."""
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
