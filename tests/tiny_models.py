"""A tiny seeded decoder of every family, random enough that nothing is trivially 0 or 1.

    model = tiny_model("gemma3")

Every model has a vocabulary of 64, at most 64 positions, 4 heads, and float32 weights. Norm
weights, norm biases and projection biases are random, attention is uneven, and predictions are far
from uniform. Families that support them have 2 key/value heads and a window of `WINDOW`.

Models of `FURTHER` differ in what their attention and MLP do, or in one step of the wiring: fewer
tests need them.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 64
WINDOW = 5
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "attn_implementation": "eager",
}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "tie_word_embeddings": False}


def llama() -> PreTrainedModel:
    """Grouped heads, with the optional biases of the family."""
    return LlamaForCausalLM(
        LlamaConfig(**GROUPED, num_hidden_layers=3, attention_bias=True, mlp_bias=True)
    )


def mistral() -> PreTrainedModel:
    """A window on every block."""
    return MistralForCausalLM(MistralConfig(**GROUPED, num_hidden_layers=3, sliding_window=WINDOW))


def qwen2() -> PreTrainedModel:
    """Biases on queries, keys and values; a window on blocks 1 and 2."""
    config = Qwen2Config(
        **GROUPED,
        num_hidden_layers=3,
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=1,
    )
    return Qwen2ForCausalLM(config)


def qwen3() -> PreTrainedModel:
    """Norms on each head's queries and keys, heads wider than hidden / heads, windowed block 2."""
    config = Qwen3Config(
        **GROUPED,
        num_hidden_layers=3,
        head_dim=12,
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=2,
    )
    return Qwen3ForCausalLM(config)


def olmo2() -> PreTrainedModel:
    """Norms after attention and MLP; full-width query/key norm; a bias inside the normed branch."""
    return Olmo2ForCausalLM(Olmo2Config(**GROUPED, num_hidden_layers=3, attention_bias=True))


def gemma3() -> PreTrainedModel:
    """Norms before and after, two rotary bases, windows on blocks 0 and 2, odd query scale."""
    config = Gemma3TextConfig(
        **GROUPED,
        num_hidden_layers=4,
        head_dim=12,
        query_pre_attn_scalar=20,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
        },
    )
    return Gemma3ForCausalLM(config)


def gpt2() -> PreTrainedModel:
    """LayerNorm, learned positions, biases everywhere, tied unembedding."""
    config = GPT2Config(**SIZES, n_layer=3, n_inner=48, tie_word_embeddings=True)
    return GPT2LMHeadModel(config)


def _gpt_neox(parallel: bool) -> PreTrainedModel:
    config = GPTNeoXConfig(
        **SIZES,
        num_hidden_layers=3,
        use_parallel_residual=parallel,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
        },
    )
    return GPTNeoXForCausalLM(config)


def gpt_neox() -> PreTrainedModel:
    """Parallel blocks, LayerNorm, half of each head rotated."""
    return _gpt_neox(parallel=True)


def gpt_neox_sequential() -> PreTrainedModel:
    """The same family with its MLP after its attention."""
    return _gpt_neox(parallel=False)


BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    builder.__name__: builder
    for builder in (llama, mistral, qwen2, qwen3, olmo2, gemma3, gpt2, gpt_neox)
}
FAMILIES = tuple(BUILDERS)
VARIANTS = (*FAMILIES, "gpt_neox_sequential")  # every wiring, some families twice

_WINDOWS: dict[str, Any] = {
    "sliding_window": WINDOW,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
_SHARED_EXPERTS: dict[str, Any] = {  # with one block without experts
    **_EXPERTS,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_MIXED: dict[str, Any] = {**_EXPERTS, "mlp_layer_types": ["dense", "sparse", "sparse"]}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
_INDEXED: dict[str, Any] = {"index_topk": 64, "index_n_heads": 2, "index_head_dim": 8}
_GRANITE: dict[str, Any] = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.3,
    "logits_scaling": 2.0,
    "attention_bias": True,
}


_GEMMA2: dict[str, Any] = {
    **_WINDOWS,
    "head_dim": 12,
    "attention_bias": True,
    "query_pre_attn_scalar": 20,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}
_SMALL: dict[str, Any] = {  # parts of a model that text alone does not run
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_blocks": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "crop_size": 28,
    "patch_size": 14,
}
_OLDER: dict[str, Any] = {"n_inner": 48, "num_key_value_heads": 4}


def _rope(**settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, **settings}}


