"""XGLM: as BioGPT, with sinusoidal positions; its attention computes scores and outputs inline."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from .architecture import OwnAttention
from .gpt2 import GPT2
from .llama import LLAMA
from .opt import BIOGPT


def _project(attention: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (
        projection(states).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return query, key, value


XGLM = replace(
    BIOGPT,
    name="xglm",
    model_types=("xglm",),
    blocks="model.layers",
    final_norm="model.layer_norm",
    own_attention=OwnAttention(project=_project, in_tuples=False),
    longest=LLAMA.longest,
    unsupported=GPT2.unsupported,
)
