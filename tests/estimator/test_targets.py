"""Thresholds by their error, against dense grids and simulation."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from byte_model import byte_model, byte_tokenizer
from numpy.typing import NDArray

from densitrace import AutoStrata, InputError, Threshold, Trace, Tracer
from densitrace.estimator.intervals import cluster_interval, interval_of_means
from densitrace.estimator.targets import TargetError, stability, target_error
from densitrace.estimator.thresholds import error_at, threshold_at
from densitrace.tracer.nodes import ImportanceName

TEXTS = ["The cat sat on the mat.", "In the beginning", "We the people", "字猫 and more", "To be"]


@pytest.fixture(scope="module")
def tracer() -> Tracer:
    return Tracer(byte_model(), byte_tokenizer())


def mean_errors(tracer: Tracer, taus: list[float]) -> NDArray[np.float64]:
    traces = [tracer.trace(text, select=Threshold(taus)) for text in TEXTS]
    errors = [trace.errors["tv"].mean(0) for trace in traces if isinstance(trace, Trace)]
    return np.asarray(np.array(errors, np.float64).mean(0))


@pytest.mark.parametrize("eps", [0.05, 0.2])
def test_the_threshold_is_the_largest_of_a_dense_grid(tracer: Tracer, eps: float) -> None:
    found = target_error(tracer, TEXTS, eps)
    grid = np.geomspace(found.threshold / 3, min(0.499, found.threshold * 30), 120)
    errors = mean_errors(tracer, grid.tolist())[::-1]  # rising thresholds
    best = grid[np.flatnonzero(errors <= eps)[-1]]
    step = grid[1] / grid[0]
    assert best / step / 1.01 <= found.threshold <= best * step * 1.01
    assert found.error <= eps
    assert found.error == pytest.approx(mean_errors(tracer, [found.threshold])[0], abs=1e-5)
    assert found.rule == Threshold([found.threshold])


def test_what_is_reported_is_what_was_traced(tracer: Tracer) -> None:
    found = TargetError(0.1).choose(tracer, TEXTS)
    assert found.documents == 5 and found.eps == 0.1
    assert found.interval.low <= found.threshold <= found.interval.high
    assert found.error_interval.low <= found.error <= found.error_interval.high
    assert found.tried["threshold"].is_monotonic_increasing
    assert found.tried["size"].is_monotonic_decreasing
    row = found.tried[found.tried["threshold"] == found.threshold].iloc[0]
    assert (row["error"], row["size"]) == pytest.approx((found.error, found.size.value))
    larger = found.tried[found.tried["threshold"] > found.threshold]
    assert (larger["error"] > 0.1).all()
    assert larger["threshold"].min() < 1.01 * found.threshold


def test_windows_of_token_ids_are_pilots_too(tracer: Tracer) -> None:
    by_text = target_error(tracer, TEXTS, 0.1, context=10)
    windows = [tracer.encode(text)[:10] for text in TEXTS]
    found = target_error(tracer, [[], *windows], 0.1)
    assert (found.threshold, found.documents) == (by_text.threshold, len(TEXTS))
    with pytest.raises(InputError, match="texts hold no token"):
        target_error(tracer, [[], []], 0.1)


def test_an_error_that_every_threshold_meets(tracer: Tracer) -> None:
    found = target_error(tracer, TEXTS, 0.999)
    assert found.threshold == found.tried["threshold"].max() == pytest.approx(0.499)


def test_a_lower_level_gives_narrower_intervals(tracer: Tracer) -> None:
    half, most = (target_error(tracer, TEXTS, 0.1, level=level) for level in (0.5, 0.99))
    for name in ("interval", "error_interval", "size"):
        narrow, wide = getattr(half, name), getattr(most, name)
        assert wide.low < narrow.low < narrow.high < wide.high, name


@pytest.mark.parametrize("importance", ["norm_l2", "cosine"])
def test_the_search_begins_where_an_importances_weights_lie(
    tracer: Tracer, importance: ImportanceName
) -> None:
    found = target_error(tracer, TEXTS, 0.1, importance=importance)
    pilot = AutoStrata.pilot(importance).values
    tried = found.tried["threshold"]
    assert [tried.iloc[0], tried.iloc[1], tried.iloc[-1]] == pytest.approx(
        [0, min(tau for tau in pilot if tau), max(pilot)]
    )


def test_intervals_of_a_crossing_cover_it() -> None:
    """Curves of documents shift at random; the mean curve's crossing has to be covered."""
    rng = np.random.default_rng(0)
    tau = np.geomspace(1e-4, 0.3, 24)
    n, trials, hits = 20, 200, 0

    def curves(number: int) -> NDArray[np.float64]:
        middle = np.log(0.01) + rng.normal(scale=0.8, size=(number, 1))
        return np.asarray(1 / (1 + np.exp(middle - np.log(tau))))

    truth = threshold_at(tau, curves(200_000).mean(0), 0.2)
    for trial in range(trials):
        interval = interval_of_means(
            lambda error: threshold_at(tau, error, 0.2), curves(n), n_resamples=299, seed=trial
        )
        hits += int(interval.low <= truth <= interval.high)
    assert 0.90 <= hits / trials <= 0.97


