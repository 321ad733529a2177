"""A store of any size without a model: texts of made-up words, curves drawn from a seed.

Written part by part through the store's own planning and writing code. The effects on density are
known: rarer words are denser, longer contexts sparser, and each domain has its level.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densitrace import Store, Threshold
from densitrace.tracer import layout
from densitrace.tracer.corpus import CorpusReport, Document
from densitrace.tracer.recipe import Recipe
from densitrace.tracer.spool import Spool
from densitrace.tracer.storage import storage_of
from densitrace.tracer.stored_plan import create_store
from densitrace.tracer.windows import Encoded, Plan, plan_windows

BLOCKS, HEADS = 8, 8  # of the imaginary model
WORDS = 20_000
STRATA = tuple(np.geomspace(1e-1, 1e-4, 12).tolist())
DOMAINS = ("law", "fiction", "speech", "drama", "letters")
LANGUAGES = ("en", "de", "fr")
PIECE = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")
Floats = NDArray[np.float64]


def made_up_documents(tokens: int, mean_length: int = 500, seed: int = 0) -> Iterator[Document]:
    """Documents with `tokens` words in total, Zipf frequencies, and a full stop every 12 words."""
    rng = np.random.default_rng(seed)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    words = np.array(["".join(rng.choice(syllables, 1 + n % 4)) for n in range(WORDS)])
    share = 1 / (2 + np.arange(WORDS))
    number = 0
    while tokens > 0:
        length = min(tokens, 20 + int(rng.exponential(mean_length - 20)))
        chosen = words[rng.choice(WORDS, length, p=share / share.sum())].astype(object)
        chosen[11::12] = "."
        text = " ".join(chosen.tolist()).replace(" .", ".")
        labels = {"domain": DOMAINS[number % 5], "lang": LANGUAGES[number % 3]}
        yield Document(f"document-{number:05d}", text, labels, f"made up, {number}")
        tokens, number = tokens - length, number + 1


class Splitter:
    """A tokenizer: words with their leading space, numbered in order of first occurrence."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def __call__(self, texts: Sequence[str]) -> list[Encoded]:
        return [self._split(text) for text in texts]

    def _split(self, text: str) -> Encoded:
        pieces = list(PIECE.finditer(text))
        ids = [self.ids.setdefault(piece[0], len(self.ids)) for piece in pieces]
        return Encoded(ids, [piece.span() for piece in pieces])


def make_store(
    path: Path,
    documents: Iterator[Document] | Sequence[Document],
    *,
    context: int = 512,
    controls: tuple[str, ...] = (),
    strata: Sequence[float] | Floats = STRATA,
    model: str = "made-up/model",
    seed: int = 0,
) -> Store:
    """Write a complete store of these documents.

    Args:
        path: a folder that does not exist yet.
        documents: what is scanned.
        context: tokens of a window.
        controls: control lanes in addition to the trace.
        strata: thresholds.
        model: the name of the model.
        seed: of the densities; all seeds share the effects described above.
    """
    rule, storage = Threshold(strata), storage_of(path)
    recipe = Recipe(
        weight_hash=f"{seed:064x}", tokenizer_hash="0" * 64, select=rule.to_json(),
        importance="norm_l1", attention="live", scope="all", count="window", seed=0,
        controls=controls, context=context, corpus_fingerprint="0" * 64,
    )  # fmt: skip
    facts = {"model": model, "architecture": "llama", "blocks": BLOCKS, "parallel": False}
    most = int(full_edges(np.array([context]))[0])
    with storage.staging() as folder:
        spool = Spool(folder / "spool")
        plan = plan_windows(documents, Splitter(), context, spool)
        report = CorpusReport(documents=len(spool))
        store = create_store(storage, folder, plan, recipe, rule, report, facts, most)
        domains = np.array(
            [sum(map(ord, document.labels.get("domain", ""))) % 5 for document in spool]
        )
        shares = np.bincount(plan.tokens) / len(plan.tokens)
        for part in range(store.n_parts):
            store.write_part(part, _arrays(store, plan, part, domains, shares, seed))
    return store


