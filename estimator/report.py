"""The report: one self-contained HTML page of what a store says about density."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..errors import InputError, StoreError
from . import passages as texts
from .density import AUC, DensityResult
from .intervals import MIN_DOCUMENTS
from .plots import curve_figure, label_figure, percent, position_figure, to_svg

MOST_VALUES = 40  # a label with more values than this is not drawn unless it is asked for


# What only the store needs, and what repeats other attributes.
INTERNAL = ("format", "format_version", "recipe", "windows_per_part", "label_fields")


def count(value: float) -> str:
    """A number of things: 1,234, or 12.3 where it is small."""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}".removesuffix(".0")


def number(value: float) -> str:
    """A number without a unit, to three places."""
    return f"{value:.3f}"


def default_labels(result: DensityResult) -> list[str]:
    """The labels worth a figure: more than one value, and few enough to read."""
    distinct = {label: result.documents[label].nunique() for label in result.labels}
    return [label for label, n in distinct.items() if 1 < n <= MOST_VALUES]


def render_report(
    result: DensityResult, *, by: Sequence[str] | None = None, title: str | None = None
) -> str:
    """The page as one string of HTML.

    Args:
        result: what was scanned.
        by: labels to show densities by; None for every label with 2 to 40 values.
        title: the page's heading; None for one that names the model.

    Raises:
        InputError: a label that the documents do not have.
    """
    for label in by or ():
        if label not in result.labels:
            raise InputError(f"by={label!r}: the labels are {', '.join(result.labels) or 'none'}")
    labels = list(by) if by is not None else default_labels(result)
    both = texts.scales(result)
    script = _template_file("report.js")
    page = _environment().get_template("report.html")
    return page.render(
        title=title or "Computation density",
        lead=_lead(result),
        headline=_headline(result, labels),
        density=result.density,
        eps=f"{result.eps:g}",
        unreached=percent((result.tokens[result.density] >= 1).mean()),
        scales=tuple(zip(("density", "auc"), both, strict=True)),
        curve=_svg(curve_figure(result.strata, result.eps), "curve", "Error against trace size"),
        curve_note=_curve_note(result),
        groups=[_group(result, label) for label in labels],
        min_documents=MIN_DOCUMENTS,
        extremes=_extremes(result, both),
        min_context=texts.enough_context(result),
        passages=[texts.passage(result, i, both) for i in texts.choose_documents(result, labels)],
        passages_note=_passages_note(labels),
        fields=texts.FIELDS,
        **_positions(result),
        facts=_facts(result),
        version=result.settings.get("versions", {}).get("densitrace", ""),
        style=Markup(_template_file("report.css")),
        script=Markup(script),
        script_hash=_hash(script),
        percent=percent,
        number=number,
        count=count,
    )


def write_report(
    result: DensityResult,
    path: str | Path,
    *,
    by: Sequence[str] | None = None,
    title: str | None = None,
) -> Path:
    """Write the page to `path` (its folder is made) and return it; see `render_report`.

    Raises:
        InputError: see `render_report`.
        StoreError: the file cannot be written.
    """
    page = render_report(result, by=by, title=title)
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write the report {target}: {error.strerror}") from error
    return target


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("densitrace.estimator"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _template_file(name: str) -> str:
    file = resources.files("densitrace.estimator") / "templates" / name
    return file.read_text(encoding="utf-8").strip()


def _hash(script: str) -> str:
    """The script's hash for the page's content security policy: no other script will run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _svg(figure: Any, name: str, label: str) -> Markup:
    # matplotlib escapes the text that it writes.
    return Markup(to_svg(figure, name, label))


def _lead(result: DensityResult) -> str:
    scanned = f"{len(result.tokens):,} tokens in {len(result.documents):,} documents"
    if "incomplete" in result.settings:
        scanned += f" ({result.settings['incomplete']})"
    return (
        "How much of its own graph a language model needs at each token. "
        f"Model: {result.settings['model']} ({result.settings['architecture']}). {scanned}."
    )


