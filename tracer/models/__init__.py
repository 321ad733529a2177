"""The declared architectures: the only package that knows the module names of transformers."""

from .apertus import APERTUS
from .architecture import (
    Architecture,
    BlockNorms,
    KeyChoice,
    LinearNorm,
    OwnAttention,
    SharedValues,
    TokenInput,
)
from .bitnet import BITNET
from .block import Block
from .bloom import BLOOM
from .calls import call_on, gather_shared, part_of_call
from .cohere import COHERE, COHERE2_MOE
from .ctrl import CTRL
from .dbrx import DBRX
from .decoder import Decoder
from .deepseek import DEEPSEEK, DEEPSEEK_V32, GLM5, MINICPM3
from .falcon import FALCON
from .gemma import GEMMA, GEMMA2, GEMMA3, GEMMA4, VAULTGEMMA
from .glm import GLM, GLM4
from .gpt2 import GPT2
from .gpt_bigcode import GPT_BIGCODE
from .gpt_neo import GPT_NEO
from .gpt_neox import GPT_NEOX
from .gptj import CODEGEN, GPTJ
from .granite import GRANITE, GRANITE4, GRANITE_MOE, GRANITE_SHARED, HYPERCLOVAX
from .linear import stored
from .llama import LLAMA, SAME_AS_LLAMA
from .llama4 import LLAMA4
from .loading import load, load_offloaded
from .mimo import MIMO
from .mistral import MISTRAL
from .mllama import MLLAMA
from .modernbert import MODERNBERT
from .mpt import MPT
from .nanochat import NANOCHAT
from .nemotron import NEMOTRON
from .offload import OffloadedBlocks
from .olmo import EXAONE4, FLEX_OLMO, OLMO, OLMO2, OLMO3, OLMOE
from .openai_gpt import OPENAI_GPT
from .opt import BIOGPT, OPT
from .phi import PHI, PHI3, PHIMOE
from .qwen import QWEN2, QWEN2_MOE, QWEN3
from .registry import ARCHITECTURES, architecture_of, declare
from .stablelm import STABLELM
from .starcoder2 import STARCODER2
from .state import contents
from .text import causal_model, text_model
from .xglm import XGLM

for _architecture in (
    LLAMA,
    *SAME_AS_LLAMA,
    LLAMA4,
    BITNET,
    MISTRAL,
    MIMO,
    QWEN2,
    QWEN2_MOE,
    QWEN3,
    GLM,
    GLM4,
    DEEPSEEK,
    DEEPSEEK_V32,
    GLM5,
    MINICPM3,
    APERTUS,
    GRANITE,
    GRANITE_MOE,
    GRANITE_SHARED,
    GRANITE4,
    HYPERCLOVAX,
    NANOCHAT,
    OLMO,
    OLMO2,
    OLMO3,
    OLMOE,
    FLEX_OLMO,
    EXAONE4,
    GEMMA,
    GEMMA2,
    GEMMA3,
    GEMMA4,
    VAULTGEMMA,
    PHI,
    PHI3,
    PHIMOE,
    COHERE,
    COHERE2_MOE,
    STABLELM,
    STARCODER2,
    MODERNBERT,
    NEMOTRON,
    DBRX,
    GPT2,
    GPT_BIGCODE,
    GPT_NEOX,
    OPENAI_GPT,
    OPT,
    BIOGPT,
    GPT_NEO,
    GPTJ,
    CODEGEN,
    FALCON,
    BLOOM,
    MPT,
    XGLM,
    CTRL,
    MLLAMA,
):
    declare(_architecture)

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Block",
    "BlockNorms",
    "Decoder",
    "KeyChoice",
    "LinearNorm",
    "OffloadedBlocks",
    "OwnAttention",
    "SharedValues",
    "TokenInput",
    "architecture_of",
    "call_on",
    "causal_model",
    "contents",
    "declare",
    "gather_shared",
    "load",
    "load_offloaded",
    "part_of_call",
    "stored",
    "text_model",
]
