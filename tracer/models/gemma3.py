"""Gemma-3 (text): norms before and after each branch, RMSNorm with weight 1 + w."""

from dataclasses import replace
from typing import Any

from .architecture import BlockNorms
from .llama import llama_like


def _unsupported(config: Any) -> str | None:
    if getattr(config, "use_bidirectional_attention", False):
        return "use_bidirectional_attention=True: only causal decoders have a density"
    return None


GEMMA3 = replace(
    llama_like("gemma3", "gemma3_text"),
    norms=BlockNorms(
        before_attention="input_layernorm",
        after_attention="post_attention_layernorm",
        before_mlp="pre_feedforward_layernorm",
        after_mlp="post_feedforward_layernorm",
    ),
    norm_kind="rms_plus_one",
    logit_softcap=lambda config: config.final_logit_softcapping,
    unsupported=_unsupported,
)
