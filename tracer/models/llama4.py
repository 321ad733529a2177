"""Llama 4 (text), as far as one chunk of its attention goes; experts."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from .llama import llama_like


def _mlp(block: Any, states: Tensor) -> Tensor:
    """Experts give rows of no sequence, and the scores of their router."""
    found = block.feed_forward(states)
    branch: Tensor = found[0] if isinstance(found, tuple) else found
    return branch.view_as(states)


def _longest(config: Any) -> int:
    """Up to where chunks, and temperatures that grow with the position, make no difference."""
    if not config.attn_temperature_tuning:
        return int(config.attention_chunk_size)
    return int(min(config.attention_chunk_size, config.floor_scale - 1))


LLAMA4 = replace(llama_like("llama4", "llama4_text"), mlp=_mlp, longest=_longest)
