"""Llama 4 (text), up to the length of one attention chunk; experts."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from .llama import llama_like


def _mlp(block: Any, states: Tensor) -> Tensor:
    """The MLP or experts; experts return flattened rows, and router scores second."""
    result = block.feed_forward(states)
    branch: Tensor = result[0] if isinstance(result, tuple) else result
    return branch.view_as(states)


def _longest(config: Any) -> int:
    """The length up to which attention chunks and temperature tuning have no effect."""
    if not config.attn_temperature_tuning:
        return int(config.attention_chunk_size)
    return int(min(config.attention_chunk_size, config.floor_scale - 1))


LLAMA4 = replace(llama_like("llama4", "llama4_text"), mlp=_mlp, longest=_longest)
