"""Density of a token from its size-error curve (METHOD §6).

The curve of an output position has K strata, sparsest first: `size` [..., K], the relative trace
sizes, and `error` [..., K]. Its axis is log10 of the size. A trace has at least one edge, so sizes
below `1 / full_edge_count` are raised to it. Depends on NumPy alone; any leading shape.
"""

from numbers import Real
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from .indices import shown

ROWS = 8192  # curves computed at a time, to stay in the cache
Floats = NDArray[np.floating]


def density_at(size: ArrayLike, error: ArrayLike, eps: float, full_edge_count: ArrayLike) -> Floats:
    """The smallest relative size whose error is at most `eps`.

    Takes the sparsest stratum with `error <= eps` and interpolates the crossing linearly in log10
    of the size between it and the stratum before it. If there is none before it, the result is its
    size; if no stratum qualifies, 1.0.

    Args:
        size: float [..., K], relative trace sizes (edges / full edges), sparsest stratum first.
        error: float [..., K], error of each stratum, lower is better (the papers use TV).
        eps: tolerated error, in the error's unit, >= 0.
        full_edge_count: int [...], edges of the full graph of each output position.

    Returns:
        float [...] in (0, 1], in the dtype of `size`, at least float32. NaN where the row has a
        NaN or no edges (padding).

    Raises:
        InputError: shapes that do not fit, no stratum, or a negative or non-finite `eps`.

    Source: METHOD §6; *Sparse or Dense?* (arXiv 2601.22795).

    Example:
        >>> float(density_at([0.01, 0.1], [0.3, 0.1], 0.2, 1000).round(4))
        0.0316
    """
    return _curves(size, error, full_edge_count).crossing(eps)


def auc_tv(size: ArrayLike, tv: ArrayLike, full_edge_count: ArrayLike) -> Floats:
    """The area under the error curve over log10 of the size: the papers' scalar density.

    Trapezoid rule from the smallest stratum to size 1, where the error is 0 because the full graph
    is the model itself. Unit: total variation x decades. Higher is denser.

    Args:
        size: float [..., K], relative trace sizes, sparsest stratum first.
        tv: float [..., K], total variation of each stratum, in [0, 1].
        full_edge_count: int [...], edges of the full graph of each output position.

    Returns:
        float [...], in the dtype of `size`, at least float32. NaN where the row has a NaN or no
        edges (padding).

    Raises:
        InputError: shapes that do not fit, or no stratum.

    Source: METHOD §6; *Sparse or Dense?* (arXiv 2601.22795).

    Example:
        >>> float(auc_tv([0.01, 0.1], [1.0, 0.5], 1000))
        1.0
    """
    return _curves(size, tv, full_edge_count).area()