def _headline(result: DensityResult, labels: Sequence[str]) -> list[tuple[str, str]]:
    whole = result.summary().iloc[0]
    low, median, high = result.tokens[result.density].quantile([0.25, 0.5, 0.75])
    lines = [
        (
            percent(median),
            f"of the edges suffice for the median token ({result.density}); "
            f"the middle half of the tokens: {percent(low)} to {percent(high)}",
        ),
        (number(whole[AUC]), f"mean auc_tv over documents, {_span(whole, AUC)}"),
    ]
    if labels:
        table = result.summary(labels[0])
        table = table[table["documents"] >= MIN_DOCUMENTS]
        if len(table) > 1:
            top, bottom = table.iloc[0], table.iloc[-1]
            ratio = top[result.density] / bottom[result.density]
            lines.append(
                (
                    f"{ratio:.1f}×",
                    f"the mean density of {table.index[0]} over that of {table.index[-1]}: "
                    f"{percent(top[result.density])} and {percent(bottom[result.density])}",
                )
            )
    lines.append(
        (f"{len(result.tokens):,}", f"tokens scored in {len(result.documents):,} documents")
    )
    return lines


def _span(row: Any, measure: str) -> str:
    low, high = row[f"{measure}_low"], row[f"{measure}_high"]
    return (
        f"95% interval {number(low)} to {number(high)}" if low == low else "too few for an interval"
    )


def _curve_note(result: DensityResult) -> str:
    controls = [lane for lane in result.strata["lane"].unique() if lane != "trace"]
    notes = {
        "random": "random: as many edges as the trace, drawn at random",
        "inverse": "inverse: the edges that the trace leaves out",
    }
    return "; ".join(notes.get(lane, lane) for lane in controls)


def _group(result: DensityResult, label: str) -> dict[str, Any]:
    summary = result.summary(label)
    density, area = result.measures
    figures = (
        label_figure(result.documents, summary, density, as_percent=True),
        label_figure(result.documents, summary.sort_values(area, ascending=False), area, False),
    )
    svgs = [
        _svg(figure, f"{label}-{i}", f"{measure} by {label}; the numbers are in the table below")
        for i, (figure, measure) in enumerate(zip(figures, result.measures, strict=True))
    ]
    return {
        "label": label,
        "density_figure": svgs[0],
        "auc_figure": svgs[1],
        "rows": list(summary.iterrows()),
    }


def _extremes(
    result: DensityResult, both: tuple[texts.Scale, texts.Scale]
) -> list[tuple[str, str, list[texts.TokenInContext]]]:
    return [
        (name, end, texts.extremes(result, measure, end == "Densest", both))
        for name, measure in zip(("density", "auc"), result.measures, strict=True)
        for end in ("Densest", "Sparsest")
    ]


def _passages_note(labels: Sequence[str]) -> str:
    if not labels:
        return "Documents of the corpus, then the densest and the sparsest of all."
    which = f"{', '.join(labels[:-1])} and {labels[-1]}" if len(labels) > 1 else labels[0]
    return f"The middle document of each {which}, then the densest and the sparsest of all."


def _positions(result: DensityResult) -> dict[str, Any]:
    table = result.by_position()
    enough = table[table["documents"] >= MIN_DOCUMENTS]
    figure = position_figure(enough if len(enough) else table, result.density)
    label = "Density, edges and edges per context token by length of context; numbers below"
    return {
        "positions": _svg(figure, "positions", label),
        "position_rows": list(table.iterrows()),
    }


def _facts(result: DensityResult) -> list[tuple[str, str]]:
    """The store's settings as lines, nested names joined by a blank."""
    settings = {k: v for k, v in result.settings.items() if k not in INTERNAL}
    return list(_flat(settings))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name} ")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in value)
        else:
            yield name, value if isinstance(value, str) else json.dumps(value)
