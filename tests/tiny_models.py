"""A tiny seeded decoder of every family, random enough that nothing is trivially 0 or 1.

    model = tiny_model("gemma3")

Every model has a vocabulary of 64, at most 64 positions, 4 heads, and float32 weights. Norm
weights, norm biases and projection biases are random, attention is uneven, and predictions are
far from uniform. Where the family has them there are 2 key/value heads and a window of `WINDOW`.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
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
    """Grouped heads, with the biases that the family may have."""
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
    """Norms on each head's queries and keys, heads wider than hidden / heads, block 2 windowed."""
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


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A tiny model of one of the `VARIANTS`, the same for the same seed, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = {**BUILDERS, "gpt_neox_sequential": gpt_neox_sequential}[family]()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                _randomise(name, parameter, one_plus=family == "gemma3")
    model.train(False)
    return model


def _randomise(name: str, parameter: torch.nn.Parameter, one_plus: bool) -> None:
    if parameter.ndim == 1:
        is_norm_weight = name.endswith("weight")
        centre = 1.0 if is_norm_weight and not one_plus else 0.0
        parameter.normal_(centre, 0.3)
    elif any(part in name for part in ("embed", "wte", "wpe")):
        parameter.normal_(0, 0.3)
    else:
        # Square matrices of this spread double a normed vector: attention far from uniform.
        parameter.normal_(0, 1.5 / 32**0.5)
