"""Read the threshold that keeps an error off a scan, to see how it differs between labels."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..tracer.select import Rule, Threshold
from .density import DensityResult
from .intervals import interval_of_means

RESAMPLES = 499
ALL = "(all)"  # the first row of a table, of all values; a value may be called so too
Floats = NDArray[np.float64]


def threshold_at(tau: Floats, error: Floats, eps: float) -> Floats:
    """Find where curves exceed `eps` for good, linear in log threshold.

    Args:
        tau: float64 [K], thresholds, rising.
        error: float64 [..., K], the errors at these.
        eps: the tolerated error.

    Returns:
        Thresholds float64 [...]; NaN where a curve never meets `eps`.

    Example:
        >>> float(threshold_at(np.array([0.01, 0.1]), np.array([0.0, 0.2]), 0.1).round(4))
        0.0316
    """
    met = error <= eps
    last = len(tau) - 1 - np.argmax(met[..., ::-1], axis=-1)
    after = np.minimum(last + 1, len(tau) - 1)
    inside = np.take_along_axis(error, last[..., None], -1)[..., 0]
    outside = np.take_along_axis(error, after[..., None], -1)[..., 0]
    # Do not interpolate from threshold 0, which has no logarithm, nor beyond the last one.
    between = (after > last) & (tau[last] > 0) & met.any(axis=-1)
    part = np.divide(eps - inside, outside - inside, out=np.zeros_like(inside), where=between)
    ratio = np.divide(tau[after], tau[last], out=np.ones_like(inside), where=between)
    return np.asarray(np.where(met.any(axis=-1), tau[last] * ratio**part, np.nan))


def error_at(tau: Floats, error: Floats, threshold: float) -> float:
    """A curve's error at a threshold, linear in log threshold between those known.

    Args:
        tau: float64 [K], thresholds, rising.
        error: float64 [K], the errors at these.
        threshold: one of them, or a value between two above 0.

    Returns:
        The error; NaN if the threshold is NaN.

    Example:
        >>> round(error_at(np.array([0.0, 0.01, 0.1]), np.array([0.0, 0.2, 0.4]), 0.0316), 2)
        0.3
    """
    if not threshold > 0:  # no logarithm; 0 is the first threshold
        return float(error[0]) if threshold == 0 else np.nan
    known = tau > 0
    return float(np.interp(np.log(threshold), np.log(tau[known]), error[known]))


def threshold_table(result: DensityResult, label: str, seed: int = 0) -> pd.DataFrame | None:
    """Find where each label value's mean error crosses `result.eps`, between the strata.

    Args:
        result: the densities of a scan.
        label: the label to group by.
        seed: seed of the resampling of documents.

    Returns:
        One row per value, after a first one for all (index `(all)`): `documents`, `threshold`,
        `low`, `high`, and `error_of_all`, the value's error at the threshold of all. The largest
        threshold of the scan is a lower bound. None unless the rule is a `Threshold`.

    Example:
        >>> threshold_table(DensityEstimator.from_store("traces.zarr"), "domain")  # doctest: +SKIP
    """
    if not isinstance(Rule.from_json(result.settings["rule"]), Threshold):
        return None
    scanned = result.errors.dropna().sort_index(axis=1)
    tau, curves = scanned.columns.to_numpy(np.float64), scanned.to_numpy()
    common = float(threshold_at(tau, curves.mean(0), result.eps))
    groups = by_value(result.documents[label].loc[scanned.index])
    rows = []
    for of in (curves, *(curves[places] for _, places in groups)):
        interval = interval_of_means(
            lambda error: threshold_at(tau, error, result.eps),
            of,
            n_resamples=RESAMPLES,
            seed=seed,
        )
        rows.append(
            {
                "documents": len(of),
                "threshold": interval.value,
                "low": interval.low,
                "high": interval.high,
                "error_of_all": error_at(tau, of.mean(0), common),
            }
        )
    return pd.DataFrame(rows, pd.Index([ALL, *(value for value, _ in groups)], name=label))


def by_value(column: pd.Series) -> list[tuple[object, NDArray[np.int64]]]:
    """The values of a column with the places of each, in the order of their names.

    Example:
        >>> [(value, places.tolist()) for value, places in by_value(pd.Series(["1", 1, "1"]))]
        [('1', [0, 2]), (1, [1])]
    """
    codes, values = pd.factorize(column.astype(object), use_na_sentinel=False)
    order = sorted(range(len(values)), key=lambda code: str(values[code]))
    return [(values[code], np.flatnonzero(codes == code)) for code in order]
