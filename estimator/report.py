"""The report: one self-contained HTML page of what one or several stores say about density."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..errors import InputError, StoreError
from ..tracer.store import Store, open_store
from . import passages as texts
from .agreement import MEASURE, Agreement, agreement
from .compare import model_names
from .density import DensityResult
from .exhibits import Exhibit, save_exhibits
from .factor_sample import explainer
from .intervals import MIN_DOCUMENTS
from .plots import percent
from .sections import (
    Section,
    Subject,
    begin,
    default_labels,
    number,
    section,
    with_factors,
)

__all__ = ["default_labels", "render_report", "write_report"]

Source = DensityResult | Store | str | Path


def count(value: float) -> str:
    """A number of things: 1,234, or 12.3 where it is small."""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}".removesuffix(".0")


def signed(value: float) -> str:
    """A number with its sign, to two places; a dash where there is none."""
    return f"{value:+.2f}".replace("-", "−") if value == value else "–"


def render_report(
    sources: Source | Sequence[Source],
    *,
    by: Sequence[str] | None = None,
    title: str | None = None,
    names: Sequence[str] | None = None,
    eps: float = 0.1,
    factors: bool = True,
    beside: bool = False,
) -> str:
    """The page as one string of HTML.

    Args:
        sources: one or several stores, or the places of stores. A `DensityResult` does too, but
            what only its store knows is then left out: topology, thresholds, factors, the strata
            of passages, other models.
        by: labels to show densities by; None for every label with 2 to 40 values.
        title: the page's heading.
        names: of the models; by default their ids.
        eps: the total variation that `density@EPS` tolerates, where a store is given.
        factors: whether to explain densities by factors, which takes some seconds a store.
        beside: explain them in a process of its own meanwhile, where cores are free. As for any
            use of `multiprocessing`, a script then guards what it does by
            `if __name__ == "__main__"`.

    Raises:
        InputError: no source, a label that no store has, names that do not fit; see
            `DensityResult.from_store`.
        StoreError: see `open_store`.
        DensitraceError: the process beside this one died.

    Example:
        >>> html = render_report(["small.zarr", "large.zarr"])  # doctest: +SKIP
    """
    return _html(_page(sources, by, names, eps, factors, beside), title)


def write_report(
    sources: Source | Sequence[Source],
    path: str | Path,
    *,
    figures: str | Path | None = None,
    by: Sequence[str] | None = None,
    title: str | None = None,
    names: Sequence[str] | None = None,
    eps: float = 0.1,
    factors: bool = True,
    beside: bool = False,
) -> Path:
    """Write the page to `path` (its folder is made) and return it.

    Args:
        sources, by, title, names, eps, factors, beside: see `render_report`.
        path: the page.
        figures: a folder for every figure as SVG and PNG and its data as CSV.

    Raises:
        InputError: see `render_report`.
        StoreError: also where a file cannot be written.
    """
    page = _page(sources, by, names, eps, factors, beside)
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_html(page, title), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write the report {target}: {error.strerror}") from error
    if figures is not None:
        save_exhibits(page.exhibits, figures)
    return target


@dataclass(frozen=True)
class _Page:
    """What the page says, before it is HTML."""

    sections: Sequence[Section]
    across: Agreement | None

    @property
    def exhibits(self) -> list[Exhibit]:
        of_stores = [exhibit for each in self.sections for exhibit in each.exhibits.values()]
        return [*of_stores, *(self.across.exhibits if self.across else [])]


def _page(
    sources: Source | Sequence[Source],
    by: Sequence[str] | None,
    names: Sequence[str] | None,
    eps: float,
    factors: bool,
    beside: bool,
) -> _Page:
    given = [sources] if isinstance(sources, DensityResult | Store | str | Path) else sources
    if not given:
        raise InputError("no store: give one or several")
    read = [open_store(s) if isinstance(s, str | Path) else s for s in given]
    labels = list(dict.fromkeys(label for source in read for label in source.labels))
    for label in by or ():
        if label not in labels:
            raise InputError(f"by={label!r}: the labels are {', '.join(labels) or 'none'}")
    with explainer(beside and factors) as explaining:
        results = [s if isinstance(s, DensityResult) else DensityResult.from_store(s, eps)
                   for s in read]  # fmt: skip
        called = model_names([str(result.settings["model"]) for result in results], names)
        subjects = [
            Subject(
                key=f"s{place + 1}",
                name=name,
                result=result,
                store=source if isinstance(source, Store) else None,
                by=None if by is None else tuple(by),
            )
            for place, (name, result, source) in enumerate(zip(called, results, read, strict=True))
        ]
        if not factors:
            return _Page([section(subject) for subject in subjects], agreement(subjects))
        begun = [begin(explaining, subject) for subject in subjects]
        page = _Page([section(subject) for subject in subjects], agreement(subjects))
        for exhibit in page.exhibits:
            _ = exhibit.svg  # drawn while factors are explained
        sections = [with_factors(*each) for each in zip(page.sections, begun, strict=True)]
        return replace(page, sections=sections)


def _html(page: _Page, title: str | None) -> str:
    first = page.sections[0].subject.result
    script = _template_file("report.js")
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=title or "Computation density",
            sections=page.sections,
            across=page.across,
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
        )
    )


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
