"""Relate density to one property of tokens at a time: rank correlations and counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .arguments import given_seed
from .compare import rank_correlations
from .density import DensityResult
from .features import own_frequency
from .frames import ABSOLUTE
from .intervals import Interval

MOST_TOKENS = 10_000  # sampled for the correlations; the counts use all tokens
RESAMPLES = 499
BINS = (30, 24)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Relation:
    """A property of a token that may be related to its density."""

    name: str
    title: str
    unit: str
    log: bool


RELATIONS = (
    Relation("model_entropy", "entropy of the prediction", "nats", False),
    Relation("frequency", "frequency of the token read", "per million tokens", True),
    Relation("context", "length of context", "tokens", True),
)


@dataclass(frozen=True)
class Relations:
    """How densities relate to entropy, frequency and context.

    Attributes:
        correlations: by relation and measure, Spearman's correlation with its interval over
            documents.
        sample: the tokens of the correlations, in words.
        values: a column float64 [N] per relation, for all tokens.
    """

    correlations: Mapping[tuple[str, str], Interval]
    sample: str
    values: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """Return one row per correlation: `factor`, `measure`, `spearman`, `low`, `high`."""
        rows = [(*pair, *interval) for pair, interval in self.correlations.items()]
        return pd.DataFrame(rows, columns=["factor", "measure", "spearman", "low", "high"])


def relations(result: DensityResult, seed: int = 0) -> Relations:
    """Relate the densities of a result to entropy, frequency and context.

    Args:
        result: the densities of a scan.
        seed: seed of the sample and of the resampling.

    Raises:
        InputError: an impossible seed.

    Example:
        >>> relations(result).table()  # doctest: +SKIP
    """
    tokens = result.tokens
    values = pd.DataFrame(
        {
            "model_entropy": tokens["model_entropy"].astype(np.float64),
            "frequency": 10 ** own_frequency(tokens["token"].to_numpy()),
            "context": tokens["context"].astype(np.float64),
        }
    )
    measures = (*result.measures, *ABSOLUTE)
    columns = values.join(tokens[[m for m in measures if m not in values]])
    known = np.flatnonzero(columns.notna().all(axis=1))
    rng = np.random.default_rng(given_seed(seed))
    chosen = np.sort(rng.choice(known, min(MOST_TOKENS, len(known)), replace=False))
    pairs = [(relation.name, measure) for relation in RELATIONS for measure in measures]
    correlations = rank_correlations(
        columns.iloc[chosen],
        tokens["document"].to_numpy()[chosen],
        pairs,
        n_resamples=RESAMPLES,
        seed=seed,
    )
    which = "all" if len(chosen) == len(tokens) else f"a sample of {len(chosen):,} of"
    return Relations(correlations, f"{which} {len(tokens):,} tokens", values)


def counts(x: Floats, y: Floats, log: tuple[bool, bool]) -> pd.DataFrame:
    """Count points in a grid of cells, for figures of any number of points.

    Args:
        x, y: float [N]; NaN are left out, and non-positive values on a logarithmic axis.
        log: whether each axis is logarithmic.

    Returns:
        One row per non-empty cell: `x_low`, `x_high`, `y_low`, `y_high`, `points`.
    """
    points = []
    for values, logarithmic in zip((x, y), log, strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            points.append(np.log10(values) if logarithmic else np.asarray(values, np.float64))
    known = np.isfinite(points[0]) & np.isfinite(points[1])
    cells, edges = np.zeros(np.count_nonzero(known), np.int64), []
    for values, bins in zip(points, BINS, strict=True):
        inside = values[known]
        low, high = (inside.min(), inside.max()) if len(inside) else (0.0, 1.0)
        high = high if high > low else low + 1
        edges.append(np.linspace(low, high, bins + 1))
        bin_number = np.minimum(((inside - low) * (bins / (high - low))).astype(np.int64), bins - 1)
        cells = cells * bins + bin_number
    number = np.bincount(cells, minlength=BINS[0] * BINS[1]).reshape(BINS)
    column, row = np.nonzero(number)
    ends = [10**e if logarithmic else e for e, logarithmic in zip(edges, log, strict=True)]
    return pd.DataFrame(
        {
            "x_low": ends[0][column],
            "x_high": ends[0][column + 1],
            "y_low": ends[1][row],
            "y_high": ends[1][row + 1],
            "points": number[column, row],
        }
    )


def medians(
    x: Floats, y: Floats, log: bool, most: int = 12, fewest: int = 20
) -> tuple[Floats, Floats]:
    """Medians of y in bins of x that are equally wide in x or in its logarithm.

    Args:
        x: float [N].
        y: float [N, M], columns with a median each.
        log: whether bins are equally wide in the logarithm of x.
        most: bins at most.
        fewest: leave out bins with fewer points.

    Returns:
        Medians float64 [bins] of x, and [bins, M] of y. Points that are not finite are left out,
        and with `log` those whose x is not positive.
    """
    known = np.isfinite(x) & np.isfinite(y).all(axis=1) & ((x > 0) | (not log))
    axis, y = (np.log10(x[known]) if log else x[known]), y[known]
    if not len(axis) or np.ptp(axis) == 0:
        return np.empty(0), np.empty((0, y.shape[1]))
    run = np.minimum(((axis - axis.min()) / np.ptp(axis) * most).astype(np.int8), most - 1)
    order = np.argsort(run, kind="stable")
    ends = np.cumsum(np.bincount(run, minlength=most))
    runs = [order[start:end] for start, end in pairwise((0, *ends)) if end - start >= fewest]
    middle, *upright = (
        np.array([np.median(values[rows]) for rows in runs]) for values in (axis, *y.T)
    )
    return (10**middle if log else middle), np.column_stack(upright)
