"""The report: one self-contained HTML page of what one or several stores say about density."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ..errors import InputError, StoreError
from ..tracer.store import Store, open_store
from .separate_process import explainer

if TYPE_CHECKING:
    from .density import DensityResult
    from .page import Page

Source: TypeAlias = "DensityResult | Store | str | Path"


@dataclass(frozen=True)
class ReportOptions:
    """The options of a report; see `render_report`."""

    by: Sequence[str] | None
    names: Sequence[str] | None
    eps: float
    factors: bool
    separate_process: bool


def render_report(
    sources: "Source | Sequence[Source]",
    *,
    by: Sequence[str] | None = None,
    title: str | None = None,
    names: Sequence[str] | None = None,
    eps: float = 0.1,
    factors: bool = True,
    separate_process: bool = False,
) -> str:
    """Render the page to one string of HTML.

    Args:
        sources: one or several stores or paths of stores. A `DensityResult` is taken too, without
            what only its store knows: topology, factors, the strata of passages, the comparison
            with other models.
        by: labels to show densities by, as named in `DensityResult.labels`; None for every label
            with 2 to 40 values.
        title: the page's heading.
        names: names of the models; by default their ids.
        eps: the total variation that `density@EPS` tolerates, for stores.
        factors: whether to explain densities by factors, which takes some seconds a store.
        separate_process: explain them in a second process while the page is made; faster if a
            core is free. As for any use of `multiprocessing`, a script must then guard its work
            by `if __name__ == "__main__"`.

    Returns:
        The page, which refers to nothing outside itself.

    Raises:
        InputError: no source, a label that no store has, or repeated or too few names; see
            `DensityResult.from_store`.
        StoreError: see `open_store`.
        DensitraceError: the second process died.

    Example:
        >>> html = render_report(["small.zarr", "large.zarr"])  # doctest: +SKIP
    """
    return _page(sources, ReportOptions(by, names, eps, factors, separate_process)).html(title)


def write_report(
    sources: "Source | Sequence[Source]",
    path: str | Path,
    *,
    figures: str | Path | None = None,
    by: Sequence[str] | None = None,
    title: str | None = None,
    names: Sequence[str] | None = None,
    eps: float = 0.1,
    factors: bool = True,
    separate_process: bool = False,
) -> Path:
    """Write the page to a file, creating its folder.

    Args:
        sources, by, title, names, eps, factors, separate_process: see `render_report`.
        path: the file to write.
        figures: a folder for every figure as SVG and PNG and its data as CSV.

    Returns:
        `path`.

    Raises:
        InputError: see `render_report`.
        StoreError: also where a file cannot be written.
        DensitraceError: see `render_report`.
    """
    page = _page(sources, ReportOptions(by, names, eps, factors, separate_process))
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page.html(title), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write the report {target}: {error.strerror}") from error
    if figures is not None:
        from .exhibits import save_exhibits

        save_exhibits(page.exhibits, figures)
    return target


def _page(sources: "Source | Sequence[Source]", options: ReportOptions) -> "Page":
    if isinstance(sources, str) or not isinstance(sources, Sequence):
        sources = [sources]
    if not sources:
        raise InputError("no store: give one or several")
    opened = [open_store(s) if isinstance(s, str | Path) else s for s in sources]
    with explainer(options.separate_process and options.factors) as explaining:
        from .page import page_of  # imports matplotlib while the second process starts

        return page_of(opened, options, explaining)
