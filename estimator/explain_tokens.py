"""Explain which input tokens make a token's computation dense: SHAP over masked inputs.

The players are token ids: a masked token is replaced by a neutral id or removed, and nothing is
tokenised again. Every masked sequence is traced separately, so the cost is known, and logged,
before anything runs.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import index
from typing import Any, Literal, SupportsIndex

import numpy as np
import shap
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..tracer.indices import from_start, shown, whole
from ..tracer.select import DEFAULT_STRATA, AutoStrata, Rule, check_scope
from ..tracer.trace import Trace
from ..tracer.tracer import Tracer
from .arguments import given_seed
from .batches import batches
from .frames import AUC, tolerance

log = logging.getLogger(__name__)

Model = Callable[[list[list[int]]], ArrayLike]  # token ids of B sequences -> float [B]
Mask = int | Literal["neutral", "remove"]
EXACT_TOKENS = 8  # with at most this many players, all their subsets are traced
MAX_SEQUENCES = 1000
REMOVED = -1  # marks a removed token
AT_STRATUM = ("size", "edges", "tv")  # targets that are read at one stratum


@dataclass(frozen=True)
class Cost:
    """Upper bound on what an explanation traces; repeated sequences are traced once."""

    players: int  # tokens that can be masked
    sequences: int
    tokens: int  # of all sequences together
    exact: bool  # all subsets of the players, rather than random orders of them

    def __str__(self) -> str:
        how = "all sets" if self.exact else "random orders"
        return (
            f"{how} of {self.players} tokens: at most {self.sequences:,} sequences, "
            f"{self.tokens:,} tokens"
        )


def cost(length: int, players: int | None = None, max_sequences: int = MAX_SEQUENCES) -> Cost:
    """Compute what `explain_tokens` traces at most, before anything runs.

    Args:
        length: number of tokens up to and including the position explained.
        players: number of tokens that can be masked; by default all.
        max_sequences: the most sequences that may be traced.

    Raises:
        InputError: `max_sequences` is too small for a single order of the players.

    Example:
        >>> print(cost(100))
        random orders of 100 tokens: at most 804 sequences, 80,400 tokens
    """
    m = length if players is None else players
    max_sequences = whole("max_sequences", max_sequences)
    if m <= EXACT_TOKENS and 2**m <= max_sequences:
        return Cost(m, 2**m, 2**m * length, exact=True)
    one_order = 2 * m + 1  # one order of the players, forwards and backwards
    if max_sequences < one_order:
        raise InputError(
            f"max_sequences={max_sequences}: {m} tokens need at least "
            f"{min(one_order, 2**m)} sequences"
        )
    sequences = max_sequences // one_order * one_order
    return Cost(m, sequences, sequences * length, exact=False)


class TokenMasker(shap.maskers.Masker):  # type: ignore[misc] # shap ships no types
    """Mask token ids: replace each by `mask_id`, where `REMOVED` marks it for removal.

    Args:
        kept: bool [T], tokens that are never masked.
        mask_id: the id that replaces a masked token.
    """

    immutable_outputs = True

    def __init__(self, kept: NDArray[np.bool_], mask_id: int) -> None:
        self.kept = kept
        self.mask_id = mask_id

    def __call__(self, mask: bool | NDArray[np.bool_], ids: NDArray[np.int64]) -> Any:
        """int64 [1, T]: the ids, masked where `mask` is False."""
        shown = self._standardize_mask(mask, ids) | self.kept
        return np.where(shown, ids, self.mask_id)[None]

    def shape(self, ids: NDArray[np.int64]) -> tuple[int, int]:
        """The number of sequences per mask, and of players including the kept tokens."""
        return 1, len(ids)

    def invariants(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool [1, T]: tokens that masking does not change."""
        return np.asarray(self.kept | (ids == self.mask_id))[None]


