"""Gemma, VaultGemma: RMSNorm with weight 1 + w; Gemma 2 to 4 (text): norms after branches too."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from .architecture import BlockNorms, SharedValues, TokenInput
from .llama import llama_like


def _unsupported(config: Any) -> str | None:
    if getattr(config, "use_bidirectional_attention", False):
        return "use_bidirectional_attention=True: only causal decoders have a density"
    return None


_SANDWICH = BlockNorms(
    before_attention="input_layernorm",
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
)

GEMMA = replace(llama_like("gemma", "gemma"), norm_kind="rms_plus_one", unsupported=_unsupported)
GEMMA2 = replace(
    GEMMA,
    name="gemma2",
    model_types=("gemma2",),
    norms=_SANDWICH,
    logit_softcap=lambda config: config.final_logit_softcapping,
)
GEMMA3 = replace(GEMMA2, name="gemma3", model_types=("gemma3_text",))
VAULTGEMMA = replace(
    GEMMA2,
    name="vaultgemma",
    model_types=("vaultgemma",),
    norms=BlockNorms(before_attention="input_layernorm", before_mlp="pre_feedforward_layernorm"),
)


def _normed_values(attention: Any, states: Tensor) -> Tensor:
    """Values from their own projection or the keys', normalised per head."""
    projection = attention.k_proj if attention.v_proj is None else attention.v_proj
    by_head = projection(states).unflatten(-1, (-1, attention.head_dim))
    values: Tensor = attention.v_norm(by_head)
    return values.flatten(-2)


def _mlp(block: Any, states: Tensor) -> Tensor:
    """The MLP from states before any norm, since experts have a separate one."""
    dense: Tensor = block.mlp(block.pre_feedforward_layernorm(states))
    if not getattr(block, "enable_moe_block", False):
        return dense
    rows = states.flatten(0, -2)
    _, weights, chosen = block.router(rows)
    experts: Tensor = block.experts(block.pre_feedforward_layernorm_2(rows), chosen, weights)
    experts = block.post_feedforward_layernorm_2(experts.view_as(states))
    dense = block.post_feedforward_layernorm_1(dense)
    return dense + experts


def _unsupported4(config: Any) -> str | None:
    if config.use_bidirectional_attention == "all":
        return "use_bidirectional_attention='all': only causal decoders have a density"
    if config.num_kv_shared_layers == config.num_hidden_layers:
        return "num_kv_shared_layers=num_hidden_layers: it reads another model's keys and values"
    return None


def _value_blocks(config: Any) -> list[int]:
    """The last blocks read what the last block of their type before them has computed."""
    first = config.num_hidden_layers - config.num_kv_shared_layers
    types = config.layer_types
    last = {kind: block for block, kind in enumerate(types[:first])}
    return [*range(first), *(last[kind] for kind in types[first:])]


def _added(block: Any, states: Tensor, own: Tensor) -> Tensor:
    """What a block adds of its own embedding of each token."""
    gate = block.act_fn(block.per_layer_input_gate(states))
    added: Tensor = block.post_per_layer_input_norm(block.per_layer_projection(gate * own))
    return added


GEMMA4 = replace(
    GEMMA2,
    name="gemma4_text",
    model_types=("gemma4_text", "gemma4_unified_text"),
    mlp=_mlp,
    values=_normed_values,
    norms=replace(_SANDWICH, before_mlp=None),
    norm_kind="rms",
    shared_values=SharedValues(
        _value_blocks, "shared_kv_states", lambda attention: attention.layer_type
    ),
    token_input=TokenInput("per_layer_input", _added),
    block_scale="layer_scalar",
    unsupported=_unsupported4,
)
