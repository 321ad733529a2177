"""Tile up a trained model: the shapes of a large model with the attention of a small one.

The cost of some kernels depends on how uneven attention is, which random weights do not show. Each
component of the small model's states is repeated in the large model's, so that norms, attention and
MLPs compute the same as before; the logits are equal up to rounding, unless blocks are repeated.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Enlargement:
    """Factor by which each dimension grows.

    Attributes:
        hidden: width of the residual stream.
        heads: number of query heads, and of key/value heads.
        head_dim: width of each head.
        inner: width of the MLP.
        blocks: each block is repeated this often, its contributions divided by the same factor.
    """

    hidden: int = 1
    heads: int = 1
    head_dim: int = 1
    inner: int = 1
    blocks: int = 1

    def config(self, small: LlamaConfig) -> LlamaConfig:
        """The config of the large model."""
        times = {
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.blocks,
        }
        known = small.to_dict()
        return LlamaConfig(**{**known, **{name: n * known[name] for name, n in times.items()}})


LIKE_8B = Enlargement(hidden=20, heads=5, head_dim=4, inner=34, blocks=5)  # for the bundled model


def enlarged(
    small: LlamaForCausalLM,
    by: Enlargement,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
) -> LlamaForCausalLM:
    """Build the large model, with SDPA.

    Args:
        small: a Llama with tied embeddings.
        by: growth factors.
        device: where the model is built.
        dtype: of its weights.
    """
    config = by.config(small.config)
    with torch.device("meta"):
        model: LlamaForCausalLM = LlamaForCausalLM._from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    # Move the small weights first: the large ones are then tiled on the device.
    weights = {name: weight.to(device) for name, weight in small.state_dict().items()}
    large = {name: _like(name, weights, by, small.config).to(dtype) for name in model.state_dict()}
    model.load_state_dict(large, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    model.eval()
    return model


def _like(name: str, weights: dict[str, Tensor], by: Enlargement, small: LlamaConfig) -> Tensor:
    """A weight of the large model."""
    parts = name.split(".")
    if parts[1] == "layers":
        parts[2] = str(int(parts[2]) // by.blocks)
    weight, kind = weights[".".join(parts)], parts[-2]
    match kind:
        case "embed_tokens" | "lm_head":
            return weight.tile(1, by.hidden)
        case "norm":  # the unembedding sums over `hidden` times as many terms
            return weight.tile(by.hidden) / by.hidden
        case "input_layernorm" | "post_attention_layernorm":
            return weight.tile(by.hidden)
        case "q_proj" | "k_proj" | "v_proj":
            heads = weight.unflatten(0, (-1, small.head_dim))
            longer = _spread(heads, by.head_dim)
            if kind == "q_proj":  # scores are divided by the root of the head size
                longer = longer * by.head_dim**0.5
            return _in(longer.tile(by.heads, 1, 1).flatten(0, 1), by.hidden)
        case "o_proj":
            heads = weight.T.unflatten(0, (-1, small.head_dim))
            rows = _spread(heads, by.head_dim).tile(by.heads, 1, 1).flatten(0, 1)
            return rows.T.tile(by.hidden, 1) / (by.heads * by.blocks)
        case "gate_proj" | "up_proj":
            return _in(weight.tile(by.inner, 1), by.hidden)
        case "down_proj":
            return weight.tile(by.hidden, by.inner) / (by.inner * by.blocks)
    raise ValueError(f"{name} is no weight of a Llama")


def _in(weight: Tensor, times: int) -> Tensor:
    """[o, i] -> [o, times * i], for an input repeated `times` times in a row."""
    return weight.tile(1, times) / times


def _spread(heads: Tensor, times: int) -> Tensor:
    """[heads, d, ...] -> [heads, times * d, ...]: fill places that rotate as fast, 0 elsewhere."""
    spread = heads.new_zeros(heads.shape[0], times * heads.shape[1], *heads.shape[2:])
    spread[:, ::times] = heads
    return spread
