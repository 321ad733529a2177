"""OPT and BioGPT: LayerNorm, learned positions, MLP layers that are attributes of the block."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from .architecture import BlockNorms, learned_positions
from .llama import llama_like


def _unsupported(config: Any) -> str | None:
    if not config.do_layer_norm_before:
        return "do_layer_norm_before=False: its norms lie in the residual stream"
    if config._remove_final_layer_norm or not config.layer_norm_elementwise_affine:
        return "it lacks a final norm, or weights of its norms"
    if config.word_embed_proj_dim != config.hidden_size:
        return "word_embed_proj_dim=...: its states are projected before they are unembedded"
    return None


def _mlp(block: Any, states: Tensor) -> Tensor:
    branch: Tensor = block.fc2(block.activation_fn(block.fc1(states)))
    return branch


BIOGPT = replace(
    llama_like("biogpt", "biogpt"),
    blocks="biogpt.layers",
    final_norm="biogpt.layer_norm",
    output_projection="out_proj",
    mlp=_mlp,
    norms=BlockNorms(before_attention="self_attn_layer_norm", before_mlp="final_layer_norm"),
    norm_kind="layer",
    longest=learned_positions,
)
OPT = replace(
    BIOGPT,
    name="opt",
    model_types=("opt",),
    blocks="model.decoder.layers",
    final_norm="model.decoder.final_layer_norm",
    unsupported=_unsupported,
)
