"""DeepSeek-V2 and V3: Llama's wiring, with values that come of a latent vector; experts."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from .llama import llama_like


def _values(attention: Any, states: Tensor) -> Tensor:
    """The second of each head's two parts (key, value) that the latent vector expands to."""
    latent = attention.kv_a_proj_with_mqa(states)[..., : attention.kv_lora_rank]
    whole: Tensor = attention.kv_b_proj(attention.kv_a_layernorm(latent))
    values: Tensor = whole.unflatten(-1, (attention.num_heads, -1))[
        ..., attention.qk_nope_head_dim :
    ]
    return values.flatten(-2)


DEEPSEEK = replace(llama_like("deepseek", "deepseek_v2", "deepseek_v3"), values=_values)
