"""GPT-2: LayerNorm, learned positions, projections stored as [inputs, outputs]."""

from typing import Any

from torch import Tensor

from .architecture import Architecture, BlockNorms, learned_positions
from .linear import last_outputs


def _unsupported(config: Any) -> str | None:
    if config.add_cross_attention:
        return "add_cross_attention=True: only decoders without an encoder are traced"
    return None


def _values(attention: Any, states: Tensor) -> Tensor:
    """The values are the last third of the fused projection."""
    return last_outputs(attention.c_attn, states, states.shape[-1])


GPT2 = Architecture(
    name="gpt2",
    model_types=("gpt2",),
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    attention="attn",
    output_projection="c_proj",
    mlp="mlp",
    values=_values,
    norms=BlockNorms(before_attention="ln_1", before_mlp="ln_2"),
    norm_kind="layer",
    longest=learned_positions,
    unsupported=_unsupported,
)
