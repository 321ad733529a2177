"""MiMo-V2-Flash: Llama's wiring, scaled values; windowed blocks have sinks and more KV heads."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from .llama import llama_like


def _values(attention: Any, states: Tensor) -> Tensor:
    values: Tensor = attention.v_proj(states) * attention.v_scale
    return values


MIMO = replace(llama_like("mimo_v2_flash", "mimo_v2_flash"), values=_values)
