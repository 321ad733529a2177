"""ModernBERT's decoders (Ettin): pre-norm, LayerNorm, a layer before the unembedding."""

from dataclasses import replace

from .architecture import BlockNorms
from .llama import llama_like

MODERNBERT = replace(
    llama_like("modernbert-decoder", "modernbert-decoder"),
    final_norm="model.final_norm",
    attention="attn",
    output_projection="Wo",
    norms=BlockNorms(before_attention="attn_norm", before_mlp="mlp_norm"),
    norm_kind="layer",
    head="lm_head",
)