def explain_tokens(
    model: Tracer | Model,
    text: str | Sequence[int],
    position: int = -1,
    *,
    target: str = AUC,
    stratum: int | None = None,
    mask: Mask = "neutral",
    select: Rule | AutoStrata = DEFAULT_STRATA,
    max_sequences: int = MAX_SEQUENCES,
    seed: int = 0,
    **options: Any,
) -> shap.Explanation:
    """Attribute the density of a prediction to the tokens up to its position.

    Args:
        model: a tracer; or a callable from token ids of B sequences to float [B], which is
            explained instead of a density.
        text: a text, or token ids.
        position: index of the token whose prediction is explained; negative counts from the end.
            Later tokens are cut off: a causal model does not see them.
        target: `auc_tv`; `density@EPS`, whose log10 is explained; or `size`, `edges` or `tv` of
            the trace at `stratum`. Ignored for a callable.
        stratum: column of the rule, 0 the sparsest; for `size`, `edges` and `tv` only.
        mask: `"neutral"` replaces a masked token by the tokenizer's pad token, else its eos or
            bos token, which keeps lengths, positions and the size of the full graph; an id
            replaces it by that token; `"remove"` removes it, which shifts the tokens after it and
            shrinks the full graph (the token at `position` is then always kept).
        select: the rule; AutoStrata chooses its thresholds once, on the unmasked tokens.
        max_sequences: the most masked sequences traced; see `cost`.
        seed: seed of the random orders of more than 8 tokens (of 8 or fewer all subsets are
            traced), and of `Tracer.trace`.
        options: further keyword arguments of `Tracer.trace` (importance, attention, ...).

    Returns:
        An explanation over T tokens: `values` float64 [T] in the target's unit, `base_values`
        (all players masked), `data` the tokens' texts. Base value and values add up to the target
        of the unmasked tokens. For random orders `error_std` [T] is the spread over orders.

    Raises:
        InputError: an invalid position, target, mask or seed, or `max_sequences` too small.

    Source: Lundberg and Lee, *A Unified Approach to Interpreting Model Predictions*, 2017.

    Example:
        >>> found = explain_tokens(tracer, "The cat sat on the mat")  # doctest: +SKIP
        >>> dict(zip(found.data, found.values))  # doctest: +SKIP
    """
    seed = given_seed(seed)
    ids = _until(model, text, position)
    mask_id = _mask_id(model, mask)
    kept = np.zeros(len(ids), np.bool_)
    kept[-1] = mask_id == REMOVED
    masker = TokenMasker(kept, mask_id)
    players = int((~masker.invariants(ids)).sum())
    price = cost(len(ids), players, max_sequences)
    log.info("explain_tokens: %s", price)
    value = _density_model(model, ids, target, stratum, select, {**options, "seed": seed})
    values, base, spread = _shapley(_Once(value), ids, masker, price, seed)
    texts = model.texts(ids) if isinstance(model, Tracer) else [str(token) for token in ids]
    names = np.array(texts, dtype=object)
    return shap.Explanation(
        values=values, base_values=base, data=names, feature_names=list(names), error_std=spread
    )


def _until(model: Tracer | Model, text: str | Sequence[int], position: int) -> NDArray[np.int64]:
    """int64 [T]: the token ids up to the position."""
    if isinstance(text, str):
        if not isinstance(model, Tracer):
            raise InputError("a callable has no tokenizer: give token ids instead of text")
        text = model.encode(text)
    ids = np.asarray(text, np.int64)
    if ids.ndim != 1:
        raise InputError(f"text={shown(text)}: give a text, or the token ids of one")
    return ids[: from_start("position", position, len(ids), "tokens") + 1]


def _mask_id(model: Tracer | Model, mask: Mask) -> int:
    if mask == "remove":
        return REMOVED
    if isinstance(mask, SupportsIndex) and index(mask) >= 0:
        return index(mask)
    tokenizer = model.tokenizer if isinstance(model, Tracer) else None
    if mask == "neutral":
        for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
            token = getattr(tokenizer, name, None)
            if token is not None:
                return int(token)
        raise InputError("no tokenizer with a pad, eos or bos token: give mask=ID or 'remove'")
    raise InputError(f"mask={mask!r}: use 'neutral', 'remove' or a token id")


