"""CTRL: pre-norm, LayerNorm; its attention takes its input three times."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from .architecture import BlockNorms, OwnAttention, learned_positions
from .llama import llama_like


def _project(attention: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (
        projection(states).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for projection in (attention.Wq, attention.Wk, attention.Wv)
    )
    return query, key, value


def _values(attention: Any, states: Tensor) -> Tensor:
    values: Tensor = attention.Wv(states)
    return values


CTRL = replace(
    llama_like("ctrl", "ctrl"),
    blocks="transformer.h",
    final_norm="transformer.layernorm",
    attention="multi_head_attention",
    output_projection="dense",
    mlp="ffn",
    values=_values,
    norms=BlockNorms(before_attention="layernorm1", before_mlp="layernorm2"),
    norm_kind="layer",
    own_attention=OwnAttention(project=_project, in_tuples=False),
    longest=learned_positions,
)
