"""The bundled model's scripts: split, rows, count models, and a run that was stopped."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "model"
SEED = 3


def _script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module(name)


@pytest.fixture
def passages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _script("passages", monkeypatch)


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _script("train", monkeypatch)


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _script("evaluate", monkeypatch)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two sources of random words, paragraphs numbered so that each is its own."""
    rng = np.random.default_rng(SEED)
    folder = tmp_path / "corpus"
    (folder / "train").mkdir(parents=True)
    for name, count in (("tale-en", 90), ("law-fi", 13)):
        words = ["".join(rng.choice(list("aeioklmnst"), size=4)) for _ in range(50)]
        paragraphs = [f"{i} {' '.join(rng.choice(words, size=12))}." for i in range(count)]
        text = "\n\n".join(paragraphs) + "\n"
        (folder / "train" / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


def test_split_loses_and_repeats_nothing(passages: ModuleType, corpus: Path) -> None:
    sources = passages.read_corpus(corpus, SEED)
    assert [source.name for source in sources] == ["law-fi", "tale-en"]
    for source in sources:
        text = (corpus / "train" / f"{source.name}.txt").read_text(encoding="utf-8")
        kept = [paragraph for run in source.runs for paragraph in run]
        held = [paragraph for passage in source.held_out for paragraph in passage.split("\n")]
        assert held
        assert sorted(kept + held) == sorted(p.strip() for p in text.split("\n\n"))


def test_rows_start_a_passage_and_depend_on_the_step(
    passages: ModuleType, train: ModuleType, corpus: Path
) -> None:
    recipe = train.Recipe(seed=SEED, vocab_size=300, row_length=40)
    tokenizer, sampler = train.prepare(corpus, recipe)
    rows = sampler.batch(5, 16)
    assert rows.shape == (16, 40)
    assert (rows[:, 0] == sampler.bos).all()
    assert (rows == sampler.batch(5, 16)).all()
    assert (rows != sampler.batch(6, 16)).any()
    held = {
        p for s in passages.read_corpus(corpus, SEED) for t in s.held_out for p in t.split("\n")
    }
    for row in rows:  # whole paragraphs: between two separators
        text = tokenizer.decode(row[1:]).replace(passages.BOS, "\n")
        assert held.isdisjoint(text.split("\n"))


def test_tokenizer_puts_its_token_first(train: ModuleType, corpus: Path) -> None:
    tokenizer, sampler = train.prepare(corpus, train.Recipe(seed=SEED, vocab_size=300))
    assert len(tokenizer) == 300
    assert tokenizer.encode("kala")[0] == sampler.bos == tokenizer.bos_token_id
    assert (
        tokenizer.decode(tokenizer.encode("kala\nÿ 象"), skip_special_tokens=True) == "kala\nÿ 象"
    )


def test_count_models_are_distributions(evaluate: ModuleType) -> None:
    tokens = np.random.default_rng(SEED).integers(0, 9, size=60)  # 9 of a vocabulary of 11
    counts = evaluate.CountModels([tokens], 11)
    for before in (int(tokens[0]), 10):  # a context that was seen, one that was not
        rows = [np.array([before, token]) for token in range(11)]
        assert sum(np.exp(-counts.bigram(row)) for row in rows) == pytest.approx(1)
        assert sum(np.exp(-counts.unigram(row)) for row in rows) == pytest.approx(1)
    assert counts.bigram(tokens) < counts.unigram(tokens)


def test_learning_rate_rises_and_ends_at_nothing(train: ModuleType) -> None:
    recipe = train.Recipe()
    used = np.linspace(0, 1, 101)
    rates = np.array([train.learning_rate(recipe, u) for u in used])
    assert rates.max() == pytest.approx(recipe.learning_rate)
    assert rates[0] < 0.05 * recipe.learning_rate
    assert rates[-1] == pytest.approx(0, abs=1e-9)
    assert (np.diff(rates[2:]) <= 0).all()


def test_a_stopped_run_ends_as_one_that_was_not(
    train: ModuleType, corpus: Path, tmp_path: Path
) -> None:
    recipe = train.Recipe(
        seed=SEED, vocab_size=300, hidden_size=32, intermediate_size=32, layers=1, heads=2,
        key_value_heads=1, row_length=24, rows=2,
    )  # fmt: skip
    _, sampler = train.prepare(corpus, recipe)
    used = train.used_share(minutes=1.0, steps=6)

    def begin() -> tuple[torch.nn.Module, torch.optim.AdamW]:
        model = train.build_model(recipe, sampler.bos)
        return model, train.build_optimizer(model, recipe)

    whole, optimizer = begin()
    for _ in train.train(whole, optimizer, sampler, recipe, train.State(), used, compiled=False):
        pass

    stopped, optimizer = begin()
    state, checkpoint = train.State(), tmp_path / train.CHECKPOINT
    for _ in train.train(stopped, optimizer, sampler, recipe, state, used, compiled=False):
        if state.step == 3:
            train.save_checkpoint(checkpoint, stopped, optimizer, recipe, state)
            break
    resumed, optimizer = begin()
    state = train.load_checkpoint(checkpoint, resumed, optimizer, recipe)
    assert state.step == 3
    for _ in train.train(resumed, optimizer, sampler, recipe, state, used, compiled=False):
        pass
    assert state.step == 6
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_checkpoint_of_another_recipe_is_refused(
    train: ModuleType, corpus: Path, tmp_path: Path
) -> None:
    recipe = train.Recipe(seed=SEED, vocab_size=300, hidden_size=24, layers=1)
    model = train.build_model(recipe, 0)
    optimizer = train.build_optimizer(model, recipe)
    work = tmp_path / "work"
    work.mkdir()
    train.save_checkpoint(work / train.CHECKPOINT, model, optimizer, recipe, train.State())
    arguments = ["--corpus", corpus, "--work", work, "--out", tmp_path / "out", "--steps", 1]
    result = CliRunner().invoke(train.main, [str(a) for a in arguments])
    assert result.exit_code == 1
    assert "another seed, vocab_size, hidden_size, layers" in result.output
    assert not (tmp_path / "out").exists()


def test_folder_without_text_is_refused(train: ModuleType, tmp_path: Path) -> None:
    arguments = ["--corpus", tmp_path, "--work", tmp_path / "work", "--out", tmp_path / "out"]
    result = CliRunner().invoke(train.main, [str(a) for a in arguments])
    assert result.exit_code == 1
    assert result.output == f"Error: {tmp_path}: no train/*.txt in this folder\n"
    assert list(tmp_path.iterdir()) == []


def test_one_step_then_evaluation(
    train: ModuleType, evaluate: ModuleType, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--work", tmp_path / "work", "--out", out, "--steps", 1, "--no-compile"]
    options += ["--threads", 1, "--seed", SEED]
    arguments = ["--corpus", str(corpus), *map(str, options)]
    assert CliRunner().invoke(train.main, arguments).exit_code == 0
    scan = tmp_path / "scan.jsonl"
    record = {"id": "tale-en-0", "domain": "tale", "lang": "en", "text": "sana " * 200}
    scan.write_text(json.dumps(record) + "\n", encoding="utf-8")
    (out / "README.md").write_text("# Card\n<!-- evaluation -->\n<!-- end of evaluation -->\nEnd\n")
    arguments = ["--corpus", str(corpus), "--scan", str(scan), "--model", str(out)]
    result = CliRunner().invoke(evaluate.main, [*arguments, "--threads", "1"])
    assert result.exit_code == 0
    measured = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert set(measured["held_out"]) == {"tale-en", "law-fi"}
    # A model of one step is still near the uniform distribution. The text repeats three tokens,
    # whose logits, of standard deviation 192**0.5 * 0.02 = 0.28, hardly average out: 0.5 is three
    # standard deviations of their mean.
    vocabulary = json.loads((out / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    nats = measured["scan"]["tale-en"]["nats_per_token"]["model"]
    assert nats == pytest.approx(np.log(vocabulary), abs=0.5)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "| scan corpus: tale, English |" in card
    assert card.startswith("# Card\n")
    assert card.endswith("End\n")
