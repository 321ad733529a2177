"""Bootstrap intervals over independent units: documents, never the tokens within them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from ..errors import InputError
from ..tracer.indices import whole
from .arguments import given_seed

# With fewer, no resampling reaches 95%: even 5 values lie on one side of the truth 1 time in 16.
MIN_DOCUMENTS = 5
DRAWN = 10**5  # indices drawn at a time, so that they stay in the cache
Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate and the ends of its interval, which are NaN if none can be given."""

    value: float
    low: float
    high: float


def mean_interval(
    values: ArrayLike, level: float = 0.95, n_resamples: int = 9999, seed: int = 0
) -> Interval:
    """The mean of independent values with its expanded-percentile bootstrap interval.

    The ends are percentiles of the resampled means, with the tails of `widened`.

    Args:
        values: float [n], one value per independent unit (a document's mean, not a token).
        level: the nominal coverage, in (0, 1).
        n_resamples: number of bootstrap samples.
        seed: seed of the resampling; the same values and seed give the same interval.

    Returns:
        The mean and the interval; NaN ends with fewer than `MIN_DOCUMENTS` values, all NaN with
        none. NaN values are left out.

    Raises:
        InputError: a level outside (0, 1), `n_resamples` below 1, an impossible seed.

    Example:
        >>> mean_interval([0.2, 0.2, 0.2, 0.2, 0.2])
        Interval(value=0.2, low=0.2, high=0.2)
    """
    column = np.asarray(values, np.float64).reshape(-1, 1)
    return mean_intervals(column, level, n_resamples, seed)[0]


def mean_intervals(
    values: ArrayLike, level: float = 0.95, n_resamples: int = 9999, seed: int = 0
) -> list[Interval]:
    """`mean_interval` of each column of float [n, M], all with the same resamples.

    Example:
        >>> mean_intervals(np.full((5, 2), 0.2))[1]
        Interval(value=0.2, low=0.2, high=0.2)
    """
    data = np.asarray(values, np.float64)
    known = ~np.isnan(data)
    if not known.all() and data.shape[1] > 1:  # each column leaves out different rows
        return [mean_interval(column, level, n_resamples, seed) for column in data.T]
    data = data[known.all(axis=1)]
    n = len(data)
    nominal = widened(level, n)
    if n < MIN_DOCUMENTS:
        return [Interval(float(c.mean()) if n else np.nan, np.nan, np.nan) for c in data.T]
    mean = data.mean(axis=0)
    # Resample deviations, so that a constant column's interval is exactly its value.
    means = _resampled_means(data - mean, n_resamples, seed)
    tail = 50 * (1 - nominal)
    low, high = mean + np.percentile(means, [tail, 100 - tail], axis=0)
    return [Interval(*map(float, ends)) for ends in zip(mean, low, high, strict=True)]


def interval_of_means(
    statistic: Callable[[Floats], Floats],
    values: Floats,
    level: float = 0.95,
    n_resamples: int = 999,
    seed: int = 0,
) -> Interval:
    """`cluster_interval` for a statistic of column means, evaluated on all samples at once.

    Args:
        statistic: function from means float64 [..., M] to [...].
        values: float64 [n, M], one row per independent unit.
        level, n_resamples, seed: see `cluster_interval`.

    Raises:
        InputError: see `mean_interval`.

    Example:
        >>> interval_of_means(lambda means: means[..., 0], np.full((5, 1), 0.2)).value
        0.2
    """
    value, n = float(statistic(values.mean(axis=0))), len(values)
    nominal = widened(level, n)
    if n < MIN_DOCUMENTS:
        return Interval(value, np.nan, np.nan)
    return _percentiles(value, statistic(_resampled_means(values, n_resamples, seed)), nominal)


