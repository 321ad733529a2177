"""The bundled model loads, reads every script, and does what its evaluation says."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FOLDER = EXAMPLES / "model"
ENGLISH = ["drama-en", "fiction-en", "law-en", "scripture-en", "speech-en"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def evaluation() -> dict[str, Any]:
    result: dict[str, Any] = json.loads((FOLDER / "evaluation.json").read_text(encoding="utf-8"))
    return result


@pytest.fixture(scope="module")
def passages() -> dict[str, str]:
    """Text by id of the labelled passages."""
    lines = (EXAMPLES / "corpus" / "scan.jsonl").read_text(encoding="utf-8").splitlines()
    return {record["id"]: record["text"] for record in map(json.loads, lines)}


def test_folder_is_small_and_names_no_path() -> None:
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    parts = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sum((FOLDER / part).stat().st_size for part in parts) <= 12_000_000
    assert not config.get("_name_or_path")
    assert config["model_type"] == "llama"


def test_weights_are_finite_float32(model: LlamaForCausalLM) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert torch.isfinite(parameter).all(), name


@pytest.mark.parametrize(
    "text",
    [
        "It was the best of times, it was the worst of times;\nand 1859 wasn't over.",
        "Todos os seres humanos nascem livres e iguais em dignidade e em direitos.",
        "Kaikki ihmiset syntyvät vapaina. Jäät, öljy, ångström.",
        "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι.",
        "Все люди рождаются свободными.",
        "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है।",
        "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.",
        "すべての人間は、生まれながらにして自由である。",
        "人人生而自由,在尊严和权利上一律平等。",
        "  two  spaces,\n\n\ta tab, and \U0001f40b",
    ],
)
def test_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in ids[1:]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_labelled_passage_survives_the_tokenizer(
    tokenizer: PreTrainedTokenizerBase, passages: dict[str, str]
) -> None:
    for name, text in passages.items():
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text, name


@pytest.mark.parametrize("held_out", ["held_out", "scan"])
@pytest.mark.parametrize("domain", ENGLISH)
def test_model_beats_the_bigram_in_english(
    evaluation: dict[str, Any], held_out: str, domain: str
) -> None:
    nats = evaluation[held_out][domain]["nats_per_token"]
    assert nats["bigram"] - nats["model"] >= 0.3
    assert nats["unigram"] > nats["bigram"]


def test_every_labelled_passage_was_evaluated(
    evaluation: dict[str, Any], passages: dict[str, str], tokenizer: PreTrainedTokenizerBase
) -> None:
    recorded = evaluation["scan_passages"]
    assert set(recorded) == set(passages)
    for name, text in passages.items():
        assert recorded[name]["tokens"] == len(tokenizer.encode(text)) - 1, name


def test_domain_figures_are_the_passages_means(evaluation: dict[str, Any]) -> None:
    for domain, row in evaluation["scan"].items():
        # An id is the domain's name and a number.
        parts = [
            part
            for name, part in evaluation["scan_passages"].items()
            if name.rpartition("-")[0] == domain
        ]
        tokens = sum(part["tokens"] for part in parts)
        nats = sum(part["tokens"] * part["model_nats_per_token"] for part in parts)
        assert (len(parts), tokens) == (row["passages"], row["tokens"])
        assert nats / tokens == pytest.approx(row["nats_per_token"]["model"], abs=1e-4)


def test_recorded_losses_are_the_model_s(
    evaluation: dict[str, Any],
    passages: dict[str, str],
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Float32 rounding moves a passage's mean loss by some 1e-6; another model, by tenths."""
    length = model.config.max_position_embeddings
    short = [name for name, text in passages.items() if len(tokenizer.encode(text)) <= length]
    chosen = short[:: len(short) // 10]
    assert len(chosen) >= 10
    for name in chosen:
        ids = torch.tensor([tokenizer.encode(passages[name])])
        with torch.inference_mode():
            log_probabilities = model(input_ids=ids).logits.double().log_softmax(-1)
        losses = -log_probabilities[0, :-1].gather(1, ids[0, 1:, None])
        recorded = evaluation["scan_passages"][name]["model_nats_per_token"]
        assert losses.mean().item() == pytest.approx(recorded, abs=1e-4), name
        assert recorded < math.log(model.config.vocab_size), name
