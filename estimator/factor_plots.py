"""Figures of what traces consist of and of the factors that explain density."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from .plots import PAGE, Palette, drawn_in, percent_axis, quiet

if TYPE_CHECKING:
    from .explain import FactorExplanation

MOST_FACTORS = 12
MOST_POINTS = 250  # points of one factor's swarm
_STEPS = 60  # bins across a swarm's width; the points of a bin are stacked
_CLASSES = ((0.0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.0))  # colours of a factor's values, by rank


def topology_figure(parts: pd.DataFrame, paint: Palette = PAGE) -> Figure:
    """One panel per kind of edge: its share of the trace's edges, by quartile of depth.

    Args:
        parts: see `summaries.trace_parts`, without a label.
        paint: the colours.
    """
    kinds = list(dict.fromkeys(parts.index.get_level_values("kind")))
    with drawn_in(paint):
        figure = Figure(figsize=(7.2, 2.5), layout="constrained")
        for axes, kind in zip(figure.subplots(1, len(kinds)), kinds, strict=True):
            rows = parts.xs(kind, level="kind")
            depth = np.arange(len(rows))
            axes.bar(depth, rows["share"], color=paint.accent, alpha=0.55, width=0.7)
            axes.vlines(
                depth, rows["share_low"], rows["share_high"], color=paint.ink, linewidth=1.2
            )
            axes.set_xticks(depth, [str(quartile) for quartile in rows.index])
            axes.set_ylim(0, max(1.15 * float(rows[["share", "share_high"]].max().max()), 1e-9))
            axes.set_title(kind, fontsize=10, loc="left")
            axes.set_xlabel("depth, quartile", fontsize=9)
            axes.yaxis.set_major_formatter(FuncFormatter(percent_axis))
            axes.tick_params(axis="y", labelcolor=paint.muted, labelsize=9)
            quiet(axes, "y", paint)
    return figure


def importance_figure(factors: pd.DataFrame, unit: str, paint: Palette = PAGE) -> Figure:
    """One bar per factor: mean |SHAP| with its interval, the largest on top.

    Args:
        factors: see `explain.FactorExplanation`.
        unit: unit of the SHAP values.
        paint: the colours.
    """
    table = factors.head(MOST_FACTORS)
    with drawn_in(paint):
        figure = Figure(figsize=(7.2, 0.9 + 0.27 * len(table)), layout="constrained")
        axes = figure.subplots()
        rows = np.arange(len(table))
        axes.barh(rows, table["mean_abs"], color=paint.accent, alpha=0.55, height=0.62)
        axes.hlines(rows, table["low"], table["high"], color=paint.ink, linewidth=1.2)
        axes.set_yticks(rows, list(table.index))
        axes.set(ylim=(len(table) - 0.4, -0.6), xlabel=f"mean |SHAP value|, {unit}")
        axes.tick_params(axis="y", length=0)
        quiet(axes, "x", paint)
    return figure


def swarm_points(found: "FactorExplanation", seed: int = 0) -> pd.DataFrame:
    """Draw the points of a beeswarm: a sample of tokens for each of the largest factors.

    Returns:
        `factor`, `value` (as displayed), `shap`, `rank` (of the value among all explained tokens,
        0..1; NaN where the factor has no direction, as a category).
    """
    explanation, tables = found.explanation, []
    rng = np.random.default_rng(seed)
    for name in found.factors.index[:MOST_FACTORS]:
        column = explanation.feature_names.index(name)
        shown = pd.Series(explanation.display_data[:, column])
        rank = np.full(len(shown), np.nan)
        if not np.isnan(found.factors["direction"][name]):
            rank = pd.Series(explanation.data[:, column]).rank(pct=True).to_numpy()
        rows = np.sort(rng.choice(len(shown), min(MOST_POINTS, len(shown)), replace=False))
        columns = {"value": shown, "shap": explanation.values[:, column], "rank": rank}
        tables.append(pd.DataFrame(columns).iloc[rows].assign(factor=name))
    return pd.concat(tables, ignore_index=True)[["factor", "value", "shap", "rank"]]


def beeswarm_figure(points: pd.DataFrame, unit: str, paint: Palette = PAGE) -> Figure:
    """One swarm per factor: the SHAP values of tokens, coloured by the rank of their value.

    Args:
        points: see `swarm_points`.
        unit: unit of the SHAP values.
        paint: the colours.
    """
    names = list(dict.fromkeys(points["factor"]))
    colours = [(paint.second, 0.9), (paint.second, 0.4), (paint.accent, 0.4), (paint.accent, 0.9)]
    rank = points["rank"].to_numpy()
    with drawn_in(paint):
        figure = Figure(figsize=(7.2, 1.3 + 0.36 * len(names)), layout="constrained")
        axes = figure.subplots()
        row = points["factor"].map({name: i for i, name in enumerate(names)}).to_numpy()
        spread = np.zeros(len(points))
        for number in range(len(names)):
            spread[row == number] = _spread(points["shap"].to_numpy()[row == number])
        classes = [
            (f"{label} values", (rank > low) & (rank <= high), *colour)
            for (low, high), colour, label in zip(
                _CLASSES, colours, ("lowest", "low", "high", "highest"), strict=True
            )
        ]
        for label, chosen, colour, alpha in [
            *classes,
            ("categories", np.isnan(rank), paint.muted, 0.5),
        ]:
            if chosen.any():
                x, y = points["shap"][chosen], (row + spread)[chosen]
                axes.scatter(x, y, s=7, color=colour, alpha=alpha, linewidth=0, label=label)
        axes.axvline(0, color=paint.muted, linewidth=0.8)
        axes.set_yticks(range(len(names)), names)
        axes.set(ylim=(len(names) - 0.4, -0.6), xlabel=f"SHAP value, {unit}: denser to the right")
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper center", ncols=5, fontsize=9, handletextpad=0.1)
        quiet(axes, "x", paint)
    return figure


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Offsets of points above and below their row, which stack points of similar value."""
    width = np.ptp(values)
    run = np.rint((values - values.min()) / width * _STEPS) if width > 0 else np.zeros(len(values))
    height = pd.Series(run).groupby(run).cumcount().to_numpy()
    step = min(0.08, 0.8 / (1 + height.max()))
    return np.asarray(np.where(height % 2, 1, -1) * ((height + 1) // 2) * step)
