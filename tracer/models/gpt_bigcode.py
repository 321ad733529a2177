"""GPT-BigCode (StarCoder 1): as GPT-2, with one key/value head or one per query head."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from .gpt2 import GPT2
from .linear import last_outputs


def _values(attention: Any, states: Tensor) -> Tensor:
    """The value part at the end of the fused projection, or of each head (query, key, value)."""
    heads, size = attention.kv_heads, attention.head_dim
    return last_outputs(attention.c_attn, states, size, groups=heads)


GPT_BIGCODE = replace(GPT2, name="gpt_bigcode", model_types=("gpt_bigcode",), values=_values)
