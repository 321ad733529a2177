"""Models with the shapes of well-known ones and random weights, created on the device they run on.

Nothing is downloaded: the cost of a pass depends on shapes and on how many edges each lane keeps.
To make the number of kept edges vary across strata as in a trained model, attention is made uneven
and thresholds are quantiles of the model's own edge weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from problems import STRATA, Work
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel, Qwen3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from densitrace import Threshold
from densitrace.kernels import reference
from densitrace.tracer.nodes import Node
from densitrace.tracer.select import GivenCuts

BATCH_TOKENS = 4096  # longer sequences form a batch of one
MEMORY_LIMIT = 1.3  # peak of a pass without level maps, x plain forward of as many rows
LOGIT_SPREAD = 2.5  # standard deviation of attention logits: weights over several decades
SAMPLED_TARGETS = 16  # per sequence: the targets whose weights set the thresholds
SAMPLED_EDGES = 1 << 18  # per block, at most
LIGHTEST = 1e-4  # share of a node's edges that the sparsest stratum keeps


def _llama(scale: float, **sizes: Any) -> LlamaConfig:
    """Llama 3 family; `scale` is the factor of its rotary embedding."""
    rope = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": scale, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    return LlamaConfig(
        vocab_size=128256, num_attention_heads=32, num_key_value_heads=8, rms_norm_eps=1e-5,
        max_position_embeddings=131072, rope_parameters=rope, **sizes,
    )  # fmt: skip


def llama_1b() -> LlamaConfig:
    """Llama-3.2-1B."""
    return _llama(
        32.0, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, head_dim=64,
        tie_word_embeddings=True,
    )  # fmt: skip


def llama_8b() -> LlamaConfig:
    """Llama-3.1-8B."""
    return _llama(
        8.0, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, head_dim=128,
        tie_word_embeddings=False,
    )  # fmt: skip


def qwen3_8b() -> Qwen3Config:
    """Qwen3-8B."""
    return Qwen3Config(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-6,
        max_position_embeddings=40960, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip


def tiny_llama(vocabulary: int = 4096, blocks: int = 8) -> LlamaConfig:
    """A tiny model for smoke tests on a CPU."""
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=blocks,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip


SHAPES: dict[str, Callable[[], Any]] = {
    "llama-1b": llama_1b,
    "llama-8b": llama_8b,
    "qwen3-8b": qwen3_8b,
}


def random_model(
    config: Any, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> PreTrainedModel:
    """A model of a config with random weights, created on the device, with SDPA."""
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _spread(name, parameter)
    model.eval()
    return model


def _spread(name: str, parameter: Tensor) -> None:
    """Initialise so that matrices preserve the size of unit states, except queries and keys."""
    uneven = LOGIT_SPREAD**0.5 if any(part in name for part in ("q_", "k_")) else 1.0
    if parameter.ndim == 1:  # norms; those of queries and keys, if any, set the logits
        parameter.fill_(uneven)
    elif "embed_tokens" in name:  # tied to the unembedding in one of the shapes: logits of size 1
        parameter.normal_(0, parameter.shape[1] ** -0.5)
    else:
        parameter.normal_(0, uneven * parameter.shape[1] ** -0.5)


# ---- what runs on them -----------------------------------------------------------------------


@dataclass
class WeightSample:
    """Normalised weights of the attention edges into the last few targets of each sequence."""

    shares: list[Tensor] = field(default_factory=list)

    def __call__(self, node: Node, cuts: Tensor) -> None:
        if node.edges is None:
            return
        length = node.total.shape[1]
        rows = slice(max(0, length - SAMPLED_TARGETS), length)
        tile = reference.weight_tile(node.edges, rows)  # [B, H, n, <= T]
        shares = tile / node.total[:, None, rows, None]
        finite = shares[shares.isfinite()]
        self.shares.append(finite[:: 1 + len(finite) // SAMPLED_EDGES].cpu())


def spread_thresholds(work: Work, strata: int) -> Threshold:
    """Thresholds whose kept shares of the attention edges are spaced evenly in log."""
    sample = WeightSample()
    nothing = GivenCuts([torch.inf])
    work.tracing.loop(work.batch, nothing, masked_lanes=False, observers=(sample,)).run()
    shares = torch.cat(sample.shares).double().numpy()
    kept = np.geomspace(LIGHTEST, 0.9, strata)
    return Threshold(np.quantile(shares, 1 - kept))


def device_work(
    model: PreTrainedModel,
    length: int,
    strata: int = STRATA,
    rows: int | None = None,
    text: Sequence[int] | None = None,
    **settings: Any,
) -> Work:
    """Passes over one batch of a text's tokens, or of random ones.

    The batch has `rows` sequences; by default as many as fit into `BATCH_TOKENS`, at least one.
    """
    rows = rows or max(1, BATCH_TOKENS // length)
    if text is None:
        generator = torch.Generator().manual_seed(length)
        size = (rows * length,)
        text = torch.randint(model.config.vocab_size, size, generator=generator).tolist()
    sequences = [text[row * length : (row + 1) * length] for row in range(rows)]
    work = Work(model, sequences, Threshold([0.5]), **settings)
    work.rule = spread_thresholds(work, strata)
    return work
