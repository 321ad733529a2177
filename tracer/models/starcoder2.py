"""StarCoder2: Llama's wiring and names with a sliding window, LayerNorm."""

from dataclasses import replace

from .llama import llama_like

STARCODER2 = replace(llama_like("starcoder2", "starcoder2"), norm_kind="layer")
