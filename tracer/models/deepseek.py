"""DeepSeek-V2, V3, V3.2, GLM-5 and others: like Llama, values expanded from a latent vector."""

from dataclasses import replace
from math import sqrt
from typing import Any

from torch import Tensor

from .architecture import KeyChoice
from .llama import llama_like


def _values(attention: Any, states: Tensor) -> Tensor:
    """The value part of each head (key, value) that the latent vector expands to."""
    latent = attention.kv_a_proj_with_mqa(states)[..., : attention.kv_lora_rank]
    whole: Tensor = attention.kv_b_proj(attention.kv_a_layernorm(latent))
    values: Tensor = whole.unflatten(-1, (attention.num_heads, -1))[
        ..., attention.qk_nope_head_dim :
    ]
    return values.flatten(-2)


DEEPSEEK = replace(
    llama_like(
        "deepseek",
        "axk1",
        "deepseek_v2",
        "deepseek_v3",
        "glm4_moe_lite",
        "sarvam_mla",
        "youtu",
    ),
    values=_values,
)
# Their attention is to the `index_topk` keys that an indexer chooses.
DEEPSEEK_V32 = replace(
    DEEPSEEK,
    name="deepseek_v32",
    model_types=("deepseek_v32",),
    key_choice=KeyChoice("indexer"),
    longest=lambda config: config.index_topk,
)
GLM5 = replace(
    DEEPSEEK_V32,
    name="glm_moe_dsa",
    model_types=("glm_moe_dsa",),
    key_choice=KeyChoice("indexer", passed_on="prev_topk_indices"),
)
MINICPM3 = replace(
    DEEPSEEK,
    name="minicpm3",
    model_types=("minicpm3",),
    branch_scale=lambda config: config.scale_depth / sqrt(config.num_hidden_layers),
    logit_scale=lambda config: 1 / config.logits_scaling,
)