# ---- the number that is explained ----------------------------------------------------------------


def _density_model(
    model: Tracer | Model,
    ids: NDArray[np.int64],
    target: str,
    stratum: int | None,
    select: Rule | AutoStrata,
    options: dict[str, Any],
) -> Model:
    """Return a callable unchanged; of a tracer, read the target at each sequence's last token."""
    if not isinstance(model, Tracer):
        return model
    check_scope(select, options.get("scope", "all"))
    tracer = model
    choice = {name: options[name] for name in ("importance", "count", "seed") if name in options}
    rule = tracer.choose_strata(select, [ids.tolist()], **choice)
    read = _reader(target, stratum, len(rule))

    def values(sequences: list[list[int]]) -> NDArray[np.float64]:
        results: list[float] = []
        for batch in batches(sequences):
            traces = tracer.trace(batch, select=rule, **options)
            assert isinstance(traces, list)
            results += [float(read(trace)) for trace in traces]
        return np.array(results)

    return values


def _reader(target: str, stratum: int | None, strata: int) -> Callable[[Trace], float]:
    """Return the function that reads the target off a trace, at its last output."""
    if target in AT_STRATUM:
        if stratum is None:
            raise InputError(f"stratum=None: target {target!r} is read at one of {strata}")
        column = from_start("stratum", stratum, strata, "strata of the rule")
        readers: dict[str, Callable[[Trace], float]] = {
            "size": lambda trace: trace.size[-1, column],
            "edges": lambda trace: trace.edge_count[-1, column],
            "tv": lambda trace: trace.errors["tv"][-1, column],
        }
        return readers[target]
    if stratum is not None:
        raise InputError(f"stratum={stratum}: target {target!r} is of the whole curve")
    eps = tolerance(target)
    if target == AUC:
        return lambda trace: trace.auc_tv[-1]
    return lambda trace: np.log10(trace.density_at(eps)[-1])


class _Once:
    """Adapt a model to shap, which passes rows of ids; evaluate each distinct sequence once."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.known: dict[tuple[int, ...], float] = {}

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        keys = [tuple(row[row != REMOVED].tolist()) for row in rows]
        new = [key for key in dict.fromkeys(keys) if key not in self.known]
        if new:
            values = np.asarray(self.model([list(key) for key in new]), np.float64)
            if values.shape != (len(new),):
                raise InputError(f"the model gave shape {values.shape} for {len(new)} sequences")
            self.known |= dict(zip(new, values.tolist(), strict=True))
        return np.array([self.known[key] for key in keys])


# ---- Shapley values ------------------------------------------------------------------------------


def _shapley(
    model: _Once, ids: NDArray[np.int64], masker: TokenMasker, price: Cost, seed: int
) -> tuple[NDArray[np.float64], float, NDArray[np.float64] | None]:
    """Return values [T], the base value and, for random orders, their spread [T]."""
    if price.players == 0:
        return np.zeros(len(ids)), float(model(ids[None])[0]), None
    # One batch for shap; the model splits it by number of tokens.
    options = {"max_evals": price.sequences, "batch_size": price.sequences, "silent": True}
    if price.exact:
        explanation = shap.ExactExplainer(model, masker)(ids[None], **options)
        return explanation.values[0], float(explanation.base_values[0]), None
    with _global_random_state():
        explainer = shap.PermutationExplainer(model, masker, seed=seed)
        explanation = explainer(ids[None], error_bounds=True, **options)
    return explanation.values[0], float(explanation.base_values[0]), explanation.error_std[0]


@contextmanager
def _global_random_state() -> Iterator[None]:
    """Restore NumPy's global generator on exit: shap seeds it."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
