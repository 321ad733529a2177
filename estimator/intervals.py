"""Bootstrap intervals over independent units: documents, never the tokens within them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ..errors import InputError

# With fewer, no resampling reaches 95%: five values all miss a side 1 in 16 times.
MIN_DOCUMENTS = 5


class Interval(NamedTuple):
    """An estimate with the ends of its interval; the ends are NaN where none can be given."""

    value: float
    low: float
    high: float


def mean_interval(
    values: ArrayLike, level: float = 0.95, n_resamples: int = 9999, seed: int = 0
) -> Interval:
    """The mean of independent values with its expanded-percentile bootstrap interval.

    Percentiles of the resampled means, with tails as `widened` has them.

    Args:
        values: float [n], one value per independent unit (a document's mean, not a token).
        level: the nominal coverage, in (0, 1).
        n_resamples: bootstrap samples.
        seed: of the resampling; the same values and seed give the same interval.

    Returns:
        The mean and the interval; NaN ends with fewer than `MIN_DOCUMENTS` values, all NaN with
        none. NaN values are left out.

    Raises:
        InputError: a level outside (0, 1).

    Example:
        >>> mean_interval([0.2, 0.2, 0.2, 0.2, 0.2])
        Interval(value=0.2, low=0.2, high=0.2)
    """
    data = np.asarray(values, np.float64)
    data = data[~np.isnan(data)]
    n = len(data)
    nominal = widened(level, n)
    if n < MIN_DOCUMENTS:
        return Interval(float(data.mean()) if n else np.nan, np.nan, np.nan)
    result = stats.bootstrap(
        (data,),
        np.mean,
        axis=-1,
        n_resamples=n_resamples,
        batch=max(1, 10**7 // n),  # at most 80 MB of resampled values at a time
        confidence_level=nominal,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = (float(end) for end in result.confidence_interval)
    return Interval(float(data.mean()), low, high)


def widened(level: float, n: int) -> float:
    """The level of a percentile interval of n values whose coverage is nearly `level`.

    The plain percentile interval is too narrow for few values: its tails become
    Phi(-sqrt(n / (n - 1)) t), t the (1 + level) / 2 quantile of Student's t with n - 1 degrees
    of freedom (Hesterberg, *What Teachers Should Know About the Bootstrap*, 2015, §5.2).

    Args:
        level: the nominal coverage, in (0, 1).
        n: independent units.

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
    reach = np.sqrt(n / (n - 1)) * stats.t.ppf((1 + level) / 2, n - 1)
    return 1 - 2 * float(stats.norm.cdf(-reach))


def cluster_interval(
    statistic: Callable[[NDArray[np.int64]], float],
    n: int,
    level: float = 0.95,
    n_resamples: int = 999,
    seed: int = 0,
) -> Interval:
    """A statistic of whole documents with its bootstrap interval: documents are resampled.

    For statistics that are no mean of document values (a rank correlation over words, the
    threshold at which an error is met); the tails are those of `mean_interval`.

    Args:
        statistic: from document numbers int64 [n], repeated ones included, to a value.
        n: documents.
        level: the nominal coverage, in (0, 1).
        n_resamples: bootstrap samples.
        seed: of the resampling.

    Returns:
        The value for all documents once, and the interval; NaN ends with fewer than
        `MIN_DOCUMENTS` documents. Samples for which the statistic is NaN are left out.

    Raises:
        InputError: a level outside (0, 1).

    Example:
        >>> values = np.arange(40.0)
        >>> cluster_interval(lambda drawn: float(np.median(values[drawn])), 40).value
        19.5
    """
    nominal = widened(level, n)
    value = statistic(np.arange(n)) if n else np.nan
    if n < MIN_DOCUMENTS:
        return Interval(value, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    found = np.array([statistic(rng.integers(0, n, n)) for _ in range(n_resamples)])
    found = found[~np.isnan(found)]
    if not len(found):
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(found, [(1 - nominal) / 2, (1 + nominal) / 2])
    return Interval(value, float(low), float(high))
