"""Find the largest threshold that keeps the model's predictions within a tolerated error.

`AutoStrata` spreads thresholds over sizes; this module searches for one threshold by its error.
The mean total variation of a corpus grows with the threshold, so a bracketing search works: trace
several thresholds inside the bracket as the lanes of one pass, shrink the bracket to the pair
between which the error crosses, and repeat.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import InputError
from ..tracer.indices import whole
from ..tracer.select import AutoStrata, Threshold
from ..tracer.tracer import Tracer
from .arguments import given_seed
from .batches import batches
from .intervals import Interval, interval_of_means, mean_interval
from .thresholds import ALL, by_value, error_at, threshold_at

LANES = 6  # thresholds of one pass
ROUNDS = 3  # passes after the first; each divides the bracket by LANES + 1
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TargetThreshold:
    """The threshold found for a tolerated error, with its intervals.

    Attributes:
        threshold: the largest one tried whose error is at most `eps`.
        error: mean total variation at it; a mean over documents of their tokens' mean.
        interval: the threshold with its interval: where the error crosses `eps`, interpolated in
            log threshold between those tried, documents resampled.
        error_interval: the error with its interval.
        size: mean relative trace size at it, with its interval.
        tried: every threshold traced, rising: `threshold`, `error`, `size`.
        eps: the tolerated error.
        documents: number of documents in the pilot.
    """

    threshold: float
    error: float
    interval: Interval
    error_interval: Interval
    size: Interval
    tried: pd.DataFrame
    eps: float
    documents: int

    @property
    def rule(self) -> Threshold:
        """The rule to trace or scan with."""
        return Threshold([self.threshold])


@dataclass(frozen=True)
class TargetError:
    """A tolerated mean total variation; `choose` finds its threshold on a pilot sample.

    Unlike AutoStrata it needs errors, and so lanes, and cannot be passed as `select`: pass
    `select=TargetError(0.1).choose(tracer, texts).rule`.

    Args:
        eps: the tolerated error, in (0, 1).

    Raises:
        InputError: eps outside (0, 1).

    Example:
        >>> TargetError(0.1).choose(tracer, texts).rule.values  # doctest: +SKIP
    """

    eps: float

    def __post_init__(self) -> None:
        if not (isinstance(self.eps, Real) and 0 < self.eps < 1):
            raise InputError(f"eps={self.eps!r}: give a total variation between 0 and 1")

    def choose(
        self, tracer: Tracer, texts: Sequence[str] | Sequence[Sequence[int]], **options: Any
    ) -> TargetThreshold:
        """Find the threshold on a pilot; see `target_error`."""
        return target_error(tracer, texts, self.eps, **options)


def target_error(
    tracer: Tracer,
    texts: Sequence[str] | Sequence[Sequence[int]],
    eps: float = 0.1,
    *,
    context: int = 512,
    level: float = 0.95,
    seed: int = 0,
    **options: Any,
) -> TargetThreshold:
    """Find the largest threshold whose mean total variation over a pilot is at most `eps`.

    Args:
        tracer: the model.
        texts: the pilot: texts, or windows of token ids; each is a unit of resampling.
        eps: the tolerated error, in (0, 1).
        context: trace the first `context` tokens of each text.
        level: nominal coverage of the intervals.
        seed: seed of the resampling.
        options: further keyword arguments of `Tracer.trace` (importance, attention, ...).

    Returns:
        The threshold. It was itself traced, so its error is measured, not interpolated; it lies
        within 1% of where the error crosses `eps`, unless it is the largest of those tried.

    Raises:
        InputError: eps outside (0, 1), no text, `context` below 1, an impossible seed, a rule among
            the options, or an `eps` that the smallest threshold does not meet.

    Example:
        >>> found = target_error(tracer, texts, 0.1)  # doctest: +SKIP
        >>> found.threshold, found.size.value  # doctest: +SKIP
    """
    TargetError(eps)  # checks eps
    if isinstance(texts, str) or not len(texts):
        raise InputError("texts: give several texts, or several windows of token ids")
    context, seed = whole("context", context, least=1), given_seed(seed)
    if {"select", "scope", "output"} & set(options):
        raise InputError("select, scope and output are chosen here: leave them out")
    windows = [tracer.encode(text) if isinstance(text, str) else list(text) for text in texts]
    pilot = _Pilot(tracer, [window[:context] for window in windows if len(window)], options)
    tried = AutoStrata.pilot(options.get("importance", "norm_l1")).values
    low, high = min(tau for tau in tried if tau > 0), max(tried)
    pilot.trace([0.0, *np.geomspace(low, high, LANES)])
    for _ in range(ROUNDS):
        low, high = pilot.bracket(eps)
        if not 0 < low < high:
            break
        pilot.trace(np.geomspace(low, high, LANES + 2)[1:-1])
    return pilot.answer(eps, level, seed)


class _Pilot:
    """Windows, and their mean error and size at every threshold traced so far."""

    def __init__(
        self, tracer: Tracer, windows: list[list[int]], options: Mapping[str, Any]
    ) -> None:
        if not windows:
            raise InputError("texts hold no token")
        self.tracer, self.options = tracer, options
        # Sorted, so that windows of similar length run together with little padding.
        self.windows = sorted(windows, key=len)
        self.tau: Floats = np.empty(0)
        self.error: Floats = np.empty((len(windows), 0))  # [documents, thresholds], rising
        self.size: Floats = np.empty((len(windows), 0))

    def trace(self, thresholds: Sequence[float] | Floats) -> None:
        """Trace the pilot at thresholds that were not traced before."""
        rule = Threshold(thresholds)
        error, size = [], []
        for batch in batches(self.windows):
            traces = self.tracer.trace(batch, select=rule, **self.options)
            assert isinstance(traces, list)
            error += [trace.errors["tv"].mean(0, dtype=np.float64) for trace in traces]
            size += [trace.size.mean(0, dtype=np.float64) for trace in traces]
        tau = np.concatenate([self.tau, rule.values])
        order = np.argsort(tau)
        self.tau = tau[order]
        self.error = np.concatenate([self.error, error], axis=1)[:, order]
        self.size = np.concatenate([self.size, size], axis=1)[:, order]

    def bracket(self, eps: float) -> tuple[float, float]:
        """The largest threshold tried that meets `eps`, and the next larger one."""
        number = self._place(eps)
        return float(self.tau[number]), float(self.tau[min(number + 1, len(self.tau) - 1)])

    def _place(self, eps: float) -> int:
        met = np.flatnonzero(self.error.mean(0) <= eps)
        if not len(met):
            raise InputError(
                f"eps={eps:g} is below the error of threshold 0, {self.error.mean(0)[0]:.3g}"
            )
        return int(met[-1])

    def answer(self, eps: float, level: float, seed: int) -> TargetThreshold:
        """The threshold found, with its intervals."""
        number, n = self._place(eps), len(self.windows)
        crossing = interval_of_means(
            lambda error: threshold_at(self.tau, error, eps), self.error, level, seed=seed
        )
        error = mean_interval(self.error[:, number], level, seed=seed)
        means = {"error": self.error.mean(0), "size": self.size.mean(0)}
        return TargetThreshold(
            threshold=float(self.tau[number]),
            error=error.value,
            interval=Interval(float(self.tau[number]), crossing.low, crossing.high),
            error_interval=error,
            size=mean_interval(self.size[:, number], level, seed=seed),
            tried=pd.DataFrame({"threshold": self.tau, **means}),
            eps=eps,
            documents=n,
        )


def stability(
    tracer: Tracer,
    documents: pd.DataFrame,
    label: str,
    eps: float = 0.1,
    *,
    most: int = 20,
    **options: Any,
) -> pd.DataFrame:
    """Find a threshold for each value of a label, to see whether one serves all.

    Args:
        tracer: the model.
        documents: columns `text` and the label, as in `store.documents`.
        label: the column; each of its values is a separate pilot.
        eps: the tolerated error.
        most: documents per value at most, evenly spread.
        options: options of `target_error`.

    Returns:
        One row per value, after a first one for all (index `(all)`): `documents`, `threshold`,
        `low`, `high`, `error`, `size`, and `error_of_all`: the value's error at the threshold of
        all, read off its own curve. If that is far above `eps`, one threshold does not serve all.

    Raises:
        InputError: there is no such column; see also `target_error`.
    """
    if label not in documents or "text" not in documents:
        raise InputError(f"label={label!r}: the columns are {', '.join(documents.columns)}")
    labelled = documents[documents[label].notna()]
    groups = by_value(labelled[label])
    texts = labelled["text"].to_numpy()
    chosen = [
        texts[places[np.unique(np.linspace(0, len(places) - 1, most).astype(int))]].tolist()
        for _, places in groups
    ]
    pilots = [[text for pilot in chosen for text in pilot], *chosen]
    targets = [target_error(tracer, pilot, eps, **options) for pilot in pilots]
    common = targets[0].threshold
    rows = [
        {
            "documents": target.documents,
            "threshold": target.threshold,
            "low": target.interval.low,
            "high": target.interval.high,
            "error": target.error,
            "size": target.size.value,
            "error_of_all": error_at(
                target.tried["threshold"].to_numpy(), target.tried["error"].to_numpy(), common
            ),
        }
        for target in targets
    ]
    return pd.DataFrame(rows, pd.Index([ALL, *(value for value, _ in groups)], name=label))
