"""GPT-1: LayerNorms in the residual stream, none at the end."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from .architecture import BlockNorms, OwnAttention
from .gpt2 import GPT2


def _project(attention: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (
        part.unflatten(-1, (attention.n_head, -1)).transpose(1, 2)
        for part in attention.c_attn(states).chunk(3, -1)
    )
    return query, key, value


OPENAI_GPT = replace(
    GPT2,
    name="openai-gpt",
    model_types=("openai-gpt",),
    final_norm=None,
    norms=BlockNorms(stream_after_attention="ln_1", stream_after_mlp="ln_2"),
    own_attention=OwnAttention(project=_project),
    unsupported=lambda config: None,
)
