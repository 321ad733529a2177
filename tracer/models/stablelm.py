"""StableLM: Llama's wiring and names, LayerNorm."""

from dataclasses import replace
from typing import Any

from .llama import llama_like


def _unsupported(config: Any) -> str | None:
    if config.use_parallel_residual:
        return "use_parallel_residual=True: its blocks have one norm for both branches"
    return None


STABLELM = replace(llama_like("stablelm", "stablelm"), norm_kind="layer", unsupported=_unsupported)