def test_a_crossing_is_interpolated_in_log_threshold() -> None:
    tau, error = np.array([0.0, 0.01, 0.1, 0.2]), np.array([0.0, 0.1, 0.3, 0.8])
    assert threshold_at(tau, error, 0.2) == pytest.approx(np.sqrt(0.01 * 0.1))
    assert threshold_at(tau, error, 0.05) == 0.0
    assert threshold_at(tau, error, 0.9) == 0.2
    assert np.isnan(threshold_at(tau, error + 1, 0.9))
    several = threshold_at(tau, np.stack([error, error + 1]), 0.2)
    np.testing.assert_allclose(several, [np.sqrt(0.01 * 0.1), np.nan])


def test_an_error_is_interpolated_in_log_threshold_but_at_0() -> None:
    tau, error = np.array([0.0, 0.01, 0.1]), np.array([0.05, 0.1, 0.3])
    assert error_at(tau, error, np.sqrt(0.01 * 0.1)) == pytest.approx(0.2)
    assert error_at(tau, error, 0.0) == error_at(tau[:1], error[:1], 0.0) == 0.05
    assert np.isnan(error_at(tau[1:2], error[1:2], np.nan))


def test_an_interval_of_means_is_that_of_single_samples() -> None:
    error = np.random.default_rng(0).random((9, 4))
    at_once = interval_of_means(lambda means: means.max(-1), error, n_resamples=99, seed=3)
    one_by_one = cluster_interval(
        lambda drawn: float(error[drawn].mean(0).max()), 9, n_resamples=99, seed=3
    )
    assert at_once == pytest.approx(one_by_one)
    few = interval_of_means(lambda means: means.max(-1), error[:4])
    assert np.isfinite(few.value) and np.isnan([few.low, few.high]).all()


def test_thresholds_by_label_and_of_all(tracer: Tracer) -> None:
    documents = pd.DataFrame({"text": TEXTS * 2, "half": ["a"] * 5 + ["b"] * 5})
    table = stability(tracer, documents, "half", 0.1, most=5)
    assert table.index.tolist() == ["(all)", "a", "b"]
    assert table["documents"].tolist() == [10, 5, 5]
    # The same texts under either label: one threshold serves both.
    assert table["threshold"].nunique() == 1
    np.testing.assert_allclose(table["error_of_all"], table["error"], atol=1e-6)
    assert (table["low"] <= table["threshold"]).all()
    few = stability(tracer, documents.assign(text=TEXTS[:1] * 10), "half", 0.1, most=2)
    assert few["documents"].tolist() == [4, 2, 2]


def test_values_of_any_name_and_type_are_kept_apart(tracer: Tracer) -> None:
    values: list[Any] = ["(all)", "(all)", "(all)", 1, 1, "1"]
    documents = pd.DataFrame(
        {
            "text": [*TEXTS, "one more", "without"],
            "label": pd.Series([*values, None], dtype=object),
        }
    )
    table = stability(tracer, documents, "label", 0.2)
    assert table.index.tolist() == ["(all)", "(all)", 1, "1"]
    assert table["documents"].tolist() == [6, 3, 2, 1]


def test_what_cannot_be_met_is_refused(tracer: Tracer) -> None:
    for eps in (0.0, 1.0, float("nan")):
        with pytest.raises(InputError, match="eps"):
            TargetError(eps)
    for wrong in ("0.1", None):
        with pytest.raises(InputError, match="eps="):
            TargetError(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"context=1\.5 is not a whole number"):
        target_error(tracer, ["a b"], context=1.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="seed=-1 is below 0"):
        target_error(tracer, ["a b"], seed=-1)
    with pytest.raises(InputError, match="give several texts"):
        target_error(tracer, "one text")
    with pytest.raises(InputError, match="leave them out"):
        target_error(tracer, TEXTS, 0.1, select=Threshold([0.1]))
    for context in (0, -1):
        with pytest.raises(InputError, match=f"context={context}"):
            target_error(tracer, TEXTS, 0.1, context=context)
    with pytest.raises(InputError, match="label='lang'"):
        stability(tracer, pd.DataFrame({"text": TEXTS}), "lang")
