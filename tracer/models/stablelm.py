"""StableLM: Llama's names, LayerNorm; in parallel after one norm or, by the config, in sequence."""

from dataclasses import replace
from typing import Any

from .architecture import BlockNorms
from .llama import ONE_NORM, PRE_NORM, llama_like


def _norms(config: Any) -> BlockNorms:
    return ONE_NORM if config.use_parallel_residual else PRE_NORM


STABLELM = replace(
    llama_like("stablelm", "stablelm"),
    norm_kind="layer",
    norms=_norms,
    parallel=lambda config: config.use_parallel_residual,
)
