"""Text for the bundled model: the corpus split, its tokenizer, and seeded rows of tokens.

A source is one file `train/<domain>-<lang>.txt`: paragraphs with a blank line between them. Part of
each is held out; the rest becomes one stream of tokens with a separator before every paragraph.
When a row is cut from the stream, each separator becomes either a line break (the passage goes on)
or the beginning-of-text token (a new passage starts), so that the model sees short and long
passages. A row depends only on the seed and the step.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

BOS = "<|bos|>"
HELD_OUT_SHARE = 0.02  # of a source's paragraphs
HELD_OUT_BLOCK = 4  # consecutive paragraphs held out together, scored as one passage
HELD_OUT_LEAST = 2  # paragraphs at least, for sources of about twenty

# Words with their combining marks (Devanagari, Thai), numbers of at most three digits, punctuation.
WORDS = (
    r"'(?:[sdmt]|ll|ve|re)| ?[\p{L}\p{M}]+| ?\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Source:
    """One file of the corpus, split into training and held-out text."""

    name: str  # "<domain>-<lang>"
    runs: list[list[str]]  # training paragraphs; a held-out block lies between two runs
    held_out: list[str]  # passages: blocks of consecutive paragraphs joined by line breaks

    @property
    def domain(self) -> str:
        """The part of the name before the last hyphen."""
        return self.name.rpartition("-")[0]


def read_corpus(folder: Path, seed: int) -> list[Source]:
    """Read every `train/*.txt` of `folder`, in name order, and split each by `seed`.

    Raises FileNotFoundError if there is no such file.
    """
    paths = sorted((folder / "train").glob("*.txt"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no train/*.txt in this folder")
    return [_read_source(path, np.random.default_rng([seed, i])) for i, path in enumerate(paths)]


def _read_source(path: Path, rng: np.random.Generator) -> Source:
    text = path.read_text(encoding="utf-8")
    paragraphs = [p.strip() for p in re.split(r"\n\s*\n", text) if p.strip()]
    blocks = [paragraphs[i : i + HELD_OUT_BLOCK] for i in range(0, len(paragraphs), HELD_OUT_BLOCK)]
    wanted = max(HELD_OUT_LEAST, round(HELD_OUT_SHARE * len(paragraphs)))
    held: set[int] = set()
    for i in rng.permutation(len(blocks)):
        if sum(len(blocks[j]) for j in held) >= wanted:
            break
        held.add(int(i))
    runs: list[list[str]] = [[]]
    for i, block in enumerate(blocks):
        if i in held:
            runs.append([])
        else:
            runs[-1].extend(block)
    return Source(path.stem, [r for r in runs if r], ["\n".join(blocks[i]) for i in sorted(held)])


def sampling_weights(sizes: Sequence[int], exponent: float) -> NDArray[np.float64]:
    """Share of each source in training: `size**exponent`, normalised; 1 keeps the corpus's."""
    weights = np.asarray(sizes, dtype=np.float64) ** exponent
    return np.asarray(weights / weights.sum())


def train_tokenizer(
    sources: Sequence[Source], vocab_size: int, exponent: float
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of `vocab_size` on the training paragraphs; it puts BOS first.

    Small sources are repeated so that shares go with `size**exponent`: otherwise scripts with
    little text would get no tokens of their own.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_repeated(sources, exponent), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS}:1 $B:1",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=BOS,  # the token that starts a passage also ends the one before
        pad_token=BOS,
        clean_up_tokenization_spaces=False,
    )


def _repeated(sources: Sequence[Source], exponent: float) -> Iterator[str]:
    sizes = [sum(len(p.encode()) for run in s.runs for p in run) for s in sources]
    for source, size in zip(sources, sizes, strict=True):
        for _ in range(round((max(sizes) / size) ** (1 - exponent))):
            for run in source.runs:
                yield from run


@dataclass(frozen=True)
class Stream:
    """A source's training tokens, with a separator before each paragraph."""

    tokens: NDArray[np.int64]  # [N]
    separators: NDArray[np.int64]  # [P] positions in `tokens`
    is_separator: NDArray[np.bool_]  # [N]
    is_break: NDArray[np.bool_]  # [N] separators after held-out text, which are always BOS


def make_stream(source: Source, tokenizer: PreTrainedTokenizerBase) -> Stream:
    """Tokenize a source's training paragraphs; every separator holds the line break's token."""
    (newline,) = tokenizer.encode("\n", add_special_tokens=False)
    pieces: list[int] = []
    separators: list[int] = []
    breaks: list[int] = []
    for run in source.runs:
        breaks.append(len(pieces))
        for ids in tokenizer(run, add_special_tokens=False)["input_ids"]:
            separators.append(len(pieces))
            pieces.append(newline)
            pieces.extend(ids)
    is_separator = np.zeros(len(pieces), dtype=np.bool_)
    is_separator[separators] = True
    is_break = np.zeros(len(pieces), dtype=np.bool_)
    is_break[breaks] = True
    return Stream(np.array(pieces), np.array(separators), is_separator, is_break)


@dataclass(frozen=True)
class Sampler:
    """Draws rows of training tokens, as a function of the streams, the seed and the step."""

    streams: list[Stream]
    weights: NDArray[np.float64]  # [number of streams], sums to 1
    bos: int
    seed: int
    row_length: int
    paragraph_start_share: float = 0.8  # of rows; the others start anywhere
    new_passage_share: float = 0.5  # of separators that become BOS

    def batch(self, step: int, rows: int) -> NDArray[np.int64]:
        """Draw the rows of a step: int64 [rows, row_length], each starting with BOS."""
        rng = np.random.default_rng([self.seed, step])
        chosen = rng.choice(len(self.streams), size=rows, p=self.weights)
        return np.stack([self._row(self.streams[i], rng) for i in chosen])

    def _row(self, stream: Stream, rng: np.random.Generator) -> NDArray[np.int64]:
        if rng.random() < self.paragraph_start_share:
            start = int(rng.choice(stream.separators))
        else:
            start = int(rng.integers(len(stream.tokens)))
        at = np.arange(start, start + self.row_length) % len(stream.tokens)
        new_passage = stream.is_separator[at] & (rng.random(len(at)) < self.new_passage_share)
        new_passage |= stream.is_break[at]
        new_passage[0] = True
        return np.where(new_passage, self.bos, stream.tokens[at])
