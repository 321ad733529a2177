"""MPT: LayerNorm without biases, ALiBi, a fused projection; an MLP that adds the residual."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .alibi import by_position
from .architecture import BlockNorms, OwnAttention
from .bloom import BLOOM
from .linear import last_outputs
from .llama import LLAMA


def _project(attention: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    fused = _clipped(attention, attention.Wqkv(states))
    query, key, value = fused.unflatten(-1, (3, attention.n_heads, -1)).movedim((2, 3), (0, 2))
    return query, key, value


def _values(attention: Any, states: Tensor) -> Tensor:
    """The values are the last third of the fused projection."""
    values = last_outputs(attention.Wqkv, states, attention.hidden_size)
    return _clipped(attention, values)


def _clipped(attention: Any, projected: Tensor) -> Tensor:
    bound = attention.clip_qkv
    return projected.clamp(-bound, bound) if bound else projected


def _key_bias(attention: Any, positions: Tensor, dtype: torch.dtype) -> Tensor:
    """The biases in float32, whatever the model's dtype."""
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    heads, length = attention.n_heads, positions.shape[1]
    table = build_mpt_alibi_tensor(heads, length, device=positions.device)
    return by_position(table[:, 0], positions)


MPT = replace(
    BLOOM,
    name="mpt",
    model_types=("mpt",),
    blocks="transformer.blocks",
    final_norm="transformer.norm_f",
    attention="attn",
    output_projection="out_proj",
    mlp=lambda block, states: block.ffn(states, states.new_zeros(())),
    values=_values,
    norms=BlockNorms(before_attention="norm_1", before_mlp="norm_2"),
    own_attention=OwnAttention(
        project=_project,
        arguments=lambda attention: {"scaling": attention.softmax_scale},
        key_bias=_key_bias,
        reads_mask=True,
    ),
    unsupported=LLAMA.unsupported,
)
