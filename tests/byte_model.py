"""A model small enough to scan with in a test: a tiny Llama with a byte-level tokenizer."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS = "<bos>"
BYTES = 256  # ids of the tokenizer: one per byte, then BOS


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, BOS at the start of a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {**{symbol: index for index, symbol in enumerate(alphabet)}, BOS: BYTES}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, BYTES)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS)


def byte_model(vocabulary: int = BYTES + 1, seed: int = 0) -> LlamaForCausalLM:
    """Two blocks, grouped heads, uneven predictions."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config)


def save(folder: Path, model: LlamaForCausalLM) -> Path:
    """Save a model and the byte tokenizer to a folder."""
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
