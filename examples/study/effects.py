"""Effect sizes whose intervals resample documents: variance shares, elasticities."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from densitrace.estimator.intervals import Interval, cluster_interval, mean_interval

Floats = NDArray[np.float64]
LEVEL = 0.95


def mean_of_documents(values: pd.Series, document: pd.Series, seed: int) -> Interval:
    """The mean over documents of the mean over their tokens."""
    return mean_interval(values.groupby(document).mean(), LEVEL, seed=seed)


# ---- share of variance ---------------------------------------------------------------------------


def variance_share(values: pd.Series, group: pd.Series, resamples: int, seed: int) -> Interval:
    """The share of the variance that lies between groups (intraclass correlation, ICC(1)).

    One-way random effects for groups of unequal size. The spread of group means expected by chance
    from the spread within groups is subtracted, so that groups that do not differ give 0 on
    average, or a little less.

    Args:
        values: float [N].
        group: [N]; whole groups are resampled.
        resamples, seed: of the interval.
    """
    number, mean, within = _moments(values, group)

    def share(drawn: NDArray[np.int64]) -> float:
        return _variance_share(number[drawn], mean[drawn], within[drawn])[0]

    return cluster_interval(share, len(number), LEVEL, resamples, seed)


def label_share(values: pd.Series, label: pd.Series) -> Interval:
    """`variance_share` for a few large groups of independent values, with an F-test interval.

    Resampling does not work here: resampled groups differ by chance twice over. The interval is
    exact for normal values in groups of equal size (Searle, *Linear Models*, 1971, ch. 9).
    """
    number, mean, within = _moments(values, label)
    share, ratio, size = _variance_share(number, mean, within)
    degrees = len(number) - 1, number.sum() - len(number)
    low, high = (ratio / stats.f.ppf(q, *degrees) for q in ((1 + LEVEL) / 2, (1 - LEVEL) / 2))
    return Interval(share, *(float((f - 1) / (f - 1 + size)) for f in (low, high)))


def _moments(values: pd.Series, group: pd.Series) -> tuple[Floats, Floats, Floats]:
    """Number, mean and squared deviations from the mean, of each group."""
    moments = values.groupby(group, observed=True).agg(["size", "mean", "var"])
    number = moments["size"].to_numpy(np.float64)
    within = moments["var"].fillna(0.0).to_numpy(np.float64) * (number - 1)
    return number, moments["mean"].to_numpy(np.float64), within


def _variance_share(number: Floats, mean: Floats, within: Floats) -> tuple[float, float, float]:
    """ICC(1), the F ratio it comes from, and the groups' effective size."""
    groups, total = len(number), number.sum()
    if groups < 2 or total == groups:
        return np.nan, np.nan, np.nan
    grand = (number * mean).sum() / total
    between = (number * (mean - grand) ** 2).sum() / (groups - 1)
    inside = within.sum() / (total - groups)
    size = (total - (number**2).sum() / total) / (groups - 1)
    if between == 0 and inside == 0:
        return np.nan, np.nan, size
    share = (between - inside) / (between + (size - 1) * inside)
    return float(share), float(between / inside) if inside else np.inf, float(size)


# ---- dependence ----------------------------------------------------------------------------------


def elasticity(
    x: pd.Series, y: pd.Series, document: pd.Series, resamples: int, seed: int
) -> Interval:
    """The slope of log y on log x within documents: the power of x by which y changes.

    Each document has its own intercept, so that differences between long and short documents do
    not count as an effect of x.
    """
    frame = pd.DataFrame({"x": np.log(x), "y": np.log(y)})
    frame -= frame.groupby(document).transform("mean")
    sums = (
        pd.DataFrame({"xy": frame["x"] * frame["y"], "xx": frame["x"] ** 2})
        .groupby(document)
        .sum()
        .to_numpy()
    )

    def slope(drawn: NDArray[np.int64]) -> float:
        xy, xx = sums[drawn].sum(0)
        return float(xy / xx) if xx > 0 else np.nan

    return cluster_interval(slope, len(sums), LEVEL, resamples, seed)
