"""Figures of many points: density over other things, and one model over another."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from .intervals import Interval
from .plots import PAGE, Palette, count_axis, drawn_in, percent, quiet
from .relations import RELATIONS, Relations, counts, medians

LEVELS = 8  # of opacity
Panel = tuple[pd.DataFrame, pd.DataFrame]  # counts and medians


def relation_panels(found: Relations, values: pd.Series, log: bool) -> dict[str, Panel]:
    """What `relation_figure` draws of a measure, by the name of the relation."""
    y = values.to_numpy(np.float64)
    panels = {}
    for relation in RELATIONS:
        x = found.values[relation.name].to_numpy()
        panels[relation.name] = (counts(x, y, (relation.log, log)), medians(x, y, relation.log))
    return panels


def relation_figure(
    panels: Mapping[str, Panel], found: Relations, measure: str, log: bool, paint: Palette = PAGE
) -> Figure:
    """A panel a relation: tokens counted in cells, the line of medians, the rank correlation.

    Args:
        panels: see `relation_panels`.
        found: for the correlations.
        measure: on the upright axis.
        log: whether that axis is logarithmic, and the measure a share.
        paint: the colours.
    """
    with drawn_in(paint):
        figure = Figure(figsize=(7.2, 2.9), layout="constrained")
        for place, (axes, relation) in enumerate(
            zip(figure.subplots(1, len(RELATIONS), sharey=True), RELATIONS, strict=True)
        ):
            cells, line = panels[relation.name]
            draw_counts(axes, cells, paint)
            axes.plot(line["x"], line["y"], color=paint.ink, linewidth=1.6)
            axes.set_xlabel(f"{relation.title},\n{relation.unit}", fontsize=9)
            title = correlation_text(found.correlations[relation.name, measure])
            axes.set_title(title, fontsize=9, loc="left")
            if relation.log:
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter(FuncFormatter(count_axis))
            if log:
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(FuncFormatter(percent))
            axes.minorticks_off()
            if not place:
                axes.set_ylabel(measure)
            quiet(axes, "y", paint)
    return figure


def correlation_text(found: Interval) -> str:
    """A rank correlation with its interval, for a title."""
    if np.isnan(found.value):
        return "ρ: one side is constant"
    ends = f" ({found.low:+.2f} to {found.high:+.2f})" if found.low == found.low else ""
    return f"ρ = {found.value:+.2f}{ends}".replace("-", "−")


def draw_counts(axes: Axes, cells: pd.DataFrame, paint: Palette) -> None:
    """Cells of `relations.counts`, the more opaque the more points, in logarithmic steps."""
    corners = [("x_low", "y_low"), ("x_high", "y_low"), ("x_high", "y_high"), ("x_low", "y_high")]
    vertices = np.stack([cells[list(corner)].to_numpy() for corner in corners], axis=1)
    share = np.log1p(cells["points"]) / np.log1p(cells["points"].max() if len(cells) else 1)
    opacity = np.ceil(share * LEVELS) / LEVELS
    colours = [(*to_rgb(paint.accent), 0.08 + 0.8 * float(level)) for level in opacity]
    axes.add_collection(PolyCollection(list(vertices), facecolors=colours, linewidths=0))
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
    """Words counted in cells, documents as dots: one model's densities over the other's.

    Args:
        words: see `relations.counts`.
        documents: columns `x` and `y`.
        names: of the models across and up.
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
