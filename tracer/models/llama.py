"""Llama and families with the same wiring: pre-norm, RMSNorm, gated MLP."""

from torch import Tensor, nn

from .architecture import Architecture, BlockNorms


def _values(attention: nn.Module, states: Tensor) -> Tensor:
    values: Tensor = attention.get_submodule("v_proj")(states)
    return values


PRE_NORM = BlockNorms(before_attention="input_layernorm", before_mlp="post_attention_layernorm")
ONE_NORM = BlockNorms(before_attention="input_layernorm", before_mlp="input_layernorm")


def llama_like(name: str, *model_types: str) -> Architecture:
    """The declaration of Llama, for families with the same wiring and module names."""
    return Architecture(
        name=name,
        model_types=model_types,
        blocks="model.layers",
        final_norm="model.norm",
        attention="self_attn",
        output_projection="o_proj",
        mlp="mlp",
        values=_values,
        norms=PRE_NORM,
    )


LLAMA = llama_like("llama", "llama")

# Families with the same names and wiring, which differ only inside attention and MLP.
SAME_AS_LLAMA = tuple(
    llama_like(name, name)
    for name in (
        "arcee",
        "aria_text",
        "cwm",
        "dots1",
        "ernie4_5",
        "ernie4_5_moe",
        "exaone",
        "exaone_moe",
        "flint",
        "gpt_oss",
        "helium",
        "hunyuan_v1_dense",
        "hunyuan_v1_moe",
        "hy_v3",
        "internlm3",
        "iquestcoder",
        "mellum",
        "minimax_m2",
        "seed_oss",
        "smollm3",
        "solar_open",
    )
)
