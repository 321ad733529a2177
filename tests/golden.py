"""The golden models and arrays of tests/goldens; the README there says what they hold."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densitrace import Tracer

GOLDENS = Path(__file__).parent / "goldens"
FAMILIES = ("mistral", "qwen2", "qwen3", "olmo2", "gemma3")
LENGTHS = ("T08", "T16")


@cache
def tracer_of(family: str) -> Tracer:
    return Tracer.from_pretrained(GOLDENS / family, device="cpu")


@cache
def golden(family: str, length: str) -> dict[str, NDArray[Any]]:
    with np.load(GOLDENS / family / f"{length}.npz", allow_pickle=False) as arrays:
        return dict(arrays)
