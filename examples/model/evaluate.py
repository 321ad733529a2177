"""Measure the bundled model on text it was not trained on, next to a unigram and a bigram model.

    python examples/model/evaluate.py --corpus FOLDER --scan examples/corpus/scan.jsonl

Two held-out sets: the passages that training leaves out of FOLDER, and the labelled passages that
the demo scans. All three models see the same tokens: the unigram and the bigram are counted on the
training tokens and score each row as the model does, from its beginning-of-text token on. Writes
`evaluation.json` next to the model, and its table into the model's card.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from passages import Stream, make_stream, read_corpus
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

HERE = Path(__file__).resolve().parent
TABLE = re.compile(r"(<!-- evaluation -->\n).*(<!-- end of evaluation -->)", re.DOTALL)


@dataclass(frozen=True)
class Score:
    """Summed losses of some text."""

    passages: int
    tokens: int
    bytes: int
    nats: dict[str, float]  # by "model", "bigram", "unigram": summed over the tokens

    def __add__(self, other: "Score") -> "Score":
        nats = {name: value + other.nats[name] for name, value in self.nats.items()}
        return Score(
            self.passages + other.passages,
            self.tokens + other.tokens,
            self.bytes + other.bytes,
            nats,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the counts, then nats per token, perplexity and bits per byte by model."""
        mean = {name: value / self.tokens for name, value in self.nats.items()}
        bits = {name: v / self.bytes / np.log(2) for name, v in self.nats.items()}
        return {
            "passages": self.passages,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "nats_per_token": {name: round(v, 4) for name, v in mean.items()},
            "perplexity": {name: round(float(np.exp(v)), 2) for name, v in mean.items()},
            "bits_per_byte": {name: round(float(v), 4) for name, v in bits.items()},
        }


class CountModels:
    """Unigram with one added to every count, and a bigram interpolated with it.

    The bigram discounts each count by D = n1 / (n1 + 2 n2), n1 and n2 the numbers of pairs seen
    once and twice, and gives the rest to the unigram (absolute discounting: Ney, Essen, Kneser,
    "On structuring probabilistic dependences in stochastic language modelling", 1994).

    Args:
        texts: training tokens, one int64 array per text.
        vocab_size: number of token ids.
    """

    def __init__(self, texts: Iterable[NDArray[np.int64]], vocab_size: int) -> None:
        unigram = np.ones(vocab_size)
        pairs = np.zeros((vocab_size, vocab_size), dtype=np.int32)
        for tokens in texts:
            unigram += np.bincount(tokens, minlength=vocab_size)
            np.add.at(pairs, (tokens[:-1], tokens[1:]), 1)
        once, twice = int((pairs == 1).sum()), int((pairs == 2).sum())
        self._unigram = unigram / unigram.sum()
        self._pairs = pairs
        self._followed = pairs.sum(1)
        self._followers = (pairs > 0).sum(1)
        self._discount = once / (once + 2 * twice) if once else 0.0

    def unigram(self, row: NDArray[np.int64]) -> float:
        """Nats of `row[1:]`, summed."""
        return float(-np.log(self._unigram[row[1:]]).sum())

    def bigram(self, row: NDArray[np.int64]) -> float:
        """Nats of `row[1:]`, each given the token before it, summed."""
        before, token = row[:-1], row[1:]
        total = np.maximum(self._followed[before], 1)
        kept = np.maximum(self._pairs[before, token] - self._discount, 0) / total
        spread = self._discount * self._followers[before] / total
        spread = np.where(self._followed[before] > 0, spread, 1.0)
        return float(-np.log(kept + spread * self._unigram[token]).sum())


def training_text(stream: Stream, bos: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the stream with about half of its separators a BOS, as in training."""
    new_passage = stream.is_break | (stream.is_separator & (rng.random(len(stream.tokens)) < 0.5))
    return np.where(new_passage, bos, stream.tokens)


class Scorer:
    """Scores passages by the three models."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, counts: CountModels
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._counts = counts

    def __call__(self, passage: str) -> Score:
        """Score a passage, cut into rows that the model can read, each starting with a BOS."""
        bos, *ids = self._tokenizer.encode(passage)
        length = self._model.config.max_position_embeddings - 1
        rows = [[bos, *ids[i : i + length]] for i in range(0, len(ids), length)]
        nats = {"model": 0.0, "bigram": 0.0, "unigram": 0.0}
        for row in rows:
            array = np.array(row)
            nats["model"] += self._model_nats(row)
            nats["bigram"] += self._counts.bigram(array)
            nats["unigram"] += self._counts.unigram(array)
        return Score(1, len(ids), len(passage.encode()), nats)

    @torch.inference_mode()
    def _model_nats(self, row: list[int]) -> float:
        ids = torch.tensor([row])
        logits = self._model(input_ids=ids).logits[0, :-1].float()
        return float(nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))


