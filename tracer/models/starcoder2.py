"""StarCoder2 and Jais-2: Llama's wiring and names, LayerNorm."""

from dataclasses import replace

from .llama import llama_like

STARCODER2 = replace(llama_like("starcoder2", "starcoder2", "jais2"), norm_kind="layer")
