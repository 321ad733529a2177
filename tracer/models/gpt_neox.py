"""GPT-NeoX: attention and MLP in parallel (or in sequence, as the config says), LayerNorm."""

from .architecture import Architecture, BlockNorms

GPT_NEOX = Architecture(
    name="gpt_neox",
    model_types=("gpt_neox",),
    blocks="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    attention="attention",
    output_projection="dense",
    mlp="mlp",
    norms=BlockNorms(before_attention="input_layernorm", before_mlp="post_attention_layernorm"),
    norm_kind="layer",
    parallel=lambda config: config.use_parallel_residual,
)
