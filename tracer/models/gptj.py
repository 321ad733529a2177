"""GPT-J and CodeGen: attention and MLP in parallel after one LayerNorm.

Their attention modules have a method of their own until transformers 5.23.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from .architecture import BlockNorms, OwnAttention
from .gpt_neo import GPT_NEO
from .linear import outputs


def _codegen_values(attention: Any, states: Tensor) -> Tensor:
    """The middle third (query, value, key) of each quarter of the fused projection."""
    parts = (4, 3, attention.embed_dim // 4)
    return outputs(
        attention.qkv_proj, states, lambda fused: fused.unflatten(0, parts)[:, 1].flatten(0, 1)
    )


GPTJ = replace(
    GPT_NEO,
    name="gptj",
    model_types=("gptj",),
    attention="attn",
    norms=BlockNorms(before_attention="ln_1", before_mlp="ln_1"),
    own_attention=OwnAttention("_attn"),
    parallel=lambda config: True,
)
CODEGEN = replace(GPTJ, name="codegen", model_types=("codegen",), values=_codegen_values)
