"""Phi (1, 1.5, 2): parallel after one LayerNorm; Phi-3, 4: as Llama; PhiMoE: with LayerNorm."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from .linear import last_outputs
from .llama import ONE_NORM, llama_like


def _values(attention: Any, states: Tensor) -> Tensor:
    """The values are the last part of the fused projection, after queries and keys."""
    size = attention.num_key_value_heads * attention.head_dim
    return last_outputs(attention.qkv_proj, states, size)


def _unsupported(config: Any) -> str | None:
    window = config.sliding_window
    if window is not None and window < config.max_position_embeddings:
        return f"sliding_window={window}: its attention module does not pass on the window"
    return None


PHI = replace(
    llama_like("phi", "phi"),
    final_norm="model.final_layernorm",
    output_projection="dense",
    norms=ONE_NORM,
    norm_kind="layer",
    parallel=lambda config: True,
)
PHI3 = replace(llama_like("phi3", "phi3", "phi4_multimodal"), values=_values)
PHIMOE = replace(llama_like("phimoe", "phimoe"), norm_kind="layer", unsupported=_unsupported)
