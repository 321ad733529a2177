"""OPT and BioGPT: LayerNorm, learned positions, MLP layers that are attributes of the block.

The norms of OPT-350M lie in the residual stream, and it has no final norm.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from .architecture import BlockNorms, learned_positions
from .llama import llama_like

PRE_NORM = BlockNorms(before_attention="self_attn_layer_norm", before_mlp="final_layer_norm")
POST_NORM = BlockNorms(
    stream_after_attention="self_attn_layer_norm", stream_after_mlp="final_layer_norm"
)


def _norms(config: Any) -> BlockNorms:
    return PRE_NORM if config.do_layer_norm_before else POST_NORM


def _final_norm(config: Any) -> str | None:
    present = config.do_layer_norm_before and not config._remove_final_layer_norm
    return "model.decoder.final_layer_norm" if present else None


def _mlp(block: Any, states: Tensor) -> Tensor:
    branch: Tensor = block.fc2(block.activation_fn(block.fc1(states)))
    return branch


BIOGPT = replace(
    llama_like("biogpt", "biogpt"),
    blocks="biogpt.layers",
    final_norm="biogpt.layer_norm",
    output_projection="out_proj",
    mlp=_mlp,
    norms=PRE_NORM,
    norm_kind="layer",
    longest=learned_positions,
)
OPT = replace(
    BIOGPT,
    name="opt",
    model_types=("opt",),
    blocks="model.decoder.layers",
    final_norm=_final_norm,
    norms=_norms,
)
