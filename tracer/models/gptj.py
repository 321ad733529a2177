"""GPT-J and CodeGen: parallel behind one LayerNorm, attention of their own."""

from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn.functional import linear

from .architecture import BlockNorms, OwnAttention
from .linear import is_plain
from .llama import llama_like


def _codegen_values(attention: Any, states: Tensor) -> Tensor:
    """The middle of the three parts (query, value, key) of each quarter of the fused projection."""
    fused, size = attention.qkv_proj, attention.embed_dim // 4
    if not is_plain(fused):
        whole: Tensor = fused(states)
        own: Tensor = whole.unflatten(-1, (4, 3, size))[..., 1, :]
        return own.flatten(-2)
    return linear(states, fused.weight.unflatten(0, (4, 3, size))[:, 1].flatten(0, 1))


GPTJ = replace(
    llama_like("gptj", "gptj"),
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    attention="attn",
    output_projection="out_proj",
    norms=BlockNorms(before_attention="ln_1", before_mlp="ln_1"),
    norm_kind="layer",
    own_attention=OwnAttention("_attn"),
    learned_positions=True,
    parallel=lambda config: True,
)
CODEGEN = replace(GPTJ, name="codegen", model_types=("codegen",), values=_codegen_values)
