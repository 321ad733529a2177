"""Figures of many points: density over properties of tokens, and one model over another."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter

from .frames import AUC
from .intervals import Interval
from .plots import PAGE, Palette, count_axis, drawn_in, percent_axis, quiet
from .relations import RELATIONS, Relations, counts, medians

LEVELS = 8  # levels of opacity
Panel = tuple[pd.DataFrame, pd.DataFrame]  # counts and medians


def relation_panels(related: Relations, tokens: pd.DataFrame) -> dict[str, dict[str, Panel]]:
    """Compute what `relation_figure` draws, by measure and name of the relation.

    Args:
        related: the relations.
        tokens: a column per measure; densities get logarithmic axes, `auc_tv` a linear one.
    """
    measures = [str(name) for name in tokens.columns]
    panels: dict[str, dict[str, Panel]] = {measure: {} for measure in measures}
    for relation in RELATIONS:
        x = related.values[relation.name].to_numpy()
        x_medians, middles = medians(x, tokens.to_numpy(), relation.log)
        for measure, middle in zip(measures, middles.T, strict=True):
            cells = counts(x, tokens[measure].to_numpy(), (relation.log, measure != AUC))
            panels[measure][relation.name] = (cells, pd.DataFrame({"x": x_medians, "y": middle}))
    return panels


def relation_figure(
    panels: Mapping[str, Panel], related: Relations, measure: str, paint: Palette = PAGE
) -> Figure:
    """One panel per relation: tokens counted in cells, a line of medians, the rank correlation.

    Args:
        panels: the panels of the measure; see `relation_panels`.
        related: the relations, for their correlations.
        measure: the measure on the y axis.
        paint: the colours.
    """
    with drawn_in(paint):
        figure = Figure(figsize=(7.2, 2.9), layout="constrained")
        for number, (axes, relation) in enumerate(
            zip(figure.subplots(1, len(RELATIONS), sharey=True), RELATIONS, strict=True)
        ):
            cells, line = panels[relation.name]
            draw_counts(axes, cells, paint)
            axes.plot(line["x"], line["y"], color=paint.ink, linewidth=1.6)
            axes.set_xlabel(f"{relation.title},\n{relation.unit}", fontsize=9)
            title = correlation_text(related.correlations[relation.name, measure])
            axes.set_title(title, fontsize=9, loc="left")
            if relation.log:
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter(FuncFormatter(count_axis))
            if measure != AUC:
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(FuncFormatter(percent_axis))
            axes.minorticks_off()
            if not number:
                axes.set_ylabel(measure)
            quiet(axes, "y", paint)
    return figure


def correlation_text(correlation: Interval) -> str:
    """Format a rank correlation with its interval, for a title."""
    if np.isnan(correlation.value):
        return "ρ: one side is constant"
    value, low, high = correlation
    ends = "" if np.isnan(low) else f" ({low:+.2f} to {high:+.2f})"
    return f"ρ = {value:+.2f}{ends}".replace("-", "−")


def draw_counts(axes: Axes, cells: pd.DataFrame, paint: Palette) -> None:
    """Draw cells of `relations.counts`: more points are more opaque, in logarithmic steps."""
    corners = [("x_low", "y_low"), ("x_high", "y_low"), ("x_high", "y_high"), ("x_low", "y_high")]
    vertices = np.stack([cells[list(corner)].to_numpy() for corner in corners], axis=1)
    share = np.log1p(cells["points"]) / np.log1p(cells["points"].max() if len(cells) else 1)
    level = np.ceil(share * LEVELS)
    # One path for all cells of an opacity: hundreds of paths are slower to draw and to load.
    shown = np.unique(level)
    paths = [Path.make_compound_path_from_polys(vertices[level == opacity]) for opacity in shown]
    colours = [(*to_rgb(paint.accent), 0.08 + 0.8 * opacity / LEVELS) for opacity in shown]
    axes.add_collection(PathCollection(paths, facecolors=colours, linewidths=0), autolim=False)
    if len(cells):
        axes.set_xlim(cells["x_low"].min(), cells["x_high"].max())
        axes.set_ylim(cells["y_low"].min(), cells["y_high"].max())


def agreement_figure(
    words: pd.DataFrame,
    documents: pd.DataFrame,
    names: tuple[str, str],
    measure: str,
    paint: Palette = PAGE,
) -> Figure:
    """Plot one model's densities over the other's: words counted in cells, documents as dots.

    Args:
        words: see `relations.counts`.
        documents: columns `x` and `y`.
        names: names of the models on the x and the y axis.
        measure: what both axes show.
        paint: the colours.
    """
    with drawn_in(paint):
        figure = Figure(figsize=(7.2, 3.7), layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_counts(left, words, paint)
        right.scatter(
            documents["x"], documents["y"], s=9, color=paint.accent, alpha=0.45, linewidth=0
        )
        for axes, title in ((left, "words"), (right, "documents")):
            low = max(axes.get_xlim()[0], axes.get_ylim()[0])
            high = min(axes.get_xlim()[1], axes.get_ylim()[1])
            if low < high:
                axes.plot([low, high], [low, high], color=paint.muted, linewidth=0.8, linestyle=":")
            axes.set_title(title, fontsize=10, loc="left")
            axes.set_xlabel(f"{measure}, {names[0]}", fontsize=9)
            axes.set_ylabel(f"{measure}, {names[1]}", fontsize=9)
            quiet(axes, "y", paint)
    return figure
