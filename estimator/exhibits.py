"""Exhibits: figures with their data, for the page and as files."""

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, count
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from ..errors import StoreError
from .plots import LIGHT, PAGE, Draw, drawn_in, to_svg, well_formed

DOTS_PER_INCH = 200


@dataclass(frozen=True)
class Exhibit:
    """One figure.

    Attributes:
        name: name of its files, unique on a page; see `named_apart`.
        about: alternative text: what it shows.
        data: the data drawn.
        draw: function that draws it in given colours.
        only: the measure that it shows, `density` or `auc`; empty if it shows both or neither.
    """

    name: str
    about: str
    data: pd.DataFrame
    draw: Draw
    only: str = ""

    @cached_property
    def svg(self) -> Markup:
        """The figure for the page."""
        # matplotlib escapes the text that it writes.
        return Markup(to_svg(self.draw(PAGE), self.name, self.about))

    @property
    def csv(self) -> str:
        """The data as CSV, including the index if it has a name."""
        named = any(name is not None for name in self.data.index.names)
        return str(self.data.to_csv(index=named, float_format="%.6g", lineterminator="\n"))

    def save(self, folder: Path) -> list[Path]:
        """Write NAME.svg, NAME.png and NAME.csv, in the colours of the light page."""
        figure = self.draw(LIGHT)
        paths = [folder / f"{self.name}{suffix}" for suffix in (".svg", ".png", ".csv")]
        with drawn_in(LIGHT, **{"svg.hashsalt": self.name}):
            drawing = io.StringIO()
            figure.savefig(drawing, format="svg", metadata={"Date": None}, facecolor=LIGHT.paper)
            paths[0].write_text(well_formed(drawing.getvalue()), encoding="utf-8")
            figure.savefig(paths[1], dpi=DOTS_PER_INCH, facecolor=LIGHT.paper)
        paths[2].write_text(self.csv, encoding="utf-8")
        return paths


def file_name(*parts: object) -> str:
    """Join parts to a file name of letters, digits, underscores, dots and hyphens.

    Example:
        >>> file_name("s1", "label", "a/b <c>")
        's1-label-a-b-c'
    """
    return re.sub(r"[^\w.]+", "-", "-".join(map(str, parts)).lower()).strip("-.")


def named_apart(exhibits: Sequence[Exhibit]) -> list[Exhibit]:
    """Number exhibits whose names are taken by earlier ones: `NAME`, `NAME-2`, `NAME-3`.

    Names may coincide because `file_name` drops case and punctuation.
    """
    taken: set[str] = set()
    named = []
    for exhibit in exhibits:
        numbered = (f"{exhibit.name}-{number}" for number in count(2))
        name = next(name for name in chain([exhibit.name], numbered) if name not in taken)
        taken.add(name)
        named.append(exhibit if name == exhibit.name else replace(exhibit, name=name))
    return named


def save_exhibits(exhibits: Iterable[Exhibit], folder: str | Path) -> list[Path]:
    """Write all exhibits into a folder, creating it; see `Exhibit.save`.

    Raises:
        StoreError: a file cannot be written.
    """
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        return [path for exhibit in exhibits for path in exhibit.save(target)]
    except OSError as error:
        raise StoreError(f"cannot write figures into {target}: {error.strerror}") from error
