"""BitNet: Llama with a norm between the attention heads and their output projection."""

from dataclasses import replace

from .llama import PRE_NORM, llama_like

BITNET = replace(
    llama_like("bitnet", "bitnet"),
    norms=replace(PRE_NORM, before_projection="self_attn.attn_sub_norm"),
)