_HALF = _rope(partial_rotary_factor=0.5)

# Config settings beyond `GROUPED`, by model type unless they name another.
_FURTHER: dict[str, dict[str, Any]] = {
    "apertus": {"head_dim": 12, "attention_bias": True},
    "apertus1p5_text": {"head_dim": 12, "attention_bias": True},
    "arcee": {"attention_bias": True, "mlp_bias": True},
    "aria_text": {
        "attention_bias": True,
        "mlp_bias": True,
        "moe_num_experts": 4,
        "moe_topk": 2,
        "moe_num_shared_experts": 2,
    },
    "axk1": {**_LATENT, **_MIXED, **_SHARED_EXPERTS, "attention_bias": True},
    "biogpt": {"num_key_value_heads": 4},
    "bitnet": {"attention_bias": True},
    "cohere": {"use_qk_norm": True, "attention_bias": True, "logit_scale": 0.3},
    "cohere2": {**_WINDOWS, "head_dim": 12, "attention_bias": True, "logit_scale": 0.3},
    "cohere_compass_text": {
        **_WINDOWS,
        "head_dim": 12,
        "attention_bias": True,
        "logit_scale": 0.3,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta, "mrope_section": [2, 2, 2]}
            for kind, theta in {"full_attention": 1e4, "sliding_attention": 1e3}.items()
        },
    },
    "cohere2_moe": {
        **_WINDOWS,
        **_MIXED,
        "num_shared_experts": 1,
        "head_dim": 12,
        "attention_bias": True,
        "logit_scale": 0.3,
    },
    "ctrl": {"num_key_value_heads": 4, "dff": 48},
    "cwm": {**_WINDOWS, "head_dim": 12},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 3,
        "attn_config": {"clip_qkv": 2.0, "kv_n_heads": 2, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {**_LATENT, **_SHARED_EXPERTS, "attention_bias": True},
    "deepseek_v3": {**_LATENT, **_SHARED_EXPERTS, "attention_bias": True},
    "deepseek_v32": {**_LATENT, **_SHARED_EXPERTS, **_INDEXED, "attention_bias": True},
    "bloom": {"num_key_value_heads": 4},
    "codegen": {**_OLDER, "rotary_dim": 4},
    "dots1": {**_SHARED_EXPERTS, **_WINDOWS, "head_dim": 12, "attention_bias": True},
    "ernie4_5": {"use_bias": True, "head_dim": 12},
    "ernie4_5_moe": {
        **_EXPERTS,
        "use_bias": True,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 2,
        "moe_layer_interval": 1,
        "moe_num_shared_experts": 1,
    },
    "exaone": {"head_dim": 12, "attention_bias": True, "mlp_bias": True},
    "exaone4": {**_WINDOWS, "sliding_window_pattern": None, "head_dim": 12},
    "exaone_moe": {
        **_SHARED_EXPERTS,
        **_WINDOWS,
        "sliding_window_pattern": None,
        "num_shared_experts": 1,
        "head_dim": 12,
    },
    "falcon": {
        **_rope(),
        "num_key_value_heads": 4,
        "num_kv_heads": 2,
        "new_decoder_architecture": True,
        "bias": True,
        "ffn_hidden_size": 48,
    },
    "falcon_rw": {
        "model_type": "falcon",
        "num_key_value_heads": 4,
        "alibi": True,
        "attn_implementation": "sdpa",  # transformers' eager attention adds the biases twice
        "multi_query": False,
        "parallel_attn": False,
        "bias": True,
        "ffn_hidden_size": 48,
    },
    "flex_olmo": {**_EXPERTS, "head_dim": 12, "attention_bias": True},
    "flint": {**_WINDOWS, **_SHARED_EXPERTS, "mlp_only_layers": [0], "head_dim": 12},
    "gemma": {"head_dim": 12, "attention_bias": True},
    "gemma2": _GEMMA2,
    "gemma4_text": {
        **_EXPERTS,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "sliding_window": WINDOW,
        "head_dim": 12,
        "global_head_dim": 24,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "final_logit_softcapping": 3.0,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "top_k_experts": 2,
    },
    "gemma4_shared": {  # E2B, E4B: the last two blocks read keys and values of 2 and 1
        "model_type": "gemma4_text",
        "num_hidden_layers": 5,
        "layer_types": [
            "sliding_attention",
            "full_attention",
            "sliding_attention",
            "sliding_attention",
            "full_attention",
        ],
        "sliding_window": WINDOW,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "head_dim": 12,
        "global_head_dim": 24,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
    },
    "glm": {**_HALF, "head_dim": 12, "attention_bias": True},
    "glm4": {**_HALF, "head_dim": 12, "attention_bias": True},
    "glm4_moe": {**_SHARED_EXPERTS, **_HALF, "head_dim": 12, "use_qk_norm": True},
    "glm4_moe_lite": {**_LATENT, **_MIXED, **_SHARED_EXPERTS, "attention_bias": True},
    "glm_moe_dsa": {
        **_LATENT,
        **_SHARED_EXPERTS,
        **_INDEXED,
        "attention_bias": True,
        "indexer_types": ["full", "shared", "full"],
    },
    "gpt_bigcode": {**_OLDER, "num_key_value_heads": 1},
    "gpt_oss": {**_WINDOWS, **_EXPERTS, **_rope(), "head_dim": 12},
    "gpt_neo": {
        **_OLDER,
        "attention_types": [[["global", "local", "local"], 1]],
        "window_size": WINDOW,
    },
    "gptj": {**_OLDER, "rotary_dim": 4},
    "granite": {**_GRANITE, "mlp_bias": True},
    "granite_swa": {**_GRANITE, **_WINDOWS, "layer_rope_theta": [1e4, 0, 1e2]},
    "granitemoe": {**_GRANITE, **_EXPERTS},
    "granitemoe_swa": {**_GRANITE, **_WINDOWS, **_EXPERTS, "shared_intermediate_size": 16},
    "granitemoehybrid": {
        **_GRANITE,
        **_EXPERTS,
        "shared_intermediate_size": 16,
        "position_embedding_type": "rope",
        "layer_types": ["attention"] * 3,
        "mamba_n_heads": 4,
    },
    "granitemoeshared": {**_GRANITE, **_EXPERTS, "shared_intermediate_size": 16},
    "helium": {"head_dim": 8, "attention_bias": True},
    "hunyuan_v1_dense": {"head_dim": 12, "attention_bias": True},
    "hunyuan_v1_moe": {**_EXPERTS, "moe_topk": 2, "head_dim": 12, "attention_bias": True},
    "hy_v3": {**_MIXED, "num_shared_experts": 1, "head_dim": 12, "attention_bias": True},
    "hyperclovax": {**_GRANITE, "head_dim": 12, "mlp_bias": True},
    "internlm3": {"head_dim": 12, "attention_bias": True, "mlp_bias": True},
    "iquestcoder": {"head_dim": 12},
    "jais2": {"head_dim": 12},
    "kolibri1": {
        **_WINDOWS,
        **_EXPERTS,
        "shared_expert_intermediate_size": 16,
        "head_dim": 12,
    },
    "llama4_text": {
        **_EXPERTS,
        "head_dim": 12,
        "attention_bias": True,
        "intermediate_size_mlp": 48,
        "moe_layers": [1],
        "no_rope_layers": [1, 1, 0],
    },
    "mellum": {**_MIXED, **_WINDOWS, "head_dim": 12, "attention_bias": True},
    "mimo_v2_flash": {
        **_WINDOWS,
        **_MIXED,
        **_SHARED_EXPERTS,
        "head_dim": 12,
        "v_head_dim": 6,
        "attention_bias": True,
        "attention_value_scale": 0.7,
    },
    "minicpm3": {
        **_LATENT,
        "attention_bias": True,
        "mlp_bias": True,
        "scale_emb": 3,
        "scale_depth": 0.7,
        "dim_model_base": 16,
    },
    "minimax_m2": {**_EXPERTS, **_HALF, "head_dim": 12},
    "ministral": {**_WINDOWS, "head_dim": 12},
    "ministral3": {
        **_rope(
            rope_type="yarn",
            factor=8.0,
            original_max_position_embeddings=8,
            llama_4_scaling_beta=0.5,
        ),
        "sliding_window": WINDOW,
        "head_dim": 12,
    },
    "mixtral": {**_EXPERTS, "sliding_window": WINDOW},
    "modernbert-decoder": {
        "layer_types": _WINDOWS["layer_types"],
        "local_attention": 2 * WINDOW,
        "num_key_value_heads": 4,
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
        "pad_token_id": 0,
    },
    "mpt": {"num_key_value_heads": 4, "attn_config": {"clip_qkv": 2.0, "softmax_scale": 0.5}},
    "nanochat": {"head_dim": 12, "attention_bias": True, "final_logit_softcapping": 3.0},
    "nemotron": {**_HALF, "head_dim": 12, "attention_bias": True, "mlp_bias": True},
    "olmo": {"clip_qkv": 2.0, "head_dim": 12, "attention_bias": True},
    "olmo3": {**_WINDOWS, "attention_bias": True},
    "olmoe": {**_EXPERTS, "clip_qkv": 2.0, "attention_bias": True},
    "openai-gpt": {"num_key_value_heads": 4},
    "opt": {"num_key_value_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "opt_post": {
        "model_type": "opt",
        "num_key_value_heads": 4,
        "ffn_dim": 48,
        "word_embed_proj_dim": 24,
        "do_layer_norm_before": False,
    },
    "phi": {**_HALF, "qk_layernorm": True},
    "phi3": {**_HALF, "sliding_window": WINDOW},
    "phi4_multimodal": {
        **_HALF,
        "sliding_window": WINDOW,
        "vision_config": _SMALL,
        "audio_config": {**_SMALL, "nemo_conv_channels": 16, "ext_pw_out_channel": 16},
    },
    "phimoe": {**_EXPERTS, "attention_bias": True, "lm_head_bias": True},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 16, "mlp_only_layers": [0]},
    "qwen3_moe": {
        **_EXPERTS,
        "head_dim": 12,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
    },
    "sarvam_mla": {**_LATENT, **_SHARED_EXPERTS, "attention_bias": True},
    "sarvam_moe": {**_SHARED_EXPERTS, "head_dim": 12, "attention_bias": True},
    "seed_oss": {"head_dim": 12, "attention_bias": True, "attention_out_bias": True},
    "smollm3": {
        **_WINDOWS,
        "attention_bias": True,
        "no_rope_layers": [1, 0, 1],
        "use_sliding_window": True,
    },
    "solar_open": {**_SHARED_EXPERTS, "head_dim": 12, "attention_bias": True},
    "stablelm": {**_HALF, "use_qkv_bias": True, "qk_layernorm": True},
    "stablelm_parallel": {**_HALF, "model_type": "stablelm", "use_parallel_residual": True},
    "starcoder2": {"use_bias": True, "sliding_window": WINDOW},
    "vaultgemma": _GEMMA2,
    "xglm": {"num_key_value_heads": 4, "ffn_dim": 48},
    "youtu": {**_LATENT, "attention_bias": True},
}
FURTHER = {  # the oldest supported transformers lacks some
    family: said
    for family, said in _FURTHER.items()
    if said.get("model_type", family) in CONFIG_MAPPING
}

