"""Densities on the terminal: short aligned tables."""

from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

from .density import AUC, DensityResult
from .intervals import MIN_DOCUMENTS
from .passages import extremes, scales
from .plots import percent, shorten

BAR = 18  # cells of the widest bar
BEFORE, TOKEN, AFTER, DOCUMENT = 22, 12, 14, 13  # cells; with the value, 80 together


def label_table(result: DensityResult, label: str) -> Table:
    """Mean densities by one label, densest first; values with few documents in one last row."""
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
            Text(shorten(str(value), 20)),  # as it stands: a label may look like markup
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
    """The densest or the sparsest tokens with the text before and after them."""
    title = f"{'Densest' if densest else 'Sparsest'} tokens"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column(result.density, justify="right", no_wrap=True)
    table.add_column("text before", justify="right", no_wrap=True)
    table.add_column("token", no_wrap=True)
    table.add_column("text after", no_wrap=True)
    table.add_column("document", no_wrap=True)
    for found in extremes(result, result.density, densest, scales(result), most):
        table.add_row(
            found.value,
            Text(_last_cells(found.before, BEFORE)),
            Text(set_cell_size(found.token, min(cell_len(found.token), TOKEN)), "bold reverse"),
            Text(set_cell_size(found.after, AFTER)),
            Text(shorten(found.document, DOCUMENT), "dim"),
        )
    return table


def _last_cells(text: str, width: int) -> str:
    """The end of a text that fills at most `width` cells of the terminal."""
    while cell_len(text) > width:
        text = text[1:]
    return text
