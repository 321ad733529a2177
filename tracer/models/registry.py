"""Registry of architecture declarations by `config.model_type`."""

from typing import Any

from ...errors import ModelError
from .architecture import Architecture

ARCHITECTURES: dict[str, Architecture] = {}  # by model type


def declare(architecture: Architecture) -> None:
    """Register a declaration; it replaces earlier ones for the same model types."""
    for model_type in architecture.model_types:
        ARCHITECTURES[model_type] = architecture


def architecture_of(config: Any) -> Architecture:
    """Look up the declaration for a model's config.

    Raises:
        ModelError: the model type is not declared.
    """
    model_type = getattr(config, "model_type", None)
    if model_type not in ARCHITECTURES:
        raise ModelError(
            f"model_type={model_type!r} is not a declared architecture "
            f"({', '.join(sorted(ARCHITECTURES))}); docs/declare-architecture.md shows how to "
            "declare it"
        )
    return ARCHITECTURES[model_type]
