"""Llama 3.2 Vision: Llama, with blocks that attend to images alone and that text skips."""

from dataclasses import replace

from .llama import llama_like

MLLAMA = replace(llama_like("mllama", "mllama_text_model"), skipped="cross_attn")
