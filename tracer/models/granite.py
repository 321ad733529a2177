"""Granite: Llama with a factor on each branch; with experts; HyperCLOVA X: norms after branches.

Of Granite 4 the models without Mamba, whose type is still `granitemoehybrid`.
"""

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
    """The experts and the shared MLP; a block may lack one of them."""
    branches = (block.block_sparse_moe, block.shared_mlp)
    outputs: list[Tensor] = [branch(states) for branch in branches if branch is not None]
    return sum(outputs[1:], outputs[0])


GRANITE_SHARED = replace(
    GRANITE,
    name="granitemoeshared",
    model_types=("granitemoeshared", "granitemoe_swa"),
    mlp=_shared,
)


def _unsupported(config: Any) -> str | None:
    if set(config.layers_block_type) == {"full_attention"}:
        return None
    return f"layer_types={config.layers_block_type}: blocks that mix tokens by Mamba"


GRANITE4 = replace(
    GRANITE_SHARED,
    name="granitemoehybrid",
    model_types=("granitemoehybrid",),
    unsupported=_unsupported,
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