def summed(scores: Iterable[tuple[str, Score]]) -> dict[str, Score]:
    """Add up the scores of each name, names sorted."""
    totals: dict[str, Score] = {}
    for name, score in scores:
        totals[name] = totals[name] + score if name in totals else score
    return dict(sorted(totals.items()))


def groups(scores: dict[str, Score]) -> dict[str, Score]:
    """Gather "<domain>-<lang>" into rows of the card: by domain, English and other languages."""
    rows: dict[str, list[Score]] = defaultdict(list)
    for name, score in scores.items():
        domain, _, lang = name.rpartition("-")
        rows[f"{domain}, English" if lang == "en" else f"{domain}, other languages"].append(score)
    return {name: sum(parts[1:], parts[0]) for name, parts in sorted(rows.items())}


def table(held_out: dict[str, Score], scan: dict[str, Score]) -> str:
    """Return the card's Markdown table: nats per token and perplexity by domain."""
    lines = [
        "| held-out text | tokens | model | bigram | unigram | model, bits a byte |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for title, scores in (("left out of training", held_out), ("scan corpus", scan)):
        everything = sum(list(scores.values())[1:], next(iter(scores.values())))
        for name, score in [*groups(scores).items(), ("**all**", everything)]:
            row = score.to_json()
            nats, perplexity = row["nats_per_token"], row["perplexity"]
            cells = [f"{nats[m]:.2f} ({perplexity[m]:.0f})" for m in ("model", "bigram", "unigram")]
            lines.append(
                f"| {title}: {name} | {score.tokens:,} | {' | '.join(cells)}"
                f" | {row['bits_per_byte']['model']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def read_scan(path: Path) -> list[dict[str, str]]:
    """Read the labelled passages of a JSON-lines file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def report(
    held_out: dict[str, Score], scan: Sequence[tuple[str, str, Score]]
) -> tuple[dict[str, Any], str]:
    """Return what goes into evaluation.json, and the card's table; `scan` is (id, name, score)."""
    by_name = summed((name, score) for _, name, score in scan)
    result = {
        "held_out": {name: score.to_json() for name, score in held_out.items()},
        "scan": {name: score.to_json() for name, score in by_name.items()},
        "scan_passages": {
            key: {
                "tokens": score.tokens,
                "model_nats_per_token": score.nats["model"] / score.tokens,
            }
            for key, _, score in scan
        },
    }
    return result, table(held_out, by_name)


@click.command(context_settings={"show_default": True})
@click.option(
    "--corpus",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="The folder that the model was trained on.",
)
@click.option(
    "--scan",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=HERE.parent / "corpus" / "scan.jsonl",
    help="Labelled passages, the second held-out set.",
)
@click.option(
    "--model",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=HERE,
    help="Folder that train.py wrote.",
)
@click.option("--threads", type=click.IntRange(min=1), default=1)
def main(corpus: Path, scan: Path, folder: Path, threads: int) -> None:
    """Evaluate the model in FOLDER as stored; the split is that of the seed in training.json."""
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    seed = json.loads((folder / "training.json").read_text())["recipe"]["seed"]
    sources = read_corpus(corpus, seed)
    rng = np.random.default_rng(seed)
    counts = CountModels(
        (training_text(make_stream(s, tokenizer), tokenizer.bos_token_id, rng) for s in sources),
        model.config.vocab_size,
    )
    scorer = Scorer(model, tokenizer, counts)
    held_out = summed((s.name, scorer(passage)) for s in sources for passage in s.held_out)
    scored = [
        (line["id"], f"{line['domain']}-{line['lang']}", scorer(line["text"]))
        for line in read_scan(scan)
    ]
    result, markdown = report(held_out, scored)
    (folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    card = folder / "README.md"
    if card.exists():
        text = card.read_text(encoding="utf-8")
        card.write_text(TABLE.sub(lambda m: m[1] + markdown + m[2], text), encoding="utf-8")
    click.echo(markdown)


if __name__ == "__main__":
    main()
