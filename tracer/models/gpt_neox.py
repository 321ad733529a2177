"""GPT-NeoX: attention and MLP in parallel (or in sequence, as the config says), LayerNorm."""

from typing import Any

from torch import Tensor
from torch.nn.functional import linear

from .architecture import Architecture, BlockNorms
from .linear import is_plain


def _values(attention: Any, states: Tensor) -> Tensor:
    """The last of each head's three parts (query, key, value) of the fused projection."""
    fused, size = attention.query_key_value, attention.head_size

    def values(whole: Tensor) -> Tensor:
        return whole.view(-1, 3, size, *whole.shape[1:])[:, 2].flatten(0, 1)

    if not is_plain(fused):
        whole: Tensor = fused(states)
        own: Tensor = whole.unflatten(-1, (-1, 3, size))[..., 2, :]
        return own.flatten(-2)
    return linear(states, values(fused.weight), None if fused.bias is None else values(fused.bias))


GPT_NEOX = Architecture(
    name="gpt_neox",
    model_types=("gpt_neox",),
    blocks="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    attention="attention",
    output_projection="dense",
    mlp="mlp",
    values=_values,
    norms=BlockNorms(before_attention="input_layernorm", before_mlp="post_attention_layernorm"),
    norm_kind="layer",
    parallel=lambda config: config.use_parallel_residual,
)
