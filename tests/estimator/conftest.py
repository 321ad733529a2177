"""Densities of a made-up corpus, without a model or a store, and one real run of the demo."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from densitrace.estimator.cli import demo
from densitrace.estimator.density import DensityResult

BUNDLED_CORPUS = Path(__file__).parents[2] / "examples" / "corpus" / "scan.jsonl"

SETTINGS: dict[str, Any] = {
    "model": "made-up-model",
    "architecture": "llama",
    "rule": {"name": "threshold", "values": [0.1, 0.01, 0.001]},
    "attention": "live",
    "versions": {"densitrace": "0.0.test"},
}


def _result(
    documents: list[dict[str, str]], *, seed: int = 0, controls: tuple[str, ...] = ()
) -> DensityResult:
    """One token for every two characters of each document's text, densities drawn per domain.

    Args:
        documents: rows with `id`, `text` and any labels.
        seed: of the values.
        controls: control lanes to add to the strata.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for number, document in enumerate(documents):
        text = document["text"]
        level = 0.02 * (1 + sum(map(ord, document.get("domain", ""))) % 5)
        for position, start in enumerate(range(0, len(text), 2)):
            context = position + 1
            full = 3 * context + 2 * context * (context + 1)
            density = min(1.0, level * rng.lognormal(sigma=0.5))
            rows.append(
                {
                    "document": number,
                    "window": number,
                    "position": position,
                    "context": context,
                    "token": int(rng.integers(100)),
                    "char_start": start,
                    "char_end": min(start + 2, len(text)),
                    "full_edges": full,
                    "density@0.1": density,
                    "auc_tv": 1 + np.log10(density) / 3 + rng.normal(scale=0.05),
                    "reached": density < 1,
                    "edges": density * full,
                    "edges_per_token": density * full / context,
                    "surprisal": rng.exponential(),
                    "model_entropy": rng.exponential(),
                }
            )
    tokens = pd.DataFrame(rows)
    dense = tokens["density@0.1"] > tokens["density@0.1"].median()
    tokens["regime"] = np.where(dense, "dense", "sparse")
    means = tokens.groupby("document")[["density@0.1", "auc_tv"]].mean()
    labels = tuple(name for name in documents[0] if name not in ("id", "text"))
    return DensityResult(
        tokens=tokens,
        strata=_strata(controls),
        documents=pd.DataFrame(documents).join(means),
        errors=pd.DataFrame([[0.7, 0.3, 0.1]] * len(means), means.index, [0.1, 0.01, 0.001]),
        labels=labels,
        settings=SETTINGS,
        eps=0.1,
    )


def _strata(controls: tuple[str, ...]) -> pd.DataFrame:
    parts = []
    for lane in ("trace", *controls):
        shift = 0.0 if lane == "trace" else 0.2
        parts.append(
            pd.DataFrame(
                {
                    "lane": lane,
                    "stratum": [0.1, 0.01, 0.001],
                    **{f"size_q{q}": np.array([0.01, 0.1, 0.5]) * q / 50 for q in (25, 50, 75)},
                    **{
                        f"tv_q{q}": np.array([0.7, 0.3, 0.1]) * q / 75 + shift for q in (25, 50, 75)
                    },
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def make_result() -> Callable[..., DensityResult]:
    """Makes a result of documents; see `_result`."""
    return _result


@dataclass(frozen=True)
class Demo:
    """One run of `densitrace demo` over a few documents with the bundled model."""

    folder: Path
    corpus: Path
    output: str


@pytest.fixture(scope="package")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The demo, run once for all tests that look at what it leaves."""
    folder = tmp_path_factory.mktemp("demo")
    corpus = folder / "corpus.jsonl"
    lines = BUNDLED_CORPUS.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    chosen = [
        {**record, "text": record["text"][:150]}
        for domain, lang in (("drama", "en"), ("law", "ja"), ("scripture", "de"))
        for record in [r for r in records if (r["domain"], r["lang"]) == (domain, lang)][:2]
    ]
    corpus.write_text("".join(json.dumps(record) + "\n" for record in chosen), encoding="utf-8")
    arguments = ["--corpus", str(corpus), "--out", str(folder / "out")]
    result = CliRunner().invoke(demo, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return Demo(folder / "out", corpus, result.stdout)