def _resampled_means(data: Floats, n_resamples: int, seed: int) -> Floats:
    """Means of n rows drawn with replacement, float64 [n_resamples, M]."""
    n, rng = len(data), np.random.default_rng(given_seed(seed))
    n_resamples = whole("n_resamples", n_resamples, least=1)
    batch = max(1, DRAWN // n)
    means = []
    for start in range(0, n_resamples, batch):
        rows = min(batch, n_resamples - start)
        drawn = rng.integers(0, n, (rows, n))
        drawn += n * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        means.append(times.astype(np.float64) @ data / n)
    return np.concatenate(means)


def _percentiles(value: float, samples: Floats, nominal: float) -> Interval:
    """A statistic with its percentile interval; samples for which it is NaN are left out."""
    known = samples[~np.isnan(samples)]
    if not len(known):
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(known, [(1 - nominal) / 2, (1 + nominal) / 2]).tolist()
    return Interval(value, low, high)


def widened(level: float, n: int) -> float:
    """The level at which a percentile interval of n values covers nearly `level`.

    The plain percentile interval is too narrow for few values: its tails become
    Phi(-sqrt(n / (n - 1)) t), t the (1 + level) / 2 quantile of Student's t with n - 1 degrees
    of freedom (Hesterberg, *What Teachers Should Know About the Bootstrap*, 2015, §5.2).

    Args:
        level: the nominal coverage, in (0, 1).
        n: number of independent units.

    Raises:
        InputError: a level outside (0, 1).

    Example:
        >>> round(widened(0.95, 1000), 3), round(widened(0.95, 8), 3)
        (0.95, 0.989)
    """
    if not 0 < level < 1:
        raise InputError(f"level={level!r}: give a coverage between 0 and 1, for example 0.95")
    if n < 2:
        return level
    reach = np.sqrt(n / (n - 1)) * special.stdtrit(n - 1, (1 + level) / 2)
    return 1 - 2 * float(special.ndtr(-reach))


def cluster_interval(
    statistic: Callable[[NDArray[np.int64]], float],
    n: int,
    level: float = 0.95,
    n_resamples: int = 999,
    seed: int = 0,
) -> Interval:
    """A statistic of documents with its bootstrap interval, which resamples whole documents.

    For statistics that are not a mean of document values (a rank correlation over words, the
    threshold at which an error is met); the tails are those of `mean_interval`.

    Args:
        statistic: function from document numbers int64 [n], with repeats, to a value.
        n: number of documents.
        level: the nominal coverage, in (0, 1).
        n_resamples: number of bootstrap samples.
        seed: seed of the resampling.

    Returns:
        The value for all documents once, and the interval; NaN ends with fewer than
        `MIN_DOCUMENTS` documents. Samples for which the statistic is NaN are left out.

    Raises:
        InputError: see `mean_interval`.

    Example:
        >>> values = np.arange(40.0)
        >>> cluster_interval(lambda drawn: float(np.median(values[drawn])), 40).value
        19.5
    """
    if not n:
        return Interval(np.nan, np.nan, np.nan)
    return cluster_intervals(lambda drawn: [statistic(drawn)], n, level, n_resamples, seed)[0]


def cluster_intervals(
    statistics: Callable[[NDArray[np.int64]], Sequence[float]],
    n: int,
    level: float = 0.95,
    n_resamples: int = 999,
    seed: int = 0,
) -> list[Interval]:
    """`cluster_interval` for several statistics, all with the same resamples of documents.

    Args:
        statistics: function from document numbers int64 [n] to one value per statistic.
        n: number of documents, at least 1.
        level, n_resamples, seed: see `cluster_interval`.
    """
    nominal = widened(level, n)
    values = statistics(np.arange(n))
    if n < MIN_DOCUMENTS:
        return [Interval(value, np.nan, np.nan) for value in values]
    rng = np.random.default_rng(given_seed(seed))
    resamples = range(whole("n_resamples", n_resamples, least=1))
    samples = np.array([statistics(rng.integers(0, n, n)) for _ in resamples])
    return [
        _percentiles(value, column, nominal)
        for value, column in zip(values, samples.T, strict=True)
    ]
