"""Qwen2 (biases on queries, keys, values) and Qwen3 (norms on queries and keys); with experts."""

from dataclasses import replace
from typing import Any

from .llama import llama_like


def _unsupported(config: Any) -> str | None:
    if "sliding_attention" in config.layer_types:
        return "use_sliding_window=True: its attention module does not pass on the window"
    return None


QWEN2 = llama_like("qwen2", "qwen2", "qwen2_vl_text", "qwen2_5_vl_text")
QWEN2_MOE = replace(llama_like("qwen2_moe", "qwen2_moe"), unsupported=_unsupported)
QWEN3 = llama_like("qwen3", "qwen3", "qwen3_moe", "qwen3_vl_text", "qwen3_vl_moe_text")
