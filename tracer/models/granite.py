"""Granite: Llama with a factor on what each branch adds; GraniteMoE, with experts."""

from dataclasses import replace

from .llama import llama_like

GRANITE = replace(
    llama_like("granite", "granite"),
    branch_scale=lambda config: config.residual_multiplier,
    logit_scale=lambda config: 1 / config.logits_scaling,
)
GRANITE_MOE = replace(
    GRANITE, name="granitemoe", model_types=("granitemoe",), mlp="block_sparse_moe"
)
