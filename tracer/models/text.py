"""Extracts the language model from a multimodal model of text and images or sound.

Only the text path is traced: decoder and unembedding, assembled as the causal language model that
transformers has for the decoder's config.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from ...errors import ModelError
from .registry import ARCHITECTURES


class _Headed(PreTrainedModel):
    """A decoder with an unembedding, for families without a transformers class for just these."""

    base_model_prefix = "model"

    def __init__(self, decoder: PreTrainedModel) -> None:
        super().__init__(decoder.config)
        self.model = decoder
        self.lm_head = nn.Identity()  # replaced by `set_output_embeddings`

    @classmethod
    def of(cls, decoder: PreTrainedModel) -> "_Headed":
        """Wrap a decoder in a new class with the bases of the decoder's class added."""
        family, module = type(decoder).__bases__, type(decoder).__module__
        headed: _Headed = type(cls.__name__, (cls, *family), {"__module__": module})(decoder)
        return headed

    def forward(self, input_ids: Tensor, **arguments: Any) -> CausalLMOutput:
        """Logits [N, T, V] of token ids [N, T]."""
        states = self.model(input_ids=input_ids, **arguments).last_hidden_state
        return CausalLMOutput(logits=self.lm_head(states))


def auto_model(config: Any) -> Any:
    """The Auto class that loads a model: causal or multimodal."""
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForCausalLM if causal else AutoModelForMultimodalLM


def text_config(config: Any) -> Any:
    """The config of the language model of declared architecture within a model.

    The model's own config if its architecture is declared itself, or if nothing within it is.
    """
    inner = config.get_text_config(decoder=True)
    wrapped = config.model_type not in ARCHITECTURES and inner.model_type in ARCHITECTURES
    return inner if wrapped else config


def causal_model(model: Any) -> PreTrainedModel:
    """Check that a user's model is a causal language model of transformers.

    Returns:
        The model; of the result of `torch.compile`, the model that was compiled.

    Raises:
        ModelError: it is something else; the message says what to give instead.
    """
    model = getattr(model, "_orig_mod", model)
    kind = type(model).__name__
    if isinstance(model, str | Path):
        raise ModelError(f"{model!r} is no model: use Tracer.from_pretrained({str(model)!r})")
    if hasattr(model, "get_base_model"):
        raise ModelError(
            f"a {kind} wraps the model: give its get_base_model(), whose adapters are traced, or "
            "merge_and_unload()"
        )
    if not isinstance(model, PreTrainedModel):
        within = ": give the model within, its .module" if hasattr(model, "module") else ""
        raise ModelError(f"a {kind} is no causal language model of transformers{within}")
    if model.get_output_embeddings() is None:
        raise ModelError(
            f"a {kind} has no unembedding: a causal language model is needed, as "
            "AutoModelForCausalLM loads it"
        )
    return model


def text_model(model: PreTrainedModel) -> PreTrainedModel:
    """Extract the causal language model of declared architecture from a model.

    The result shares its modules with the model, and has no others. A model that is a causal
    language model already is returned unchanged.

    Raises:
        ModelError: the model's decoder is not of the class that its config calls for.
    """
    config = text_config(model.config)
    if config is model.config:
        return model
    decoder: Any = model.get_decoder()
    with torch.device("meta"):  # no memory, no initialisation
        if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
            text: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        else:
            text = _Headed.of(decoder)
    if isinstance(decoder, type(text)):  # it includes an unembedding
        return decoder
    if type(decoder) is not type(text.base_model):
        raise ModelError(
            f"a {model.config.model_type} model holds no {type(text.base_model).__name__}, "
            "whatever its config says"
        )
    setattr(text, text.base_model_prefix, decoder)
    text.set_output_embeddings(model.get_output_embeddings())
    renamed, names = name_within(model, text), text.state_dict().keys()
    tied = {renamed(name): renamed(of) for name, of in model.all_tied_weights_keys.items()}
    text.all_tied_weights_keys = {name: of for name, of in tied.items() if name in names}
    inner: Any = text.base_model
    text.config = inner.config
    return text


def name_within(model: PreTrainedModel, text: PreTrainedModel) -> Callable[[str], str]:
    """A function from a tensor's name in a model to its name in the language model within."""
    shared = text if text in model.modules() else text.base_model
    paths = ({module: name for name, module in whole.named_modules()} for whole in (model, text))
    theirs, ours = (f"{path[shared]}.".lstrip(".") for path in paths)
    return lambda name: ours + name[len(theirs) :] if name.startswith(theirs) else name
