"""OLMo-2, 3, FlexOlmo, Exaone-4: norms only after each branch; OLMo and OLMoE: wired like Llama."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from .architecture import BlockNorms
from .llama import llama_like

OLMO2 = replace(
    llama_like("olmo2", "olmo2"),
    norms=BlockNorms(
        after_attention="post_attention_layernorm", after_mlp="post_feedforward_layernorm"
    ),
)
OLMO3 = replace(OLMO2, name="olmo3", model_types=("olmo3",))
FLEX_OLMO = replace(OLMO2, name="flex_olmo", model_types=("flex_olmo",))
EXAONE4 = replace(OLMO2, name="exaone4", model_types=("exaone4",))


def _clipped(attention: Any, states: Tensor) -> Tensor:
    values: Tensor = attention.v_proj(states)
    bound = attention.config.clip_qkv
    return values if bound is None else values.clamp(-bound, bound)


OLMOE = replace(llama_like("olmoe", "olmoe"), values=_clipped)
OLMO = replace(OLMOE, name="olmo", model_types=("olmo",), norm_kind="layer", norm_eps=1e-5)
