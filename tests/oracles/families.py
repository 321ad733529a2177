"""Where each family keeps its weights, and the building blocks of its layers in float64."""

import math
from dataclasses import dataclass, replace

import numpy as np

from .graph import Floats


@dataclass(frozen=True)
class Family:
    """Where a family keeps its weights, and how its block differs from Llama's."""

    stem: str = "model"
    embedding: str = "embed_tokens"
    blocks: str = "layers"
    final_norm: str | None = "norm"
    head: str = "lm_head"
    before_head: str | None = None  # a layer between the final norm and the head
    attention: str = "self_attn"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    out: str = "self_attn.o_proj"
    pre_out: str | None = None  # norm between the heads and `out`
    mlp: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # gated if three
    pre_attn: str | None = "input_layernorm"
    post_attn: str | None = None
    pre_mlp: str | None = "post_attention_layernorm"
    post_mlp: str | None = None
    stream_attn: str | None = None  # norm of the stream after attention
    stream_mlp: str | None = None  # norm of the stream after the MLP
    epsilon: str = "rms_norm_eps"
    activation: str = "hidden_act"
    layer_norm: bool = False  # centred, with a bias; else RMS
    one_plus: bool = False  # the norm multiplies by 1 + w
    weightless: bool = False  # the norm has no weight
    parallel: bool = False  # regardless of the config
    windowed: bool = False  # every block, unless the config says which


SANDWICH = Family(
    post_attn="post_attention_layernorm",
    pre_mlp="pre_feedforward_layernorm",
    post_mlp="post_feedforward_layernorm",
    activation="hidden_activation",
    one_plus=True,
)