def full_edges(context: NDArray[Any]) -> NDArray[np.int64]:
    """|E| for sequential blocks (METHOD §4)."""
    per_block = 3 * context + HEADS * context * (context + 1) // 2
    return np.asarray((BLOCKS - 1) * per_block + 3 + HEADS * context, np.int64)


def _arrays(
    store: Store, plan: Plan, part: int, domains: NDArray[Any], shares: Floats, seed: int
) -> dict[str, NDArray[Any]]:
    run = store.windows(part)
    windows = range(run.start, run.stop)
    shape = (len(windows), plan.longest)
    column = np.arange(plan.longest)
    token_arrays = {
        name: np.full(shape, -1, np.int64) for name in ("token", "char_start", "char_end")
    }
    for row, window in enumerate(windows):
        span = plan.token_range(window)
        length = span.stop - span.start
        token_arrays["token"][row, :length] = plan.tokens[span]
        token_arrays["char_start"][row, :length], token_arrays["char_end"][row, :length] = (
            plan.spans[span].T
        )
    real = token_arrays["token"] >= 0
    rng = np.random.default_rng([seed, part])
    domain = domains[plan.document[run]]
    rarity = -np.log10(shares[np.maximum(token_arrays["token"], 0)])
    entropy = rng.gamma(3.0, 1.0, shape)
    full = np.broadcast_to(full_edges(column + 1), shape)
    # log10 of the size at which half of the error remains
    middle = -3 + 0.25 * rarity + 0.08 * entropy + 0.15 * domain[:, None]
    middle = middle - 0.2 * np.log10(column + 1) + rng.normal(0, 0.3, shape)
    curves = _curves(middle, full, store.strata, rng)
    values: dict[str, Any] = {
        **token_arrays,
        **curves,
        "surprisal": np.where(real, rng.gamma(2.0, 1.5, shape), np.nan),
        "model_entropy": entropy,
        "full_edge_count": full,
        "document": plan.document[run],
        "window_start": plan.window_start[run],
        "position": plan.window_start[run][:, None] + column,
    }
    arrays = {}
    for spec in layout.window_arrays(store.controls, int(full.max())):
        name = spec.name
        if name not in values:  # a control: a distortion of the trace's curve
            base, _, control = name.rpartition("_")
            values[name] = _control(curves[base], control)
        filled = np.asarray(values[name])
        if filled.ndim > 1:
            outside = ~real.reshape(*real.shape, *(1,) * (filled.ndim - 2))
            filled = np.where(outside, spec.fill, filled)
        arrays[name] = filled.astype(spec.dtype)
    return arrays


def _curves(
    middle: Floats, full: NDArray[np.int64], strata: Floats, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """The curves [n, T, K] and the topology, which sums to the size."""
    log_size = np.linspace(-4, -0.05, len(strata)) + rng.normal(0, 0.1, (*middle.shape, 1))
    edges = np.maximum(np.rint(10 ** np.minimum(log_size, 0) * full[..., None]), 1)
    size = edges / full[..., None]
    tv = 1 / (1 + np.exp(3 * (np.log10(size) - middle[..., None])))
    # Attention edges mostly in the lower quartiles, the others mostly in the upper ones.
    kinds = np.array([0.7, 0.1, 0.08, 0.12])[:, None]
    depth = np.array([[0.4, 0.3, 0.2, 0.1]] + 3 * [[0.1, 0.2, 0.3, 0.4]])
    parts = np.floor(edges[..., None, None] * kinds * depth).astype(np.int64)
    parts[..., 0, 0] += (edges - parts.sum((-1, -2))).astype(np.int64)
    return {
        "size": size,
        "tv": tv,
        "kl": 3 * tv**2,
        "top1": (tv < 0.4).astype(np.int8),
        "nucleus": np.rint(90 * (1 - tv)).astype(np.int8),
        "loss": 2 + tv,
        "entropy": 2 + tv,
        "topology": parts,
    }


def _control(values: NDArray[Any], control: str) -> NDArray[Any]:
    if values.dtype == np.int8:
        return values
    return np.asarray(values ** (0.5 if control == "random" else 0.2))
