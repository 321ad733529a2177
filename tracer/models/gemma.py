"""Gemma and VaultGemma: RMSNorm with weight 1 + w; Gemma-2 and 3 (text): after branches, too."""

from dataclasses import replace
from typing import Any

from .architecture import BlockNorms
from .llama import llama_like


def _unsupported(config: Any) -> str | None:
    if getattr(config, "use_bidirectional_attention", False):
        return "use_bidirectional_attention=True: only causal decoders have a density"
    return None


GEMMA = replace(llama_like("gemma", "gemma"), norm_kind="rms_plus_one", unsupported=_unsupported)
GEMMA2 = replace(
    GEMMA,
    name="gemma2",
    model_types=("gemma2",),
    norms=BlockNorms(
        before_attention="input_layernorm",
        after_attention="post_attention_layernorm",
        before_mlp="pre_feedforward_layernorm",
        after_mlp="post_feedforward_layernorm",
    ),
    logit_softcap=lambda config: config.final_logit_softcapping,
)
GEMMA3 = replace(GEMMA2, name="gemma3", model_types=("gemma3_text",))
VAULTGEMMA = replace(
    GEMMA2,
    name="vaultgemma",
    model_types=("vaultgemma",),
    norms=BlockNorms(before_attention="input_layernorm", before_mlp="pre_feedforward_layernorm"),
)