def density_and_auc(
    size: NDArray[np.floating], tv: NDArray[np.floating], eps: float, full_edge_count: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`density_at` and `auc_tv` of many curves at once, in float64.

    Args:
        size, tv: float [N, K].
        eps: see `density_at`.
        full_edge_count: int [N].

    Returns:
        Both, float64 [N].

    Example:
        >>> size, tv = np.array([[0.01, 0.1]]), np.array([[1.0, 0.5]])
        >>> [value.tolist() for value in density_and_auc(size, tv, 0.5, [1000])]
        [[0.1], [1.0]]
    """
    check_tolerance(eps)
    full = np.asarray(full_edge_count)
    density, area = np.empty(len(size)), np.empty(len(size))
    for start in range(0, len(size), ROWS):
        rows = slice(start, start + ROWS)
        curves = _curves(size[rows].astype(np.float64), tv[rows], full[rows])
        density[rows], area[rows] = curves.crossing(eps), curves.area()
    return density, area


def tolerated_error(measure: str) -> float | None:
    """Parse the name of a measure: EPS of `density@EPS`, None of `auc_tv`.

    Raises:
        InputError: neither `auc_tv` nor `density@EPS` with a finite EPS >= 0.

    Example:
        >>> tolerated_error("density@0.05")
        0.05
    """
    if measure == "auc_tv":
        return None
    kind, _, eps = measure.partition("@") if isinstance(measure, str) else ("", "", "")
    try:
        tolerated = float(eps) if kind == "density" else np.nan
    except ValueError:
        tolerated = np.nan
    if not (np.isfinite(tolerated) and tolerated >= 0):
        raise InputError(
            f"{measure!r} is no measure: use auc_tv or density@EPS, such as density@0.1"
        )
    return tolerated


def compute_measure(
    measure: str, size: ArrayLike, tv: ArrayLike, full_edge_count: ArrayLike
) -> Floats:
    """Compute a measure by its name: `auc_tv`, or `density@EPS` by `density_at`.

    Args:
        measure: see `tolerated_error`.
        size, tv, full_edge_count: see `density_at` and `auc_tv`.

    Raises:
        InputError: an unknown measure, or shapes that do not fit.

    Example:
        >>> float(compute_measure("auc_tv", [0.01, 0.1], [1.0, 0.5], 1000))
        1.0
    """
    eps = tolerated_error(measure)
    if eps is None:
        return auc_tv(size, tv, full_edge_count)
    return density_at(size, tv, eps, full_edge_count)


class _Curves(NamedTuple):
    """Validated curves in float64; rows that are not valid hold placeholders."""

    log_size: Floats  # [..., K] log10 of the size
    error: Floats  # [..., K]
    valid: NDArray[np.bool_]  # [...] rows without NaN and with edges
    dtype: np.dtype[np.floating]  # of the results

    def crossing(self, eps: float) -> Floats:
        """See `density_at`."""
        check_tolerance(eps)
        log_size, err, valid, dtype = self
        reached = err <= eps
        first = np.argmax(reached, axis=-1)[..., None]
        before = np.maximum(first - 1, 0)
        log_first, log_before = (
            np.take_along_axis(log_size, i, -1)[..., 0] for i in (first, before)
        )
        err_first, err_before = (np.take_along_axis(err, i, -1)[..., 0] for i in (first, before))
        # err_before > eps >= err_first wherever a stratum precedes the first that qualifies.
        drop = err_before - err_first
        # After an infinite error (KL can be) nothing can be interpolated: take the stratum itself.
        part = np.divide(
            err_before - eps, drop, out=np.ones_like(drop), where=(drop > 0) & np.isfinite(drop)
        )
        density = 10.0 ** (log_before + part * (log_first - log_before))
        density = np.where(reached.any(axis=-1), density, 1.0)
        return np.asarray(np.where(valid, density, np.nan), dtype=dtype)

    def area(self) -> Floats:
        """See `auc_tv`."""
        log_size, err, valid, dtype = self
        to_the_end = -log_size[..., -1] * err[..., -1] / 2  # the end point: log size 0, error 0
        area = np.trapezoid(err, log_size, axis=-1) + to_the_end
        return np.asarray(np.where(valid, area, np.nan), dtype=dtype)


def check_tolerance(eps: float) -> None:
    """Raise InputError unless `eps` is a finite number >= 0."""
    if not (isinstance(eps, Real) and np.isfinite(eps) and eps >= 0):
        raise InputError(f"eps={shown(eps)}: give a finite error >= 0, for example 0.1")


def _curves(size: ArrayLike, error: ArrayLike, full_edge_count: ArrayLike) -> _Curves:
    sizes, errors, full = np.asarray(size), np.asarray(error), np.asarray(full_edge_count)
    if sizes.ndim == 0 or sizes.shape[-1] == 0 or sizes.shape != errors.shape:
        raise InputError(
            f"size has shape {sizes.shape} and error {errors.shape}: both must be [..., K], K >= 1"
        )
    if full.shape != sizes.shape[:-1]:
        raise InputError(
            f"full_edge_count has shape {full.shape}: must be {sizes.shape[:-1]}, "
            f"one count for each curve of size {sizes.shape}"
        )
    dtype = np.result_type(sizes.dtype, np.float32)
    valid = ~(np.isnan(sizes).any(-1) | np.isnan(errors).any(-1)) & (full > 0)
    one_edge = 1.0 / np.where(valid, full, 1)
    log_size = np.where(valid[..., None], sizes, 1.0).astype(np.float64)
    np.log10(np.clip(log_size, one_edge[..., None], 1.0, out=log_size), out=log_size)
    error64 = np.where(valid[..., None], errors, 0.0).astype(np.float64)
    return _Curves(log_size, error64, valid, dtype)
