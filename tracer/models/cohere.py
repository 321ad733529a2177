"""Cohere and Cohere-2: attention and MLP in parallel behind one LayerNorm, scaled logits."""

from dataclasses import replace

from .architecture import BlockNorms
from .llama import llama_like

COHERE = replace(
    llama_like("cohere", "cohere", "cohere2"),
    norms=BlockNorms(before_attention="input_layernorm", before_mlp="input_layernorm"),
    norm_kind="layer",
    parallel=lambda config: True,
    logit_scale=lambda config: config.logit_scale,
)
