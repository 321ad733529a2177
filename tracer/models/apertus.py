"""Apertus: wired like Llama with other norm names; an MLP without a gate."""

from dataclasses import replace

from .architecture import BlockNorms
from .llama import llama_like

APERTUS = replace(
    llama_like("apertus", "apertus", "apertus1p5_text"),
    norms=BlockNorms(before_attention="attention_layernorm", before_mlp="feedforward_layernorm"),
)