_SHARP = ("cohere_compass_text", "gpt_neo")  # attention would be on one token
_ONE_PLUS = ("gemma", "nemotron", "vaultgemma")  # norm weights are stored minus 1


def _further(family: str) -> PreTrainedModel:
    settings = {"model_type": family, **GROUPED, "num_hidden_layers": 3, **FURTHER[family]}
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    return model


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A tiny model of `VARIANTS` or `FURTHER`, the same for the same seed, in eval mode."""
    builders = {**BUILDERS, "gpt_neox_sequential": gpt_neox_sequential}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _further(family) if family in FURTHER else builders[family]()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                _randomise(name, parameter, one_plus=family.startswith(_ONE_PLUS))
                if family in _SHARP and "q_proj" in name:
                    parameter.mul_(0.5)
            for name, buffer in model.named_buffers():
                if name.endswith("layer_scalar"):  # multiplies a block's output
                    buffer.fill_(0.7)
    model.train(False)
    return model


def _randomise(name: str, parameter: torch.nn.Parameter, one_plus: bool) -> None:
    if parameter.ndim == 1 or "norm" in name.split(".")[-2]:
        is_norm_weight = name.endswith("weight")
        centre = 1.0 if is_norm_weight and not one_plus else 0.0
        parameter.normal_(centre, 0.3)
    elif any(part in name for part in ("embed", "wte", "wpe")):
        parameter.normal_(0, 0.3)
    else:
        # Square matrices of this spread double a normed vector: attention far from uniform.
        parameter.normal_(0, 1.5 / 32**0.5)
