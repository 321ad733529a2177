"""GPT-BigCode (StarCoder 1): as GPT-2, with one key/value head or with all."""

from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn.functional import linear

from .gpt2 import GPT2
from .linear import is_plain


def _values(attention: Any, states: Tensor) -> Tensor:
    """The last part of the fused projection, or of each head's three parts (query, key, value)."""
    fused, size = attention.c_attn, attention.head_dim
    if attention.multi_query and is_plain(fused):
        return linear(states, fused.weight[-size:], fused.bias[-size:])
    whole: Tensor = fused(states)
    values: Tensor = whole.unflatten(-1, (attention.kv_heads, -1))[..., -size:]
    return values.flatten(-2)


GPT_BIGCODE = replace(GPT2, name="gpt_bigcode", model_types=("gpt_bigcode",), values=_values)
