"""Models of text and images: the language model within is what is traced."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import GROUPED, VOCABULARY, WINDOW
from transformers import AutoConfig, AutoModelForMultimodalLM, PreTrainedModel

from densitrace import ModelError, Threshold, Trace, Tracer

IDS = [5, 9, 33, 2, 60, 17, 8, 41]
TEXT: dict[str, Any] = {**GROUPED, "num_hidden_layers": 2, "head_dim": 12}
VISION: dict[str, Any] = {  # in the words of all of them
    "hidden_size": 16,
    "embed_dim": 16,
    "out_hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "depth": 1,
    "num_attention_heads": 2,
    "num_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
    "intermediate_layers_indices": [0],
    "num_global_layers": 1,
    "vision_output_dim": 32,
    "supported_aspect_ratios": [[1, 1]],
    "max_num_tiles": 1,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_ROPE: dict[str, Any] = {  # of heads 8 wide
    "head_dim": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
}
# By model type: what its config says of the language model, and beside the two parts.

KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # transformers loads it as a causal language model,
    "gemma3": (
        {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW},
        {"mm_tokens_per_image": 4, "tie_word_embeddings": True},
    ),
    # as a model of text and more,
    "mistral3": ({"model_type": "mistral", "sliding_window": WINDOW}, {}),
    # or with an unembedding within.
    "blip-2": (
        {"model_type": "opt", "num_key_value_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32},
        {"qformer_config": {**VISION, "encoder_hidden_size": 16}, "num_query_tokens": 2},
    ),
    # Or transformers has no class for the language model alone.
    "qwen2_5_vl": (_ROPE, {}),
    "qwen3_vl_moe": ({**_ROPE, **_EXPERTS}, {}),
    "glm4v": (_ROPE, {}),
    # Blocks that share keys and values, and have embeddings of their own.
    "gemma4": (
        {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": WINDOW,
            "num_kv_shared_layers": 2,
            "global_head_dim": 24,
            "pad_token_id": 3,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
        },
        {"audio_config": None, "vision_config": {**VISION, "head_dim": 8}},
    ),
    # Blocks that attend to images alone.
    "mllama": (
        {
            "head_dim": 8,
            "pad_token_id": 2,
            "num_hidden_layers": 4,
            "cross_attention_layers": [1],
        },
        {"image_token_index": VOCABULARY - 1},
    ),
}


ONE_BY_ONE = ("qwen3_vl_moe",)  # which stores experts so


def whole_model(kind: str) -> PreTrainedModel:
    text, beside = KINDS[kind]
    settings = {"vision_config": VISION, "image_token_id": VOCABULARY - 1, **beside}
    config = AutoConfig.for_model(kind, text_config={**TEXT, **text}, **settings)
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForMultimodalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
    model.train(False)
    return model


def traced(tracer: Tracer) -> Trace:
    trace = tracer.trace(IDS, select=Threshold([0.1, 0.02]))
    assert isinstance(trace, Trace)
    return trace


def assert_same(ours: Trace, theirs: Trace) -> None:
    np.testing.assert_array_equal(ours.topology, theirs.topology)
    np.testing.assert_array_equal(ours.surprisal, theirs.surprisal)
    for name, values in theirs.errors.items():
        np.testing.assert_array_equal(ours.errors[name], values, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_text_alone(kind: str) -> None:
    """Predictions are the whole model's of text without an image, and sizes are no constants."""
    model: Any = whole_model(kind)
    model.config.name_or_path = "whole"
    tracer = Tracer(model)
    assert tracer.model_id == "whole"
    assert tracer.verify().ok
    trace = traced(tracer)
    predicts = model.language_model if kind == "blip-2" else model  # which wants an image
    with torch.inference_mode():
        expected = predicts(input_ids=torch.tensor([IDS])).logits[0].log_softmax(-1)
    surprisal = -expected[:-1].gather(-1, torch.tensor(IDS[1:])[:, None])[:, 0]
    np.testing.assert_allclose(trace.surprisal[:-1], surprisal, rtol=1e-4)
    assert len(np.unique(trace.edge_count[:, 0])) > 2
    names = tracer._decoder.model.state_dict()
    assert not [name for name in names if "vision" in name or "projector" in name]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ONE_BY_ONE])
def test_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    """From a folder, in memory or with its blocks in files: the same traces to the bit."""
    model = whole_model(kind)
    expected = traced(Tracer(model))
    model.save_pretrained(tmp_path)
    resident = Tracer.from_pretrained(tmp_path, device="cpu")
    offloaded = Tracer.from_pretrained(tmp_path, device="cpu", offload="layers")
    assert offloaded.weight_hash == resident.weight_hash == Tracer(model).weight_hash
    assert resident.model_id == offloaded.model_id
    for tracer in (resident, offloaded):
        assert_same(traced(tracer), expected)


def test_what_is_not_causal_is_refused() -> None:
    """PaliGemma reads text in both directions."""
    config = AutoConfig.for_model(
        "paligemma",
        text_config={"model_type": "gemma", **TEXT},
        vision_config=VISION,
        image_token_id=VOCABULARY - 1,
    )
    with pytest.raises(ModelError, match="use_bidirectional_attention=True"):
        Tracer(AutoModelForMultimodalLM.from_config(config))


def test_a_language_model_that_is_not_declared(tmp_path: Path) -> None:
    AutoConfig.for_model("qwen3_5").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="model_type='qwen3_5' is not a declared architecture"):
        Tracer.from_pretrained(tmp_path)
