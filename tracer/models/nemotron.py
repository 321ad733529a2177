"""Nemotron: Llama's wiring and names, LayerNorm with weight 1 + w."""

from dataclasses import replace

from .llama import llama_like

NEMOTRON = replace(llama_like("nemotron", "nemotron"), norm_kind="layer_plus_one")
