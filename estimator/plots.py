"""The report's figures: matplotlib drawings as inline SVG, coloured by the page's CSS.

A figure is drawn once, in placeholder colours, which `to_svg` replaces by CSS variables, so the
same drawing serves light, dark and print. Text stays text: it can be selected and read aloud.
"""

import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator


@dataclass(frozen=True)
class Palette:
    """The colours of a figure."""

    ink: str
    muted: str
    grid: str
    accent: str
    second: str
    paper: str

    def style(self) -> dict[Any, Any]:
        """matplotlib settings for these colours."""
        return {
            "svg.fonttype": "none",
            "text.parse_math": False,  # a label may hold a dollar sign
            "text.color": self.ink,
            "axes.edgecolor": self.grid,
            "axes.labelcolor": self.muted,
            "xtick.color": self.grid,
            "ytick.color": self.grid,
            "xtick.labelcolor": self.muted,
            "ytick.labelcolor": self.ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 10,
            "legend.frameon": False,
        }


# Placeholders for the page's variables: any six distinct greys; they never reach the reader.
PAGE = Palette(*(f"#0{i}0{i}0{i}" for i in range(1, 7)))
VARIABLES = {value: f"var(--{name})" for name, value in asdict(PAGE).items()}
# For standalone figures: the light colours of report.css.
LIGHT = Palette("#1d1c1a", "#625f58", "#dedad1", "#96411f", "#3b5f8a", "#fbfaf7")
MOST_DOTS = 150  # documents drawn for one label
Draw = Callable[[Palette], Figure]


@contextmanager
def drawn_in(paint: Palette, **settings: Any) -> Iterator[None]:
    """Apply a palette to figures drawn or saved while the context is open."""
    style: dict[Any, Any] = paint.style() | settings
    with warnings.catch_warnings(), matplotlib.rc_context(style):
        # Glyphs are only measured here; the reader's own fonts draw them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def percent(value: float) -> str:
    """Format a share as a percentage with two significant digits: 0.0123 -> `1.2%`."""
    if value == 0 or not np.isfinite(value):
        return "0%" if value == 0 else "–"
    digits = max(0, 1 - int(np.floor(np.log10(abs(100 * value)) + 1e-9)))
    return f"{100 * value:,.{min(digits, 6)}f}%"


def percent_axis(value: float, _position: int = 0) -> str:
    """Format a share on an axis, with the digits it has: 0.0125 -> `1.25%`, 0.1 -> `10%`."""
    return f"{100 * value:g}%"


def settle(figure: Figure) -> None:
    """Lay a figure out now and freeze the layout; saving would draw everything again for it."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def to_svg(figure: Figure, name: str, label: str) -> str:
    """Render the figure as an inline `<svg>` element, with `label` as its accessible name.

    Prolog, metadata and namespaces are removed, so the page refers to nothing outside itself.
    `name` keeps the ids of several figures on one page apart.
    """
    buffer = io.StringIO()
    with drawn_in(PAGE, **{"svg.hashsalt": name}):
        settle(figure)
        figure.set_facecolor("none")
        for axes in figure.axes:
            axes.set_facecolor("none")
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(buffer, metadata={"Date": None})  # `savefig` draws twice
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    # figure_1, matplotlib.axis_1: repeated in each figure
    svg = re.sub(r' id="[a-zA-Z0-9.]+(_\d+)+"', "", svg)
    # matplotlib before 3.11 writes `font: 10px NAMES`.
    svg = re.sub(r"(font: [\d.]+px |font-family: )[^;\"]*", r"\1var(--sans)", svg)
    svg = re.sub("|".join(VARIABLES), lambda match: VARIABLES[match[0]], svg)
    attributes = f'role="img" aria-label="{escape(label)}" '
    return well_formed(svg.replace("<svg ", f"<svg {attributes}", 1))


def well_formed(xml: str) -> str:
    """Remove the characters that XML 1.0 forbids even where they are escaped."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "", xml)


def shown_value(value: object) -> str:
    """The value of a label, as shown: `(none)` for an empty one."""
    return str(value) if str(value).strip() else "(none)"


