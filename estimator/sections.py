"""The report's section on one store: numbers, tables and exhibits, before rendering."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from ..tracer.store import Store
from . import passages as texts
from .density import DensityResult
from .exhibits import Exhibit, file_name
from .factor_plots import beeswarm_figure, importance_figure, topology_figure
from .factor_sample import FEWEST_TOKENS, FactorSummary, factor_sample
from .frames import ABSOLUTE, AUC
from .intervals import MIN_DOCUMENTS
from .plots import curve_figure, label_figure, percent, position_figure, shown_value
from .relation_plots import relation_figure, relation_panels
from .relations import RELATIONS, Relations, relations
from .summaries import trace_parts
from .thresholds import threshold_table

MOST_VALUES = 40  # labels with more values are drawn only on request
# Attributes not shown: only the store needs them, or others repeat them.
INTERNAL = ("format", "format_version", "windows_per_part", "label_fields")
TOPOLOGY_TOKENS = 250_000  # tokens whose topology, the largest array of a store, is read


@dataclass(frozen=True)
class Subject:
    """The subject of a section.

    Attributes:
        key: an identifier on the page, and the prefix of its file names.
        name: the name shown.
        result: its densities.
        store: the store that these were read from; None leaves some figures out.
        by: labels to show densities by; None for `default_labels`.
    """

    key: str
    name: str
    result: DensityResult
    store: Store | None = None
    by: tuple[str, ...] | None = None

    @property
    def labels(self) -> list[str]:
        """The labels to show."""
        if self.by is None:
            return default_labels(self.result)
        return [label for label in self.by if label in self.result.labels]


@dataclass(frozen=True)
class Section:
    """One store's part of the page: exhibits, and `parts`, the values the template refers to."""

    subject: Subject
    exhibits: Mapping[str, Exhibit]
    parts: Mapping[str, Any] = field(default_factory=dict)


def default_labels(result: DensityResult) -> list[str]:
    """Labels with more than one value, and few enough to read in a figure."""
    distinct = {label: result.documents[label].nunique() for label in result.labels}
    return [label for label, n in distinct.items() if 1 < n <= MOST_VALUES]


def section(subject: Subject) -> Section:
    """Make a store's section, without the explanation by factors."""
    result, labels = subject.result, subject.labels
    both = texts.scales(result)
    summaries = {label: result.summary(label) for label in labels}
    exhibits: dict[str, Exhibit] = {}
    parts: dict[str, Any] = {
        "lead": lead(result),
        "headline": headline(result, summaries),
        "unreached": percent((~result.tokens["reached"]).mean()),
        "scales": tuple(zip(("density", "auc"), both, strict=True)),
        "curve_note": _curve_note(result),
        "extremes": _extremes(result, both),
        "min_context": texts.enough_context(result),
        "passages": [
            texts.passage(result, i, both, subject.store)
            for i in texts.choose_documents(result, labels)
        ],
        "strata": [] if subject.store is None else texts.shown_strata(subject.store),
        "passages_note": _passages_note(labels),
        "facts": facts(result),
        "groups": [_group(subject, *summary, exhibits) for summary in summaries.items()],
        "position_rows": _positions(subject, exhibits),
        "relations": _relations(subject, exhibits),
        "topology": _topology(subject, exhibits),
        "thresholds": _thresholds(result, labels),
        "factors": None,
    }
    exhibits["curve"] = Exhibit(
        name=file_name(subject.key, "curve"),
        about=f"Error against trace size, {subject.name}",
        data=result.strata,
        draw=partial(curve_figure, result.strata, result.eps),
    )
    return Section(subject, exhibits, parts)


def lead(result: DensityResult) -> str:
    """Describe what was scanned."""
    scanned = f"{len(result.tokens):,} tokens in {len(result.documents):,} documents"
    if "incomplete" in result.settings:
        scanned += f" ({result.settings['incomplete']})"
    return f"Model: {result.settings['model']} ({result.settings['architecture']}). {scanned}."


def number(value: float) -> str:
    """Format a number to three places."""
    return f"{value:.3f}"


