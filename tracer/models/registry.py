"""Which declaration covers a model, by its `config.model_type`."""

from typing import Any

from ...errors import ModelError
from .architecture import Architecture

ARCHITECTURES: dict[str, Architecture] = {}  # by model type


def declare(architecture: Architecture) -> None:
    """Make a declaration known; a later one for the same model type replaces it."""
    for model_type in architecture.model_types:
        ARCHITECTURES[model_type] = architecture


def architecture_of(config: Any) -> Architecture:
    """The declaration that covers a model with this config; ModelError where none does."""
    model_type = getattr(config, "model_type", None)
    if model_type not in ARCHITECTURES:
        raise ModelError(
            f"model_type={model_type!r} is not a declared architecture "
            f"({', '.join(sorted(ARCHITECTURES))}); docs/declare-architecture.md shows how to "
            "declare it"
        )
    return ARCHITECTURES[model_type]
