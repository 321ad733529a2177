"""Tables of densities for the terminal."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

from .density import DensityResult
from .frames import AUC, density_name
from .intervals import MIN_DOCUMENTS
from .passages import extremes, scales
from .plots import percent, shorten, shown_value

if TYPE_CHECKING:  # importing shap takes seconds, and the demo does not need it
    from .compare import Comparison
    from .explain import FactorExplanation

BAR = 18  # cells of the widest bar
BEFORE, TOKEN, AFTER, DOCUMENT = 22, 12, 14, 13  # cells; with the value, 80 together


def label_table(result: DensityResult, label: str) -> Table:
    """Mean densities by one label, densest first; a last row joins values with few documents."""
    summary = result.summary(label)
    enough = summary["documents"] >= MIN_DOCUMENTS
    if not enough.any():
        enough[:] = True
    table = Table(title=f"Density by {label}", title_justify="left", box=None, pad_edge=False)
    table.add_column(label, no_wrap=True)
    table.add_column("documents", justify="right")
    table.add_column(result.density, justify="right", no_wrap=True)
    table.add_column("95% interval", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column(AUC, justify="right")
    widest = summary.loc[enough, result.density].max()
    for value, row in summary[enough].iterrows():
        low, high = row[f"{result.density}_low"], row[f"{result.density}_high"]
        table.add_row(
            Text(shorten(shown_value(value), 20)),  # not a str: a label may look like markup
            f"{row['documents']:,.0f}",
            percent(row[result.density]),
            f"{percent(low)} – {percent(high)}" if low == low else "too few",
            "█" * max(1, round(BAR * row[result.density] / widest)),
            f"{row[AUC]:.3f}",
        )
    few = summary[~enough]
    if len(few):
        table.add_row(
            Text(f"{len(few)} others", "dim"),
            Text(f"{few['documents'].sum():,.0f}", "dim"),
            "",
            Text("in the report", "dim"),
        )
    return table


def token_table(result: DensityResult, densest: bool, most: int = 8) -> Table:
    """The densest or the sparsest tokens, with the text before and after them."""
    title = f"{'Densest' if densest else 'Sparsest'} tokens"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column(result.density, justify="right", no_wrap=True)
    table.add_column("text before", justify="right", no_wrap=True)
    table.add_column("token", no_wrap=True)
    table.add_column("text after", no_wrap=True)
    table.add_column("document", no_wrap=True)
    for shown in extremes(result, result.density, densest, scales(result), most):
        table.add_row(
            shown.value,
            Text(_last_cells(shown.before, BEFORE)),
            Text(set_cell_size(shown.token, min(cell_len(shown.token), TOKEN)), "bold reverse"),
            Text(set_cell_size(shown.after, AFTER)),
            Text(shorten(shown.document, DOCUMENT), "dim"),
        )
    return table


def trace_table(tokens: pd.DataFrame, eps: float) -> Table:
    """The tokens of a text in order (`trace_frame`), with the densities of what follows each."""
    density = density_name(eps)
    table = Table(box=None, pad_edge=False)
    table.add_column("token", no_wrap=True)
    table.add_column("own surprisal", justify="right", no_wrap=True)
    table.add_column(density, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column(AUC, justify="right", no_wrap=True)
    for own, (_, row) in zip(tokens["surprisal"].shift(), tokens.iterrows(), strict=True):
        table.add_row(
            Text(shorten(repr(row["text"])[1:-1], BEFORE)),
            "" if np.isnan(own) else f"{own:.2f}",
            percent(row[density]),
            "█" * max(1, round(BAR * row[density] / tokens[density].max())),
            f"{row[AUC]:.3f}",
        )
    return table


def _last_cells(text: str, width: int) -> str:
    """The longest end of a text that fits in `width` cells of the terminal."""
    while cell_len(text) > width:
        text = text[1:]
    return text


def factor_tables(explanation: "FactorExplanation", most: int = 12) -> list[Table | str]:
    """Tables of an explanation: the verdict, the factors, their pairs, the labels."""
    shuffled = explanation.r2_shuffled.max()
    verdict = "a finding" if explanation.finding else "no finding: as good as shuffled densities"
    lines: list[Table | str] = [
        f"{explanation.target} ({explanation.unit}), {explanation.sample}",
        f"R2 of unseen documents {explanation.r2:.3f}, "
        f"of shuffled densities at most {shuffled:.3f}: {verdict}",
    ]
    factors = _table("Factors", ["factor"], ["mean |SHAP|", "95% interval", "direction"])
    for name, row in explanation.factors.iterrows():
        without = "by value" if row["mean_abs"] > 0 else "–"
        direction = without if np.isnan(row["direction"]) else f"{row['direction']:+.2f}"
        ends = _ends(row["low"], row["high"])
        factors.add_row(Text(str(name)), f"{row['mean_abs']:.4f}", ends, direction)
    pairs = _table("Together", ["factor", "and"], ["mean |interaction|"])
    for _, row in explanation.interactions.head(most).iterrows():
        pairs.add_row(Text(row["first"]), Text(row["second"]), f"{row['mean_abs']:.4f}")
    beyond = explanation.differences[explanation.differences["exceeds"].astype(bool)]
    order = beyond["difference"].abs().sort_values(ascending=False).index
    labels = _table(
        "Label values for which a factor matters more or less than for the others",
        ["label", "value", "factor"],
        ["mean |SHAP| more", "95% interval"],
    )
    for _, row in beyond.loc[order[:most]].iterrows():
        names = (Text(shown_value(row[name])) for name in ("label", "value", "factor"))
        labels.add_row(*names, f"{row['difference']:+.4f}", _ends(row["low"], row["high"]))
    lines += [factors, *(table for table in (pairs, labels) if table.row_count)]
    if len(explanation.differences):
        lines.append(f"{len(beyond)} of {len(explanation.differences)} differences exceed noise")
    return lines


def comparison_tables(comparison: "Comparison", most: int = 8) -> list[Table | str]:
    """Tables of rank correlations of all pairs of models, and of where each disagrees most."""
    words = comparison.level == "word"
    pairs = _table(
        f"Rank correlation of {comparison.measure}, {comparison.level} by {comparison.level}",
        ["model", "and"],
        ["Spearman", "95% interval", *(["words"] if words else []), "documents"],
    )
    for _, row in comparison.correlations.iterrows():
        pairs.add_row(
            Text(row["first"]),
            Text(row["second"]),
            f"{row['spearman']:.3f}",
            _ends(row["low"], row["high"], digits=3),
            *([f"{row['rows']:,}"] if words else []),
            f"{row['documents']:,}",
        )
    lines: list[Table | str] = [pairs]
    for first, second in comparison.correlations[["first", "second"]].itertuples(index=False):
        title = f"Furthest apart: rank 1 under {first}, rank 2 under {second}"
        table = _table(title, ["document"], ["rank 1", "rank 2"])
        if words:
            table.add_column("text", no_wrap=True)
        for _, row in comparison.disagreements(first, second, most).iterrows():
            text = [Text(shorten(str(row["text"]), TOKEN + AFTER))] if words else []
            ranks = (percent(row[rank]) for rank in ("x_rank", "y_rank"))
            table.add_row(Text(shorten(row["document"], 30)), *ranks, *text)
        lines.append(table)
    lines += [
        f"{name}: {comparison.left_out[name]:,} documents that others lack, "
        f"{comparison.partial[name]:,} not scanned to their end, "
        f"{comparison.lost[name]:,} {comparison.level}s without a token"
        for name in comparison.names
        if comparison.left_out[name] or comparison.partial[name] or comparison.lost[name]
    ]
    return [*lines, comparison.caution] if comparison.caution else lines


def _table(title: str, texts: Iterable[str], numbers: Iterable[str]) -> Table:
    # At least as wide as the title, which would otherwise wrap to the width of the columns.
    width = min(80, len(title))
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, min_width=width)
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _ends(low: float, high: float, digits: int = 4) -> str:
    return f"{low:.{digits}f} to {high:.{digits}f}" if low == low else "too few"