def headline(result: DensityResult, summaries: Mapping[str, pd.DataFrame]) -> list[tuple[str, str]]:
    """Headline numbers with their descriptions; `summaries` are the densities by label."""
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
    for table in list(summaries.values())[:1]:
        table = table[table["documents"] >= MIN_DOCUMENTS]
        if len(table) > 1:
            top, bottom = table.iloc[0], table.iloc[-1]
            ratio = top[result.density] / bottom[result.density]
            lines.append(
                (
                    f"{ratio:.1f}×",
                    f"the mean density of {shown_value(table.index[0])} over that of "
                    f"{shown_value(table.index[-1])}: "
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


def _group(
    subject: Subject, label: str, summary: pd.DataFrame, exhibits: dict[str, Exhibit]
) -> dict[str, Any]:
    result = subject.result
    density, area = result.measures
    by_area = summary.sort_values(area, ascending=False)
    keys = []
    for only, measure, table in (("density", density, summary), ("auc", area, by_area)):
        keys.append(f"by/{label}/{only}")
        exhibits[keys[-1]] = Exhibit(
            name=file_name(subject.key, "by", label, only),
            about=f"{measure} by {label}, {subject.name}; the numbers are in the table below",
            data=summary,
            draw=partial(label_figure, result.documents, table, measure, only == "density"),
            only=only,
        )
    return {"label": label, "keys": keys, "rows": list(summary.iterrows())}


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


def _positions(subject: Subject, exhibits: dict[str, Exhibit]) -> list[tuple[Any, Any]]:
    result = subject.result
    table = result.by_position()
    enough = table[table["documents"] >= MIN_DOCUMENTS]
    exhibits["positions"] = Exhibit(
        name=file_name(subject.key, "positions"),
        about="Density, edges and edges per context token by length of context; numbers below",
        data=table,
        draw=partial(position_figure, enough if len(enough) else table, result.density),
    )
    return list(table.iterrows())


def _relations(subject: Subject, exhibits: dict[str, Exhibit]) -> dict[str, Any]:
    """Add the exhibits of both measures; return a row of correlations for each relation."""
    result = subject.result
    related = relations(result)
    panels = relation_panels(related, result.tokens[list(result.measures)])
    for only, measure in zip(("density", "auc"), result.measures, strict=True):
        cells = {name: counted for name, (counted, _) in panels[measure].items()}
        exhibits[f"relations/{only}"] = Exhibit(
            name=file_name(subject.key, "relations", only),
            about=f"{measure} over entropy, frequency and context, {subject.name}",
            data=pd.concat(cells, names=["factor"]).droplevel(1),
            draw=partial(relation_figure, panels[measure], related, measure),
            only=only,
        )
    return {"rows": _relation_rows(related, result), "sample": related.sample}


def _relation_rows(related: Relations, result: DensityResult) -> list[tuple[str, list[Any]]]:
    measures = (*result.measures, *ABSOLUTE)
    return [(r.title, [related.correlations[r.name, m] for m in measures]) for r in RELATIONS]


def _topology(subject: Subject, exhibits: dict[str, Exhibit]) -> dict[str, Any] | None:
    """Add the exhibit of what traces consist of; return its table, None without a store."""
    if subject.store is None:
        return None
    result = subject.result
    if not result.tokens["reached"].any():
        return {"missing": f"No trace of the scan is within an error of {result.eps:g}."}
    table = trace_parts(subject.store, eps=result.eps, max_tokens=TOPOLOGY_TOKENS)
    exhibits["topology"] = Exhibit(
        name=file_name(subject.key, "topology"),
        about=f"Share of the trace's edges by kind and depth, {subject.name}",
        data=table,
        draw=partial(topology_figure, table),
    )
    kinds = dict.fromkeys(table.index.get_level_values("kind"))
    rows = [(kind, [row for _, row in table.loc[kind].iterrows()]) for kind in kinds]
    sample = "" if len(result.tokens) <= TOPOLOGY_TOKENS else ", in a sample of the store"
    return {"rows": rows, "tokens": f"{table['tokens'].max():,.0f} tokens that have one{sample}"}


def _thresholds(result: DensityResult, labels: Sequence[str]) -> list[dict[str, Any]]:
    """One table per label; none unless the rule is a threshold."""
    tables = ((label, threshold_table(result, label)) for label in labels)
    return [
        {
            "label": label,
            "rows": list(table.iterrows()),
            "largest": max(result.errors.columns),
        }
        for label, table in tables
        if table is not None and np.isfinite(table["threshold"].iloc[0])
    ]


def begin(explaining: Executor, subject: Subject) -> Future[FactorSummary] | None:
    """Start to explain densities by factors; None without a store or with too few tokens."""
    if subject.store is None:
        return None
    sample = factor_sample(subject.store, subject.result)
    return None if sample is None else explaining.submit(sample.explain)


def with_factors(begun: Section, explanation: Future[FactorSummary] | None) -> Section:
    """Add the explanation begun, or why there is none; without a store change nothing."""
    subject = begun.subject
    if subject.store is None:
        return begun
    exhibits = dict(begun.exhibits)
    factors = (
        _missing(subject.result)
        if explanation is None
        else _factors(subject, explanation.result(), exhibits)
    )
    return replace(begun, exhibits=exhibits, parts={**begun.parts, "factors": factors})


def _missing(result: DensityResult) -> dict[str, Any]:
    return {
        "missing": f"Too little to explain: {len(result.tokens):,} tokens in "
        f"{len(result.documents):,} documents, {FEWEST_TOKENS} in {MIN_DOCUMENTS} of different "
        "text would be needed."
    }


def _factors(
    subject: Subject, summary: FactorSummary, exhibits: dict[str, Exhibit]
) -> dict[str, Any]:
    exhibits["swarm"] = Exhibit(
        name=file_name(subject.key, "shap-beeswarm"),
        about=f"SHAP values of single tokens by factor, {subject.name}",
        data=summary.points,
        draw=partial(beeswarm_figure, summary.points, summary.unit),
    )
    exhibits["importance"] = Exhibit(
        name=file_name(subject.key, "shap-bars"),
        about=f"Mean size of each factor's SHAP values, {subject.name}; numbers below",
        data=summary.factors,
        draw=partial(importance_figure, summary.factors, summary.unit),
    )
    sample = f"{summary.tokens:,} of {len(subject.result.tokens):,} tokens"
    return {"summary": summary, "sample": sample, "rows": list(summary.factors.iterrows())}


def facts(result: DensityResult) -> list[tuple[str, str]]:
    """The store's settings as (name, value) pairs, nested names joined by a space."""
    settings = {k: v for k, v in result.settings.items() if k not in INTERNAL}
    return list(_flat(settings))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name} ")
        elif isinstance(value, list | tuple):
            texts = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in value]
            yield name, ", ".join(texts) or "none"
        elif value is None or isinstance(value, bool):
            yield name, {None: "none", False: "no", True: "yes"}[value]
        else:
            yield name, value if isinstance(value, str) else json.dumps(value)
