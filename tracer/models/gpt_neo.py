"""GPT-Neo: LayerNorm, learned positions, unscaled scores, sliding windows in alternate blocks."""

from dataclasses import replace
from typing import Any

from .architecture import BlockNorms, OwnAttention, learned_positions
from .llama import llama_like


def _arguments(attention: Any) -> dict[str, Any]:
    local = attention.attention_type == "local"
    return {"scaling": 1.0, "sliding_window": attention.config.window_size if local else None}


GPT_NEO = replace(
    llama_like("gpt_neo", "gpt_neo"),
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    attention="attn.attention",
    output_projection="out_proj",
    norms=BlockNorms(before_attention="ln_1", before_mlp="ln_2"),
    norm_kind="layer",
    own_attention=OwnAttention("_attn", arguments=_arguments),
    longest=learned_positions,
)
