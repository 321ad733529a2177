"""The threshold that keeps an error, read off a scan: how much does it differ between labels?"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..tracer.select import Threshold
from ..tracer.store import Store
from .intervals import cluster_interval

RESAMPLES = 499
Floats = NDArray[np.float64]


def threshold_at(tau: Floats, error: Floats, eps: float) -> float:
    """Where a curve leaves `eps` for good, linear in log threshold; NaN where it never meets it.

    Args:
        tau: float64 [K], thresholds, rising.
        error: float64 [K], at these.
        eps: the tolerated error.

    Example:
        >>> round(threshold_at(np.array([0.01, 0.1]), np.array([0.0, 0.2]), 0.1), 4)
        0.0316
    """
    met = np.flatnonzero(error <= eps)
    if not len(met):
        return np.nan
    last = int(met[-1])
    if last + 1 == len(tau) or tau[last] == 0:
        return float(tau[last])
    part = (eps - error[last]) / (error[last + 1] - error[last])
    return float(tau[last] * (tau[last + 1] / tau[last]) ** part)


def document_errors(store: Store) -> Floats:
    """Mean total variation of each document at each stratum, float64 [M, K]; NaN if not scanned."""
    sums = np.zeros((len(store.documents), len(store.strata)))
    tokens = np.zeros(len(sums))

    def totals(run: slice) -> tuple[NDArray[Any], ...]:
        real = store.real(run)
        errors = np.where(real[..., None], store.tv[run], 0).sum(1, dtype=np.float64)
        return store.owners[run], errors, real.sum(1)

    for document, errors, number in store.by_runs(totals):
        np.add.at(sums, document, errors)
        np.add.at(tokens, document, number)
    return np.divide(
        sums, tokens[:, None], out=np.full_like(sums, np.nan), where=tokens[:, None] > 0
    )


def threshold_table(
    store: Store, label: str, eps: float = 0.1, errors: Floats | None = None, seed: int = 0
) -> pd.DataFrame | None:
    """Where each label value's mean error crosses `eps`, interpolated between strata.

    Args:
        store: a scanned store.
        label: whose values are told apart.
        eps: the tolerated mean total variation.
        errors: `document_errors(store)`, where it is there already.
        seed: of the resampling of documents.

    Returns:
        One row a value, the first for all (index `(all)`): `documents`, `threshold`, `low`,
        `high`, and `error_of_all`, the value's error at the threshold of all. None where the rule
        is no threshold.

    Example:
        >>> threshold_table(open_store("traces.zarr"), "domain")  # doctest: +SKIP
    """
    if not isinstance(store.rule, Threshold):
        return None
    found = document_errors(store) if errors is None else errors
    scanned = np.isfinite(found).all(axis=1)
    names = store.documents[label].astype(str).to_numpy()[scanned]
    order = np.argsort(store.strata)
    tau, curves = store.strata[order], found[scanned][:, order]
    common = threshold_at(tau, curves.mean(0), eps)
    rows = {}
    for value in ("(all)", *np.unique(names)):
        of = curves if value == "(all)" else curves[names == value]

        def statistic(drawn: NDArray[np.int64], of: Floats = of) -> float:
            times = np.bincount(drawn, minlength=len(of))
            return threshold_at(tau, times @ of / len(drawn), eps)

        interval = cluster_interval(statistic, len(of), n_resamples=RESAMPLES, seed=seed)
        rows[value] = {
            "documents": len(of),
            "threshold": interval.value,
            "low": interval.low,
            "high": interval.high,
            "error_of_all": _error_at(tau, of.mean(0), common),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(label)


def _error_at(tau: Floats, error: Floats, threshold: float) -> float:
    known = tau > 0
    return float(np.interp(np.log(threshold), np.log(tau[known]), error[known]))
