"""The report's figures: matplotlib drawings as inline SVG that take their colours from the page.

A figure is drawn once, in stand-in colours; `to_svg` exchanges them for CSS variables, so the same
drawing serves light, dark and print. Text stays text: it can be selected, and read aloud.
"""

import io
import re
import warnings
from html import escape
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Stand-in colour -> the page's variable. Any six distinct greys do; they never reach the reader.
INK, MUTED, GRID, ACCENT, SECOND, PAPER = (f"#0{i}0{i}0{i}" for i in range(1, 7))
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    ACCENT: "var(--accent)",
    SECOND: "var(--second)",
    PAPER: "var(--paper)",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label may hold a dollar sign
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "legend.frameon": False,
}
MOST_DOTS = 150  # documents drawn for one label


def percent(value: float, _position: int = 0) -> str:
    """A share as a percentage with as many digits as it needs: 0.0123 -> `1.2%`."""
    if value == 0 or not np.isfinite(value):
        return "0%" if value == 0 else "–"
    digits = max(0, 1 - int(np.floor(np.log10(abs(100 * value)) + 1e-9)))
    return f"{100 * value:,.{min(digits, 6)}f}%"


def to_svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an `<svg>` element for the body of a page; `label` is what it shows.

    No prolog, metadata or namespace remains, so the page refers to nothing outside itself.
    `name` keeps the ids of several figures on one page apart.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings(), matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        # Glyphs are only measured here; the reader's own fonts draw them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r' id="[a-zA-Z0-9]+(_\d+)+"', "", svg)  # figure_1, axes_1: repeated in each figure
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--sans)", svg)
    svg = re.sub("|".join(VARIABLES), lambda match: VARIABLES[match[0]], svg)
    attributes = f'role="img" aria-label="{escape(label)}" '
    return svg.replace("<svg ", f"<svg {attributes}", 1)


def curve_figure(strata: pd.DataFrame, eps: float) -> Figure:
    """TV over size: median line and quartile band of the tokens, a line for each control."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.7), layout="constrained")
        axes = figure.subplots()
        trace = strata[strata["lane"] == "trace"]
        x = np.append(trace["size_q50"].clip(lower=trace["size_q75"].max() * 1e-9), 1.0)
        low, mid, high = (np.append(trace[f"tv_q{q}"], 0.0) for q in (25, 50, 75))
        axes.fill_between(x, low, high, color=ACCENT, alpha=0.18, linewidth=0)
        axes.plot(x, mid, color=ACCENT, linewidth=2, marker="o", markersize=4, label="trace")
        styles = {"random": (0, (4, 2)), "inverse": (0, (1, 2))}
        for lane, control in strata[strata["lane"] != "trace"].groupby("lane"):
            axes.plot(
                control["size_q50"],
                control["tv_q50"],
                color=SECOND,
                linewidth=1.6,
                linestyle=styles.get(str(lane), "-"),
                label=str(lane),
            )
        axes.axhline(eps, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.annotate(
            f"error {eps:g}", (1, eps), xytext=(0, 3), textcoords="offset points",
            ha="right", color=MUTED, fontsize=9,
        )  # fmt: skip
        axes.set(xscale="log", ylim=(0, 1.02), ylabel="total variation")
        axes.set_xlabel("size: share of the full graph's edges in the trace (log scale)")
        axes.xaxis.set_major_formatter(FuncFormatter(percent))
        axes.xaxis.set_minor_formatter(NullFormatter())
        _quiet(axes, "y")
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(loc="best")
    return figure


def label_figure(
    documents: pd.DataFrame, summary: pd.DataFrame, measure: str, as_percent: bool
) -> Figure:
    """A row for each label value: documents as faint dots, their mean and its interval.

    Args:
        documents: column `measure`, and the label named by the index of `summary`.
        summary: see `density.group_means`; drawn in its order, first row on top.
        measure: the column to draw.
        as_percent: whether the measure is a share.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.27 * len(summary)), layout="constrained")
        axes = figure.subplots()
        groups = documents.groupby(str(summary.index.name), observed=True)[measure]
        for row, (value, mean) in enumerate(summary.iterrows()):
            dots = groups.get_group(value).to_numpy()
            dots = dots[:: -(-len(dots) // MOST_DOTS)]
            # The golden ratio spreads the dots evenly up and down without any two in one line.
            jitter = (np.arange(len(dots)) * 0.618034) % 1 * 0.5 - 0.25
            axes.scatter(dots, row + jitter, s=7, color=MUTED, alpha=0.3, linewidth=0)
            axes.plot(
                [mean[f"{measure}_low"], mean[f"{measure}_high"]],
                [row, row],
                color=ACCENT,
                linewidth=3,
                solid_capstyle="round",
            )
            axes.plot(
                mean[measure], row, "o", color=ACCENT, markersize=7,
                markeredgecolor=PAPER, markeredgewidth=1.5,
            )  # fmt: skip
        names = [f"{shorten(str(v))} ({n:,.0f})" for v, n in summary["documents"].items()]
        axes.set_yticks(range(len(summary)), names)
        axes.set(ylim=(len(summary) - 0.4, -0.6), xlabel=measure)
        axes.tick_params(axis="y", length=0)
        if as_percent:
            axes.xaxis.set_major_formatter(FuncFormatter(percent))
        _quiet(axes, "x")
    return figure


def position_figure(positions: pd.DataFrame, measure: str) -> Figure:
    """Three panels over the length of context: relative size, edges, edges per context token."""
    panels = (
        (measure, "share of the full graph", percent),
        ("edges", "edges", None),
        ("edges_per_token", "edges per context token", None),
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.3), layout="constrained")
        for axes, (column, title, form) in zip(figure.subplots(1, 3), panels, strict=True):
            axes.fill_between(
                positions.index,
                positions[f"{column}_low"],
                positions[f"{column}_high"],
                color=ACCENT,
                alpha=0.18,
                linewidth=0,
            )
            axes.plot(positions.index, positions[column], color=ACCENT, marker="o", markersize=4)
            axes.set_xscale("log", base=2)
            axes.set(yscale="log", xlabel="tokens of context")
            axes.set_title(title, fontsize=10, loc="left", color=INK)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axes.yaxis.set_major_formatter(FuncFormatter(form or _count))
            low, high = axes.get_ylim()
            few_decades = high < 300 * low
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(axis="y", labelcolor=MUTED)
            _quiet(axes, "y")
    return figure


def shorten(text: str, length: int = 28) -> str:
    """The text on one line, with an ellipsis where it was longer than `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _quiet(axes: Axes, grid: str) -> None:
    axes.set_axisbelow(True)
    axes.grid(axis="x" if grid == "x" else "y", color=GRID, linewidth=0.6)


def _count(value: float, _position: int = 0) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
