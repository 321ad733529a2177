"""`densitrace trace`, `explain` and `compare`: tables of what the functions say."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from densitrace import InputError, Nucleus, StoreError, Trace, Tracer
from densitrace.estimator.cli import compare, explain, report, trace
from densitrace.estimator.compare import compare as compare_stores
from densitrace.tracer.cli import cli


def invoke(command: Any, *arguments: object) -> str:
    """What a command prints; what it raises is left to the test, as the console group does."""
    result = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def store(demo_run: Any) -> Path:
    return Path(demo_run.folder / "traces.zarr")


def test_explain_prints_factors_and_whether_they_are_a_finding(store: Path) -> None:
    options = ("--max-tokens", 200, "--shuffles", 1, "--leave-out", "source", "--by", "domain")
    output = invoke(explain, store, "--target", "density@0.2", *options)
    assert output.startswith("density@0.2 (decades of size), a sample of 200 of ")
    assert "R2 of unseen documents" in output and "finding" in output
    for name in ("context", "surprisal_own", "word_place", "domain"):
        assert f"\n{name} " in output
    assert "\nsource " not in output and "Together" in output
    assert max(map(len, output.splitlines())) <= 100


def test_compare_prints_correlations_and_disagreements(store: Path, tmp_path: Path) -> None:
    csv = tmp_path / "new" / "words.csv"
    output = invoke(compare, store, store, "--measure", "density@0.2", "--csv", csv)
    assert "Rank correlation of density@0.2, word by word" in output
    assert " 1.000 " in output
    assert "Furthest apart: rank 1 under examples/model, rank 2 under examples/model (2)" in output
    table = pd.read_csv(csv)
    assert list(table.columns[:4]) == ["document", "start", "end", "text"]
    assert (table["examples/model"] == table["examples/model (2)"]).all()
    output = invoke(compare, store, store, "--level", "document")
    assert "document by document" in output
    assert re.search(
        r" 1\.000  1\.000 to 1\.000 +\d+$", output, re.MULTILINE
    )  # one number of documents
    assert "text" not in output


TEXT = "The cat sat\non the mat"
MODEL = Path(__file__).parents[2] / "examples" / "model"


def test_trace_prints_a_row_for_each_token(tmp_path: Path) -> None:
    csv = tmp_path / "tokens.csv"
    options = ("--nucleus", "0.9,0.5", "--attention", "frozen", "--eps", 0.3, "--csv", csv)
    lines = invoke(trace, TEXT, "--model", MODEL, *options).splitlines()
    assert lines[0].split() == ["token", "own", "surprisal", "density@0.3", "auc_tv"]
    tracer = Tracer.from_pretrained(MODEL)
    expected = tracer.trace(TEXT, select=Nucleus([0.9, 0.5]), attention="frozen")
    assert isinstance(expected, Trace)
    assert len(lines) == 2 + len(expected.tokens)  # the last is empty
    assert lines[1].startswith("<|bos|>   ") and lines[6].startswith(r"\n  ")
    assert f" {expected.surprisal[0]:.2f} " in lines[2]
    table = pd.read_csv(csv)
    assert "".join(table["text"]) == f"<|bos|>{TEXT}"
    np.testing.assert_allclose(table["density@0.3"], expected.density_at(0.3), rtol=1e-6)
    np.testing.assert_allclose(table["auc_tv"], expected.auc_tv, rtol=1e-6)
    np.testing.assert_allclose(table["surprisal"], expected.surprisal, rtol=1e-6)


def test_trace_reads_standard_input() -> None:
    options = ["--model", str(MODEL), "--thresholds", "0.1,0.01"]
    piped = CliRunner().invoke(trace, ["-", *options], input=TEXT)
    assert piped.stdout == invoke(trace, TEXT, *options)


def test_explain_passes_its_options_on(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def recorded(*_: Any, **options: Any) -> Any:
        given.update(options)
        raise InputError("seen")

    monkeypatch.setattr("densitrace.estimator.explain.explain_factors", recorded)
    numbers = {"max_tokens": 7, "shuffles": 2, "seed": 3}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in numbers.items()]
    with pytest.raises(InputError, match="seen"):
        invoke(explain, store, *options, "--by", "lang", "--leave-out", "context")
    assert given == {**numbers, "by": ("lang",), "leave_out": ("context",)}


def test_a_words_density_may_be_a_mean(store: Path, tmp_path: Path) -> None:
    invoke(compare, store, store, "--within", "mean", "--csv", tmp_path / "words.csv")
    table = pd.read_csv(tmp_path / "words.csv")
    expected = compare_stores([store, store], within="mean").table
    np.testing.assert_allclose(table["examples/model"], expected["examples/model"])
    last = compare_stores([store, store]).table
    assert not np.allclose(table["examples/model"], last["examples/model"])


def test_help_has_an_example() -> None:
    for name, command in {"trace": trace, "explain": explain, "compare": compare}.items():
        assert f"Example: densitrace {name}" in invoke(command, "--help")


@pytest.mark.parametrize(
    ("command", "stores", "option", "value"),
    [
        ("report", 1, "--by", "author"),
        ("report", 1, "--eps", "nan"),
        ("report", 1, "--eps", "10"),
        ("report", 2, "--name", "a"),
        ("explain", 1, "--target", "loss"),
        ("explain", 1, "--leave-out", "nothing"),
        ("compare", 1, "--level", "word"),
        ("compare", 2, "--measure", "loss"),
    ],
)
def test_wrong_usage(store: Path, command: str, stores: int, option: str, value: str) -> None:
    result = CliRunner().invoke(cli, [command, *[str(store)] * stores, option, value])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [report, explain, compare])
def test_a_store_at_a_url(command: Any) -> None:
    urls = ["memory://no/store"] * (2 if command is compare else 1)
    with pytest.raises(StoreError, match="store 'memory://no/store' does not exist"):
        invoke(command, *urls)


def test_what_cannot_be_done_is_told(store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        invoke(explain, tmp_path / "nothing")
    with pytest.raises(InputError, match="1 stores"):
        invoke(compare, store)
    with pytest.raises(StoreError, match=f"cannot write the table {tmp_path}: Is a directory"):
        invoke(compare, store, store, "--csv", tmp_path)
    with pytest.raises(InputError, match="is no measure"):
        invoke(explain, store, "--target", "loss")
