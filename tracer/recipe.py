"""What a store is made from, and how two of them differ."""

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
_UNSAID = ("batch_tokens", "arithmetic", "config_hash")


@dataclass(frozen=True)
class Recipe:
    """What a store was made from: two scans may share a store iff their recipes are the same."""

    weight_hash: str
    tokenizer_hash: str
    select: dict[str, Any]  # the rule as asked for: AutoStrata stays AutoStrata
    importance: str
    attention: str
    scope: str
    count: Count
    seed: int
    controls: tuple[str, ...]
    context: int
    corpus_fingerprint: str
    edges: int | None = None  # the stratum whose edges are kept; stores of before have none
    # What runs together and on what, as the last bits of sums depend on it; stores of before do
    # not say.
    batch_tokens: int | None = None
    arithmetic: str | None = None
    config_hash: str | None = None  # nor what weights do not say of the model

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> "Recipe":
        """The recipe among a store's attributes."""
        values = {
            field.name: attributes[field.name]
            for field in fields(cls)
            if field.name in attributes or field.default is MISSING
        }
        return cls(**{**values, "controls": tuple(values["controls"])})

    def difference(self, asked: "Recipe") -> str | None:
        """The first thing that differs, with both values; None where nothing does."""
        for name, there in asdict(self).items():
            here = asdict(asked)[name]
            if name == "controls" and sorted(there) == sorted(here):
                continue  # in whatever order
            if there != here and not (there is None and name in _UNSAID):
                return f"{_NAMES.get(name, name)} is {_short(there)} there, {_short(here)} is asked"
        return None


def _short(value: Any) -> str:
    if isinstance(value, dict):
        values = value.get("values", [value.get("n")])
        return f"{value['name']}({', '.join(f'{number:g}' for number in values)})"
    if value is None:
        return "none"
    text = ", ".join(value) if isinstance(value, list | tuple) else str(value)
    return f"{text[:12]}..." if len(text) == 64 else text or "none"
