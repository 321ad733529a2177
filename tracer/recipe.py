"""The recipe of a store (model, rule, corpus and options), and how two recipes differ."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from .graph import Count

_NAMES = {
    "weight_hash": "model",
    "config_hash": "model's config",
    "tokenizer_hash": "tokenizer",
    "select": "rule",
    "corpus_fingerprint": "corpus",
}
_MAY_BE_UNKNOWN = ("batch_tokens", "arithmetic", "config_hash")


@dataclass(frozen=True)
class Recipe:
    """What a store is made from: scans may share a store if and only if their recipes are equal."""

    weight_hash: str
    tokenizer_hash: str
    select: dict[str, Any]  # the rule as requested: AutoStrata, not the thresholds it chose
    importance: str
    attention: str
    scope: str
    count: Count
    seed: int
    controls: tuple[str, ...]
    context: int
    corpus_fingerprint: str
    edges: int | None = None  # the stratum whose edges are stored
    # The last bits of sums depend on the batches, and on the device and kernels. These fields are
    # None in older stores.
    batch_tokens: int | None = None
    arithmetic: str | None = None
    config_hash: str | None = None

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> "Recipe":
        """Read the recipe from a store's attributes."""
        values = {
            field.name: attributes[field.name]
            for field in fields(cls)
            if field.name in attributes or field.default is MISSING
        }
        return cls(**{**values, "controls": tuple(values["controls"])})

    def difference(self, other: "Recipe") -> str | None:
        """Describe the first field that differs, with both values; None if none does."""
        for name, there in asdict(self).items():
            here = asdict(other)[name]
            if there != here and not (there is None and name in _MAY_BE_UNKNOWN):
                return f"{_NAMES.get(name, name)} is {_short(there)} there, {_short(here)} here"
        return None


def _short(value: Any) -> str:
    if isinstance(value, dict):
        values = value.get("values", [value.get("n")])
        return f"{value['name']}({', '.join(f'{number:g}' for number in values)})"
    if value is None:
        return "none"
    text = ", ".join(value) if isinstance(value, list | tuple) else str(value)
    return f"{text[:12]}..." if len(text) == 64 else text or "none"
