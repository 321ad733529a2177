"""Hashes that identify a model: of its weights, config and tokenizer."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch

from .models import Decoder, stored

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


def weight_hash(decoder: Decoder) -> str:
    """SHA-256 in hex of the names, dtypes, shapes and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(decoder.model.state_dict().items()):
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
