"""Cohere, Cohere-2, Compass: attention and MLP in parallel after one LayerNorm, scaled logits."""

from dataclasses import replace
from typing import Any

from .llama import ONE_NORM, llama_like

COHERE = replace(
    llama_like("cohere", "cohere", "cohere2", "cohere_compass_text"),
    norms=ONE_NORM,
    norm_kind="layer",
    parallel=lambda config: True,
    logit_scale=lambda config: config.logit_scale,
)


def _unsupported(config: Any) -> str | None:
    if config.rms_norm_eps is not None:
        return f"rms_norm_eps={config.rms_norm_eps}: its norms are no LayerNorms"
    return None


COHERE2_MOE = replace(
    COHERE, name="cohere2_moe", model_types=("cohere2_moe",), unsupported=_unsupported
)
