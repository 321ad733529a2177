"""Assemble the report's page from one or several results, and render it as HTML."""

import base64
import hashlib
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from importlib import resources

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..errors import InputError
from ..tracer.store import Store
from . import passages as texts
from .agreement import MEASURE, Agreement, agreement
from .arguments import given_names
from .compare import model_names
from .density import DensityResult
from .exhibits import Exhibit, named_apart
from .frames import result_labels
from .intervals import MIN_DOCUMENTS
from .plots import percent, shown_value
from .report import ReportOptions
from .sections import Section, Subject, begin, number, section, with_factors


@dataclass(frozen=True)
class Page:
    """The content of the page, before rendering."""

    sections: Sequence[Section]
    across: Agreement | None

    @property
    def exhibits(self) -> list[Exhibit]:
        """All figures, in the order of the page."""
        of_stores = [exhibit for part in self.sections for exhibit in part.exhibits.values()]
        return [*of_stores, *(self.across.exhibits if self.across else [])]

    def html(self, title: str | None) -> str:
        """Render the page to one string."""
        first = self.sections[0].subject.result
        script = _template_file("report.js")
        return (
            _environment()
            .get_template("report.html")
            .render(
                title=title or "Computation density",
                sections=self.sections,
                across=self.across,
                across_measure=MEASURE,
                density=first.density,
                eps=f"{first.eps:g}",
                min_documents=MIN_DOCUMENTS,
                fields=texts.FIELDS,
                version=first.settings.get("versions", {}).get("densitrace", ""),
                style=Markup(_template_file("report.css")),
                script=Markup(script),
                script_hash=_hash(script),
                percent=percent,
                number=number,
                count=count,
                signed=signed,
                shown_value=shown_value,
                threshold=threshold,
            )
        )


def page_of(
    sources: Sequence[DensityResult | Store], options: ReportOptions, explaining: Executor
) -> Page:
    """Assemble the page; `explaining` runs the explanations by factors."""
    names = _checked_names(sources, options)
    results = [
        source
        if isinstance(source, DensityResult)
        else DensityResult.from_store(source, options.eps)
        for source in sources
    ]
    subjects = [
        Subject(
            key=f"s{number}",
            name=name,
            result=result,
            store=source if isinstance(source, Store) else None,
            by=None if options.by is None else tuple(dict.fromkeys(options.by)),
        )
        for number, (name, result, source) in enumerate(
            zip(names, results, sources, strict=True), start=1
        )
    ]
    if not options.factors:
        return _page(subjects)
    begun = [begin(explaining, subject) for subject in subjects]
    page = _page(subjects)
    for exhibit in page.exhibits:
        _ = exhibit.svg  # drawn while factors are explained
    sections = [with_factors(*pair) for pair in zip(page.sections, begun, strict=True)]
    return replace(page, sections=sections)


def _page(subjects: Sequence[Subject]) -> Page:
    """The page without explanations by factors; the names of its exhibits are unique."""
    page = Page([section(subject) for subject in subjects], agreement(subjects))
    named = iter(named_apart(page.exhibits))
    sections = [
        replace(part, exhibits={key: next(named) for key in part.exhibits})
        for part in page.sections
    ]
    if page.across is None:
        return Page(sections, None)
    pairs = [replace(pair, figure=next(named)) for pair in page.across.pairs]
    return Page(sections, replace(page.across, pairs=pairs))


def _checked_names(
    sources: Sequence[DensityResult | Store], options: ReportOptions
) -> tuple[str, ...]:
    """Check the labels and names asked for, before tokens are read; return the models' names."""
    given_names("by", options.by)
    given_names("names", options.names)
    labels: dict[str, None] = {}
    for source in sources:
        own = (
            source.labels
            if isinstance(source, DensityResult)
            else result_labels(source, options.eps).values()
        )
        labels |= dict.fromkeys(own)
    for label in options.by or ():
        if label not in labels:
            raise InputError(f"by={label!r}: the labels are {', '.join(labels) or 'none'}")
    models = [
        str(source.settings["model"]) if isinstance(source, DensityResult) else source.model_id
        for source in sources
    ]
    return model_names(models, options.names)


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


def count(value: float) -> str:
    """Format a count or a mean of counts: 1,234, and below 100 12 or 12.3."""
    whole = value >= 99.95 or np.isclose(value, np.round(value), rtol=1e-6)
    return f"{value:,.0f}" if whole else f"{value:.1f}"


def threshold(value: float, largest: float) -> str:
    """Format a threshold at which an error is met: the largest known is only a lower bound."""
    if value != value:
        return "–"
    return f"{'≥ ' if value >= largest else ''}{value:#.2g}"


def signed(value: float) -> str:
    """Format a number with its sign, to two places; NaN as a dash."""
    return f"{value:+.2f}".replace("-", "−") if value == value else "–"
