"""GPT-J and CodeGen: parallel behind one LayerNorm, attention of their own."""

from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn.functional import linear

from .architecture import Architecture, BlockNorms, OwnAttention
from .linear import is_plain


def _codegen_values(attention: Any, states: Tensor) -> Tensor:
    """The middle of the three parts (query, value, key) of each quarter of the fused projection."""
    fused, size = attention.qkv_proj, attention.embed_dim // 4
    if not is_plain(fused):
        whole: Tensor = fused(states)
        return whole.unflatten(-1, (4, 3, size))[..., 1, :].flatten(-2)
    return linear(states, fused.weight.unflatten(0, (4, 3, size))[:, 1].flatten(0, 1))


GPTJ = Architecture(
    name="gptj",
    model_types=("gptj",),
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    attention="attn",
    output_projection="out_proj",
    mlp="mlp",
    values=lambda attention, states: attention.v_proj(states),
    norms=BlockNorms(before_attention="ln_1", before_mlp="ln_1"),
    norm_kind="layer",
    own_attention=OwnAttention("_attn"),
    learned_positions=True,
    parallel=lambda config: True,
)
CODEGEN = replace(GPTJ, name="codegen", model_types=("codegen",), values=_codegen_values)
