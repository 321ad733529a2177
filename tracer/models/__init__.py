"""The declared architectures. The only place that knows transformers' module names."""

from .architecture import Architecture, BlockNorms, LinearNorm
from .decoder import Block, Decoder, call_on, part_of_call
from .gemma3 import GEMMA3
from .gpt2 import GPT2
from .gpt_neox import GPT_NEOX
from .linear import stored
from .llama import LLAMA
from .loading import load, load_offloaded
from .mistral import MISTRAL
from .offload import OffloadedBlocks
from .olmo2 import OLMO2
from .qwen import QWEN2, QWEN3
from .registry import ARCHITECTURES, architecture_of, declare

for _architecture in (LLAMA, MISTRAL, QWEN2, QWEN3, OLMO2, GEMMA3, GPT2, GPT_NEOX):
    declare(_architecture)

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Block",
    "BlockNorms",
    "Decoder",
    "LinearNorm",
    "OffloadedBlocks",
    "architecture_of",
    "call_on",
    "declare",
    "load",
    "load_offloaded",
    "part_of_call",
    "stored",
]
