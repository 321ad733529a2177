"""density_at and auc_tv against plain float64 loops written from METHOD §6."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from densitrace.errors import InputError
from densitrace.tracer.curve import (
    auc_tv,
    compute_measure,
    density_and_auc,
    density_at,
    tolerated_error,
)

Array = NDArray[np.float64]


def density_by_loops(size: list[float], error: list[float], eps: float, full: int) -> float:
    """METHOD §6 read word for word, one curve, scalars only."""
    sizes = [max(s, 1 / full) for s in size]
    for k, e in enumerate(error):
        if e <= eps:
            if k == 0:
                return sizes[0]
            # The line through (log10 s, error) of the two strata, solved for error = eps.
            x0, x1 = math.log10(sizes[k - 1]), math.log10(sizes[k])
            y0, y1 = error[k - 1], e
            return float(10 ** (x0 + (x1 - x0) * (eps - y0) / (y1 - y0)))
    return 1.0


def auc_by_loops(size: list[float], tv: list[float], full: int) -> float:
    """The area of each trapezoid between neighbouring strata, and of the last one to (1, 0)."""
    points = [(math.log10(max(s, 1 / full)), v) for s, v in zip(size, tv, strict=True)]
    points.append((0.0, 0.0))
    area = 0.0
    for i in range(1, len(points)):
        (x0, y0), (x1, y1) = points[i - 1], points[i]
        area += (x1 - x0) * (y0 + y1) / 2
    return area


@st.composite
def curves(draw: st.DrawFn) -> tuple[Array, Array, NDArray[np.int64]]:
    """N curves of K strata: sizes ascend and may be zero or tied; errors go where they like."""
    n, k = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    fraction = st.one_of(st.just(0.0), st.floats(1e-7, 1.0))
    size = [sorted(draw(st.lists(fraction, min_size=k, max_size=k))) for _ in range(n)]
    level = st.one_of(st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.floats(0.0, 1.0))
    error = [draw(st.lists(level, min_size=k, max_size=k)) for _ in range(n)]
    if draw(st.booleans()):
        error = [sorted(row, reverse=True) for row in error]
    full = draw(st.lists(st.integers(1, 10**7), min_size=n, max_size=n))
    return np.array(size), np.array(error), np.array(full)


@given(curves(), st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0]))
def test_density_at_equals_plain_loops(
    curve: tuple[Array, Array, NDArray[np.int64]], eps: float
) -> None:
    size, error, full = curve
    expected = [
        density_by_loops(s, e, eps, f)
        for s, e, f in zip(size.tolist(), error.tolist(), full.tolist(), strict=True)
    ]
    np.testing.assert_allclose(density_at(size, error, eps, full), expected, rtol=1e-9)


@given(curves())
def test_auc_tv_equals_plain_loops(curve: tuple[Array, Array, NDArray[np.int64]]) -> None:
    size, tv, full = curve
    expected = [
        auc_by_loops(s, e, f)
        for s, e, f in zip(size.tolist(), tv.tolist(), full.tolist(), strict=True)
    ]
    np.testing.assert_allclose(auc_tv(size, tv, full), expected, rtol=1e-9, atol=1e-12)


def test_both_numbers_of_many_curves_are_those_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densitrace.tracer.curve.ROWS", 7)
    rng = np.random.default_rng(0)
    size = np.sort(rng.random((45, 5)), axis=1).astype(np.float32)
    tv, full = rng.random((45, 5)).astype(np.float32), rng.integers(1, 10**6, 45)
    density, area = density_and_auc(size, tv, 0.2, full)
    exact = size.astype(np.float64)
    np.testing.assert_array_equal(density, density_at(exact, tv, 0.2, full))
    np.testing.assert_array_equal(area, auc_tv(exact, tv, full))
    assert all(not len(found) for found in density_and_auc(size[:0], tv[:0], 0.2, full[:0]))


@given(curves(), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_tolerating_more_error_never_needs_more_edges(
    curve: tuple[Array, Array, NDArray[np.int64]], eps: float, more: float
) -> None:
    size, error, full = curve
    strict, loose = density_at(size, error, eps, full), density_at(size, error, eps + more, full)
    assert np.all(loose <= strict * (1 + 1e-9))


def test_the_first_crossing_counts_when_the_error_rises_again() -> None:
    # 0.3 -> 0.1 crosses 0.2 half way between 1e-3 and 1e-2; that it rises later changes nothing.
    size, error = [1e-3, 1e-2, 1e-1], [0.3, 0.1, 0.4]
    assert density_at(size, error, 0.2, 10**6) == pytest.approx(10**-2.5)


def test_ends_of_the_curve() -> None:
    size = [1e-3, 1e-2, 1e-1]
    assert density_at(size, [0.1, 0.05, 0.0], 0.1, 10**6) == pytest.approx(1e-3)
    assert density_at(size, [0.9, 0.8, 0.7], 0.1, 10**6) == 1.0
    assert auc_tv([1.0], [0.0], 10) == 0.0
    assert auc_tv([0.0], [1.0], 1000) == pytest.approx(1.5)  # one edge of 1000: three decades


def test_an_empty_trace_counts_as_one_edge() -> None:
    assert density_at([0.0, 0.5], [0.0, 0.0], 0.1, 200) == pytest.approx(1 / 200)
    zero, one = ([s, 0.5] for s in (0.0, 1 / 200))
    assert auc_tv(zero, [1.0, 0.2], 200) == auc_tv(one, [1.0, 0.2], 200)


def test_infinite_error_before_the_crossing() -> None:
    assert density_at([0.01, 0.1], [math.inf, 0.05], 0.1, 1000) == pytest.approx(0.1)


def test_padding_gives_nan_and_leaves_its_neighbours_alone() -> None:
    size = np.array([[0.1, 0.2], [np.nan, np.nan], [0.1, 0.2], [0.1, 0.2]], np.float32)
    error = np.array([[0.5, 0.05], [np.nan, np.nan], [0.5, np.nan], [0.5, 0.05]], np.float32)
    full = np.array([100, 0, 100, 0])
    for result in (density_at(size, error, 0.1, full), auc_tv(size, error, full)):
        assert np.isnan(result).tolist() == [False, True, True, True]
    assert density_at(size[:1], error[:1], 0.1, full[:1]) == density_at(size, error, 0.1, full)[0]


def test_shapes_and_dtypes() -> None:
    rng = np.random.default_rng(0)
    size = np.sort(rng.random((2, 3, 4), dtype=np.float32), axis=-1)
    error, full = rng.random((2, 3, 4), dtype=np.float32), np.full((2, 3), 50)
    assert density_at(size, error, 0.1, full).shape == (2, 3)
    assert auc_tv(size, error, full).dtype == np.float32
    assert auc_tv(size.astype(np.float16), error, full).dtype == np.float32
    assert auc_tv(size.astype(np.float64), error, full).dtype == np.float64
    assert density_at(np.zeros((0, 4)), np.zeros((0, 4)), 0.1, np.zeros(0, int)).shape == (0,)


@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf, "0.1", None])
def test_an_impossible_tolerance_is_refused(eps: Any) -> None:
    with pytest.raises(InputError, match="eps"):
        density_at([0.1], [0.1], eps, 10)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="size has shape"):
        auc_tv([0.1, 0.2], [0.1], 10)
    with pytest.raises(InputError, match="full_edge_count has shape"):
        auc_tv([[0.1, 0.2]], [[0.1, 0.2]], 10)
    with pytest.raises(InputError, match="K >= 1"):
        auc_tv(np.zeros((3, 0)), np.zeros((3, 0)), np.ones(3, int))


@pytest.mark.parametrize(
    ("measure", "eps"), [("auc_tv", None), ("density@0.05", 0.05), ("density@0", 0.0)]
)
def test_measures_by_name(measure: str, eps: float | None) -> None:
    size, tv, full = np.array([[0.01, 0.1]]), np.array([[0.3, 0.05]]), np.array([1000])
    assert tolerated_error(measure) == eps
    expected = auc_tv(size, tv, full) if eps is None else density_at(size, tv, eps, full)
    assert compute_measure(measure, size, tv, full).tolist() == expected.tolist()


@pytest.mark.parametrize(
    "measure",
    ["loss", "", "auc_tv@0.1", "density", "density@", "density@x"]
    + [f"density@{eps}" for eps in ("-0.1", "nan", "inf", "-inf")],
)
def test_names_of_no_measure(measure: str) -> None:
    with pytest.raises(InputError, match="is no measure: use auc_tv or density@EPS"):
        tolerated_error(measure)
