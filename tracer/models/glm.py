"""GLM and GLM-4.5 (experts), wired like Llama; GLM-4 and Kolibri: norms around each branch."""

from dataclasses import replace

from .architecture import BlockNorms
from .llama import llama_like

GLM = llama_like("glm", "glm", "glm4_moe", "glm4v_moe_text", "sarvam_moe")
GLM4 = replace(
    llama_like("glm4", "glm4", "glm4v_text", "kolibri1"),
    norms=BlockNorms(
        before_attention="input_layernorm",
        after_attention="post_self_attn_layernorm",
        before_mlp="post_attention_layernorm",
        after_mlp="post_mlp_layernorm",
    ),
)
