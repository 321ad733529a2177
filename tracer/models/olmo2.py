"""OLMo-2: no norm before a branch, one after it."""

from dataclasses import replace

from .architecture import BlockNorms
from .llama import llama_like

OLMO2 = replace(
    llama_like("olmo2", "olmo2"),
    norms=BlockNorms(
        after_attention="post_attention_layernorm", after_mlp="post_feedforward_layernorm"
    ),
)
