"""Qwen2 (biases on queries, keys, values) and Qwen3 (norms on queries and keys)."""

from .llama import llama_like

QWEN2 = llama_like("qwen2", "qwen2")
QWEN3 = llama_like("qwen3", "qwen3")
