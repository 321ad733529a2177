"""Long scans with a model of this repository: corpus, command line and log."""

import json
import random
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import click
from problems import EXAMPLES
from transformers import AutoTokenizer

CONTEXT = 256  # the models' training context
MODELS = {"bundled": EXAMPLES / "model", "wide": EXAMPLES / "study/models/wide"}
DOCUMENT_CHARACTERS = (7.0, 1.0)  # mean and standard deviation of log length: median 1,100


def documents(folder: Path, lengths: random.Random) -> Iterator[dict[str, str]]:
    """Runs of paragraphs, from all files in turn, with log-normal lengths."""
    opened = [(path.stem, path.open(encoding="utf-8")) for path in sorted(folder.glob("*.txt"))]
    while opened:
        for source, lines in tuple(opened):
            text, wanted = "", lengths.lognormvariate(*DOCUMENT_CHARACTERS)
            for line in lines:
                text += line
                if len(text) >= wanted:
                    break
            else:
                lines.close()
                opened.remove((source, lines))
            if text.strip():
                yield {"source": source, "text": text.strip()}


def write_corpus(
    folder: Path, path: Path, tokens: int, model: str = "bundled", passes: int = 1
) -> None:
    """Write documents until they have `tokens` tokens; each pass cuts the text differently."""
    tokenizer, count = AutoTokenizer.from_pretrained(MODELS[model]), 0
    lengths = random.Random(0)
    drawn = chain.from_iterable(documents(folder, lengths) for _ in range(passes))
    with path.open("w", encoding="utf-8") as file:
        for number, document in enumerate(drawn):
            count += len(tokenizer(document["text"], verbose=False)["input_ids"])
            file.write(json.dumps({"id": str(number), **document}) + "\n")
            if count >= tokens:
                return
    raise click.UsageError(f"--corpus {str(folder)!r} holds {count} tokens only")


def command_of(corpus: Path, out: Path, log: Path, model: str = "bundled") -> list[str]:
    """The command line of a scan in windows of `CONTEXT` tokens, with defaults otherwise."""
    command = [sys.executable, "-m", "densitrace", "scan", str(corpus), "--out", str(out)]
    command += ["--model", str(MODELS[model]), "--dtype", "float32", "--context", str(CONTEXT)]
    return [*command, "--log", str(log)]


def parts_logged(log: Path) -> list[dict[str, Any]]:
    """The log's entry for each finished part; a part killed while being written appears once."""
    lines = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["message"] == "part done"]
