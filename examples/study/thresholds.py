"""Test whether one automatically chosen threshold serves every domain and every model."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from densitrace import Store, Tracer
from densitrace.estimator.frames import scored
from densitrace.estimator.intervals import Interval, mean_interval
from densitrace.estimator.targets import stability

ALL = "(all)"  # the row of `stability` for all values of the label together


def by_model_and_label(
    tracers: Mapping[str, Tracer],
    stores: Mapping[str, Store],
    label: str,
    eps: float,
    most: int,
    context: int,
    seed: int,
) -> pd.DataFrame:
    """Choose a threshold with `TargetError` for each model and each value of a label.

    Args:
        tracers, stores: by name of the model, with the same names.
        label: a label of the documents.
        eps: the tolerated mean total variation.
        most: documents per value at most.
        context, seed: see `target_error`.

    Returns:
        See `targets.stability`, with the model as first level of the index.
    """
    tables = {
        name: stability(
            tracer, stores[name].documents, label, eps, most=most, context=context, seed=seed
        )
        for name, tracer in tracers.items()
    }
    return pd.concat(tables, names=["model"])


def carried_over(
    thresholds: Mapping[str, float], stores: Mapping[str, Store], seed: int
) -> pd.DataFrame:
    """The error of every model at the thresholds chosen for every model.

    Returns:
        One row per pair: `chosen_for`, `used_on`, `threshold`, and the mean total variation `error`
        with `low` and `high`, over all scanned documents.
    """
    rows = []
    for chosen_for, threshold in thresholds.items():
        for used_on, store in stores.items():
            error = error_at(store, threshold, seed)
            rows.append((chosen_for, used_on, threshold, *error))
    columns = ["chosen_for", "used_on", "threshold", "error", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def error_at(store: Store, threshold: float, seed: int = 0) -> Interval:
    """The mean over documents of their mean total variation at a threshold.

    Between the store's thresholds the error is interpolated in the log of the threshold; beyond
    them it is that of the last.
    """
    real = scored(store)
    document = np.broadcast_to(np.asarray(store.document[:])[:, None], real.shape)[real]
    curves = pd.DataFrame(np.asarray(store.tv[:], np.float64)[real]).groupby(document).mean()
    strata = np.log(np.maximum(store.strata, 1e-12))[::-1]  # rising
    values: Sequence[float] = [
        float(np.interp(np.log(threshold), strata, curve[::-1])) for curve in curves.to_numpy()
    ]
    return mean_interval(values, seed=seed)
