"""Hashes that identify a model: of its weights, config and tokenizer."""

import hashlib
import json
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch

from .models import Decoder, contents, stored

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Config entries that do not change what the model computes.
_IRRELEVANT = (
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "quantization_config",  # covered by the hash of the weights
    "transformers_version",
    "use_cache",
)


class WeightHash:
    """`weight_hash` of a model, computed again only when its weights have changed."""

    def __init__(self) -> None:
        self._known: tuple[Hashable, str] | None = None

    def of(self, decoder: Decoder) -> str:
        """SHA-256 in hex of the names, dtypes, shapes and bytes of all weights."""
        weights = decoder.model.state_dict()
        state = tuple(weights), contents(weights.values())
        if self._known is None or self._known[0] != state:
            self._known = state, weight_hash(decoder)
        return self._known[1]


def weight_hash(decoder: Decoder) -> str:
    """SHA-256 in hex of the names, dtypes, shapes and bytes of all weights."""
    digest = hashlib.sha256()
    weights = {  # without what `torch.compile` adds to the names
        name.replace("_orig_mod.", ""): tensor
        for name, tensor in decoder.model.state_dict().items()
    }
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        for piece in stored(decoder.value(name, tensor)):
            data = piece.cpu().contiguous().flatten().view(torch.uint8)
            digest.update(data.numpy().data)
    return digest.hexdigest()


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase | None") -> str:
    """SHA-256 in hex of a tokenizer's vocabulary and rules; empty without a tokenizer."""
    if tokenizer is None:
        return ""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        return _text_hash(repr(sorted(tokenizer.get_vocab().items())))
    fast = type(fast).from_str(fast.to_str())
    fast.no_padding()  # padding and truncation are settings of the last call, not rules
    fast.no_truncation()
    return _text_hash(fast.to_str())


def config_hash(config: Any) -> str:
    """SHA-256 in hex of the entries of a config that affect what the model computes."""
    entries = config.to_diff_dict()
    relevant = {name: value for name, value in entries.items() if name not in _IRRELEVANT}
    return _text_hash(json.dumps(relevant, sort_keys=True, default=str))


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
