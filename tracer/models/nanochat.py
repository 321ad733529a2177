"""nanochat: Llama's wiring and names, norms without weights, soft-capped logits."""

from dataclasses import replace

from .llama import llama_like

NANOCHAT = replace(
    llama_like("nanochat", "nanochat"),
    logit_softcap=lambda config: config.final_logit_softcapping,
)