FAMILIES = {
    "llama": Family(),
    "mistral": Family(windowed=True),
    "qwen2": Family(),
    "qwen3": Family(),
    "olmo2": Family(
        pre_attn=None,
        post_attn="post_attention_layernorm",
        pre_mlp=None,
        post_mlp="post_feedforward_layernorm",
    ),
    "gemma3_text": SANDWICH,
    "gpt2": Family(
        stem="transformer",
        embedding="wte",
        blocks="h",
        final_norm="ln_f",
        qkv=("attn.c_attn",),
        out="attn.c_proj",
        mlp=("mlp.c_fc", "mlp.c_proj"),
        pre_attn="ln_1",
        pre_mlp="ln_2",
        epsilon="layer_norm_epsilon",
        activation="activation_function",
        layer_norm=True,
    ),
    "gpt_neox": Family(
        stem="gpt_neox",
        embedding="embed_in",
        final_norm="final_layer_norm",
        qkv=("attention.query_key_value",),
        out="attention.dense",
        mlp=("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        epsilon="layer_norm_eps",
        layer_norm=True,
    ),
}

_GPTJ = replace(
    FAMILIES["gpt2"],
    attention="attn",
    qkv=("attn.v_proj",),
    out="attn.out_proj",
    mlp=("mlp.fc_in", "mlp.fc_out"),
    pre_mlp="ln_1",
    parallel=True,
)

_BLOOM = Family(
    stem="transformer",
    embedding="word_embeddings",
    blocks="h",
    final_norm="ln_f",
    attention="self_attention",
    qkv=("self_attention.query_key_value",),
    out="self_attention.dense",
    epsilon="layer_norm_epsilon",
    layer_norm=True,
)

_MPT = replace(
    _BLOOM,
    blocks="blocks",
    final_norm="norm_f",
    attention="attn",
    qkv=("attn.Wqkv",),
    out="attn.out_proj",
    mlp=("ffn",),
    pre_attn="norm_1",
    pre_mlp="norm_2",
)

_OPT = Family(
    stem="model.decoder",
    final_norm="final_layer_norm",
    out="self_attn.out_proj",
    mlp=("fc1", "fc2"),
    pre_attn="self_attn_layer_norm",
    pre_mlp="final_layer_norm",
    activation="activation_function",
    layer_norm=True,
)

# Families outside `FAMILIES` that do not keep Llama's names and wiring.
FURTHER = {
    **dict.fromkeys(["ministral3", "mixtral", "qwen3_moe"], Family(windowed=True)),
    **dict.fromkeys(["olmo3", "flex_olmo", "exaone4"], FAMILIES["olmo2"]),
    **dict.fromkeys(
        ["cohere", "cohere2", "cohere2_moe", "cohere_compass_text"],
        Family(pre_mlp="input_layernorm", epsilon="layer_norm_eps", layer_norm=True, parallel=True),
    ),
    **dict.fromkeys(
        ["apertus", "apertus1p5_text"],
        Family(pre_attn="attention_layernorm", pre_mlp="feedforward_layernorm"),
    ),
    "ctrl": Family(
        stem="transformer",
        blocks="h",
        final_norm="layernorm",
        attention="multi_head_attention",
        qkv=("multi_head_attention.Wv",),
        out="multi_head_attention.dense",
        mlp=("ffn",),
        pre_attn="layernorm1",
        pre_mlp="layernorm2",
        epsilon="layer_norm_epsilon",
        layer_norm=True,
    ),
    "dbrx": replace(
        _MPT,
        attention="norm_attn_norm.attn",
        qkv=("norm_attn_norm.attn.Wqkv",),
        out="norm_attn_norm.attn.out_proj",
        pre_attn="norm_attn_norm.norm_1",
        pre_mlp="norm_attn_norm.norm_2",
    ),
    "bitnet": Family(pre_out="self_attn.attn_sub_norm"),
    "gemma": Family(one_plus=True),
    "vaultgemma": Family(pre_mlp="pre_feedforward_layernorm", one_plus=True),
    "gemma2": SANDWICH,
    "gemma4_text": replace(SANDWICH, pre_mlp=None, one_plus=False),
    "llama4_text": Family(mlp=("feed_forward",)),
    **dict.fromkeys(["gptj", "codegen"], _GPTJ),
    "bloom": _BLOOM,
    "falcon": replace(_BLOOM, pre_attn="ln_attn", pre_mlp="ln_mlp", parallel=True),
    "falcon_rw": _BLOOM,
    "mpt": _MPT,
    "gpt_bigcode": replace(FAMILIES["gpt2"], attention="attn"),
    "gpt_neo": replace(
        FAMILIES["gpt2"],
        attention="attn",
        qkv=("attn.attention.v_proj",),
        out="attn.attention.out_proj",
    ),
    **dict.fromkeys(
        ["glm4", "kolibri1"],
        Family(post_attn="post_self_attn_layernorm", post_mlp="post_mlp_layernorm"),
    ),
    "granitemoe": Family(mlp=("block_sparse_moe",)),
    **dict.fromkeys(
        ["granitemoeshared", "granitemoe_swa", "granitemoehybrid"],
        Family(mlp=("block_sparse_moe", "shared_mlp")),
    ),
    "hyperclovax": Family(post_attn="post_norm1", post_mlp="post_norm2"),
    "jais2": Family(epsilon="layer_norm_eps", layer_norm=True),
    "modernbert-decoder": Family(
        embedding="embeddings.tok_embeddings",
        final_norm="final_norm",
        head="decoder",
        before_head="lm_head",
        attention="attn",
        qkv=("attn.v_proj",),
        out="attn.Wo",
        pre_attn="attn_norm",
        pre_mlp="mlp_norm",
        epsilon="norm_eps",
        layer_norm=True,
    ),
    "nanochat": Family(weightless=True),
    "nemotron": Family(epsilon="norm_eps", layer_norm=True, one_plus=True),
    "olmo": Family(layer_norm=True, weightless=True),
    "openai-gpt": replace(
        FAMILIES["gpt2"],
        final_norm=None,
        attention="attn",
        pre_attn=None,
        pre_mlp=None,
        stream_attn="ln_1",
        stream_mlp="ln_2",
    ),
    "opt": _OPT,
    "opt_post": replace(
        _OPT,
        final_norm=None,
        pre_attn=None,
        pre_mlp=None,
        before_head="model.decoder.project_out",
        stream_attn="self_attn_layer_norm",
        stream_mlp="final_layer_norm",
    ),
    "biogpt": replace(
        _OPT,
        stem="biogpt",
        final_norm="layer_norm",
        head="output_projection",
        activation="hidden_act",
    ),
    "xglm": replace(_OPT, stem="model", final_norm="layer_norm"),
    "phi": Family(
        final_norm="final_layernorm",
        out="self_attn.dense",
        pre_mlp="input_layernorm",
        epsilon="layer_norm_eps",
        layer_norm=True,
        parallel=True,
    ),
    **dict.fromkeys(
        ["phi3", "phi4_multimodal"], Family(qkv=("self_attn.qkv_proj",), windowed=True)
    ),
    "phimoe": Family(layer_norm=True),
    "stablelm": Family(epsilon="layer_norm_eps", layer_norm=True),
    "stablelm_parallel": Family(
        pre_mlp="input_layernorm", epsilon="layer_norm_eps", layer_norm=True
    ),
    "starcoder2": Family(epsilon="norm_epsilon", layer_norm=True, windowed=True),
}


def silu(x: Floats) -> Floats:
    """x times its logistic."""
    return np.asarray(x / (1 + np.exp(-x)))


def relu(x: Floats) -> Floats:
    """x if positive, else 0."""
    return np.maximum(x, 0)


def gelu(x: Floats) -> Floats:
    """x times the normal distribution function at x."""
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return np.asarray(x * (1 + erf(x / math.sqrt(2))) / 2)


def gelu_tanh(x: Floats) -> Floats:
    """The usual tanh approximation of `gelu`."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return np.asarray(x * (1 + np.tanh(inner)) / 2)


ACTIVATIONS = {
    "silu": silu,
    "relu": relu,
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
}


@dataclass(frozen=True)
class Norm:
    """gamma * (x - mean) / sd + beta for a LayerNorm, gamma * x / rms otherwise."""

    gamma: Floats
    beta: Floats
    epsilon: float
    centred: bool

    def linear(self, e: Floats, at: Floats) -> Floats:
        """Apply the norm's linear part, with its scale at `at`, to e (METHOD §1)."""
        if self.centred:
            e, at = e - e.mean(-1, keepdims=True), at - at.mean(-1, keepdims=True)
        return np.asarray(self.gamma * e / np.sqrt((at**2).mean(-1, keepdims=True) + self.epsilon))

    def __call__(self, x: Floats) -> Floats:
        """The norm of x [..., D]."""
        return self.linear(x, x) + self.beta


def rotate(x: Floats, positions: Floats, theta: float, size: int) -> Floats:
    """Rotary embedding of the first `size` entries of x [heads, T, d], i paired with i + size/2."""
    half = size // 2
    angle = positions[:, None] * theta ** (-np.arange(half) * 2 / size)  # [T, half]
    cos, sin = np.cos(angle), np.sin(angle)
    a, b, rest = x[..., :half], x[..., half:size], x[..., size:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)


def softmax(x: Floats) -> Floats:
    """Softmax over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))