def curve_figure(strata: pd.DataFrame, eps: float, paint: Palette = PAGE) -> Figure:
    """Plot TV over size: median line and quartile band of the tokens, a line for each control."""
    with drawn_in(paint):
        figure = Figure(figsize=(7.2, 3.7), layout="constrained")
        axes = figure.subplots()
        trace = strata[strata["lane"] == "trace"]
        x = np.append(trace["size_q50"].clip(lower=trace["size_q75"].max() * 1e-9), 1.0)
        low, mid, high = (np.append(trace[f"tv_q{q}"], 0.0) for q in (25, 50, 75))
        axes.fill_between(x, low, high, color=paint.accent, alpha=0.18, linewidth=0)
        axes.plot(x, mid, color=paint.accent, linewidth=2, marker="o", markersize=4, label="trace")
        styles = {"random": (0, (4, 2)), "inverse": (0, (1, 2))}
        for lane, control in strata[strata["lane"] != "trace"].groupby("lane"):
            axes.plot(
                control["size_q50"],
                control["tv_q50"],
                color=paint.second,
                linewidth=1.6,
                linestyle=styles.get(str(lane), "-"),
                label=str(lane),
            )
        axes.axhline(eps, color=paint.muted, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.annotate(
            f"error {eps:g}", (1, eps), xytext=(0, 3), textcoords="offset points",
            ha="right", color=paint.muted, fontsize=9,
        )  # fmt: skip
        axes.set(xscale="log", ylim=(0, 1.02), ylabel="total variation")
        axes.set_xlabel("size: share of the full graph's edges in the trace (log scale)")
        axes.xaxis.set_major_formatter(FuncFormatter(percent_axis))
        axes.minorticks_off()
        quiet(axes, "y", paint)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(loc="best")
    return figure


def label_figure(
    documents: pd.DataFrame,
    summary: pd.DataFrame,
    measure: str,
    as_percent: bool,
    paint: Palette = PAGE,
) -> Figure:
    """Plot a row for each label value: documents as faint dots, their mean and its interval.

    Args:
        documents: column `measure`, and the label named by the index of `summary`.
        summary: see `density.group_means`; drawn in its order, first row on top.
        measure: the column to draw.
        as_percent: whether the measure is a share.
        paint: the colours.
    """
    with drawn_in(paint):
        figure = Figure(figsize=(7.2, 0.9 + 0.27 * len(summary)), layout="constrained")
        axes = figure.subplots()
        groups = documents.groupby(str(summary.index.name), observed=True)[measure]
        dots = [groups.get_group(value).to_numpy() for value in summary.index]
        dots = [values[:: -(-len(values) // MOST_DOTS)] for values in dots]
        rows = np.repeat(np.arange(len(dots)), [len(values) for values in dots])
        # Multiples of the golden ratio, modulo 1, spread the dots evenly without repeating.
        number = np.concatenate([np.arange(len(values)) for values in dots])
        jitter = number * 0.618034 % 1 * 0.5 - 0.25
        axes.scatter(
            np.concatenate(dots), rows + jitter, s=7, color=paint.muted, alpha=0.3, linewidth=0
        )
        means = summary[[measure, f"{measure}_low", f"{measure}_high"]].to_numpy().T
        y = np.arange(len(summary))
        axes.hlines(y, means[1], means[2], color=paint.accent, linewidth=3, capstyle="round")
        axes.plot(
            means[0], y, "o", color=paint.accent, markersize=7,
            markeredgecolor=paint.paper, markeredgewidth=1.5,
        )  # fmt: skip
        names = [f"{shorten(shown_value(v))} ({n:,.0f})" for v, n in summary["documents"].items()]
        axes.set_yticks(range(len(summary)), names)
        axes.set(ylim=(len(summary) - 0.4, -0.6), xlabel=measure)
        axes.tick_params(axis="y", length=0)
        if as_percent:
            axes.xaxis.set_major_formatter(FuncFormatter(percent_axis))
        quiet(axes, "x", paint)
    return figure


def position_figure(positions: pd.DataFrame, measure: str, paint: Palette = PAGE) -> Figure:
    """Plot relative size, edges and edges per context token over the length of context."""
    panels = (
        (measure, "share of the full graph", percent_axis),
        ("edges", "edges", None),
        ("edges_per_token", "edges per context token", None),
    )
    with drawn_in(paint):
        figure = Figure(figsize=(7.2, 2.3), layout="constrained")
        for axes, (column, title, form) in zip(figure.subplots(1, 3), panels, strict=True):
            axes.fill_between(
                positions.index,
                positions[f"{column}_low"],
                positions[f"{column}_high"],
                color=paint.accent,
                alpha=0.18,
                linewidth=0,
            )
            axes.plot(
                positions.index, positions[column], color=paint.accent, marker="o", markersize=4
            )
            axes.set_xscale("log", base=2)
            axes.set(yscale="log", xlabel="tokens of context")
            axes.set_title(title, fontsize=10, loc="left", color=paint.ink)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axes.yaxis.set_major_formatter(FuncFormatter(form or count_axis))
            low, high = axes.get_ylim()
            few_decades = high < 300 * low
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
            axes.minorticks_off()
            axes.tick_params(axis="y", labelcolor=paint.muted)
            quiet(axes, "y", paint)
    return figure


def shorten(text: str, length: int = 28) -> str:
    """Put a text on one line, cut to `length` characters with an ellipsis.

    Control characters, for which fonts have no glyph and XML no place, are left out.
    """
    shown = "".join(c for c in text if c.isspace() or unicodedata.category(c) != "Cc")
    line = " ".join(shown.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def quiet(axes: Axes, grid: str, paint: Palette) -> None:
    """Draw faint grid lines across one axis, behind the data."""
    axes.set_axisbelow(True)
    axes.grid(axis="x" if grid == "x" else "y", color=paint.grid, linewidth=0.6)


def count_axis(value: float, _position: int = 0) -> str:
    """Format a count on an axis: 10,000, or 0.01."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
