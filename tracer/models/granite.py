"""Granite: Llama with a factor on each branch; with experts; HyperCLOVA X: norms after branches."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from .architecture import BlockNorms
from .llama import PRE_NORM, llama_like

GRANITE = replace(
    llama_like("granite", "granite", "granite_swa"),
    branch_scale=lambda config: config.residual_multiplier,
    logit_scale=lambda config: 1 / config.logits_scaling,
)
GRANITE_MOE = replace(
    GRANITE, name="granitemoe", model_types=("granitemoe",), mlp="block_sparse_moe"
)


def _shared(block: Any, states: Tensor) -> Tensor:
    """The experts, plus the shared MLP if there is one."""
    experts: Tensor = block.block_sparse_moe(states)
    return experts if block.shared_mlp is None else experts + block.shared_mlp(states)


GRANITE_SHARED = replace(
    GRANITE,
    name="granitemoeshared",
    model_types=("granitemoeshared", "granitemoe_swa"),
    mlp=_shared,
)


def _norms(config: Any) -> BlockNorms:
    if not config.use_post_norm:
        return PRE_NORM
    return replace(PRE_NORM, after_attention="post_norm1", after_mlp="post_norm2")


HYPERCLOVAX = replace(
    GRANITE,
    name="hyperclovax",
    model_types=("hyperclovax",),
    norms=_norms,
    logit_scale=lambda config: config.logits_scaling,
)
