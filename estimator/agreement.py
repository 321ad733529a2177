"""The report's section on several stores: how far their models agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from ..errors import StoreError
from .compare import Comparison, compare
from .exhibits import Exhibit, file_name
from .frames import AUC
from .relation_plots import agreement_figure
from .relations import counts
from .sections import Subject

MEASURE = AUC  # needs no tolerance, and has no ceiling at which tokens tie
MOST_DOCUMENTS = 150  # documents whose words are compared
MOST_DOTS = 1000  # documents drawn
MOST_ROWS = 12  # rows of a list of disagreements


@dataclass(frozen=True)
class Pair:
    """Two models: their figure, the correlations of words and documents, words they disagree on."""

    names: tuple[str, str]
    figure: Exhibit
    correlations: Sequence[tuple[str, Any]]
    furthest: Sequence[dict[Any, Any]]


@dataclass(frozen=True)
class Agreement:
    """All pairs of models, or why they cannot be compared."""

    pairs: Sequence[Pair] = ()
    left_out: Sequence[tuple[str, int]] = ()
    partial: Sequence[tuple[str, int]] = ()
    caution: str = ""
    missing: str = ""

    @property
    def exhibits(self) -> list[Exhibit]:
        """The figures of all pairs."""
        return [pair.figure for pair in self.pairs]


def agreement(subjects: Sequence[Subject]) -> Agreement | None:
    """Compare the models of several stores pairwise; None for fewer than two stores."""
    stores = [subject.store for subject in subjects if subject.store is not None]
    names = [subject.name for subject in subjects if subject.store is not None]
    if len(stores) < 2:
        return None
    try:
        documents = compare(stores, "document", MEASURE, names=names)
        words = compare(stores, "word", MEASURE, names=names, max_documents=MOST_DOCUMENTS)
    except StoreError as error:  # no document in common, or no spans
        return Agreement(missing=f"{error}.")
    rows = zip(words.correlations.iterrows(), documents.correlations.iterrows(), strict=True)
    return Agreement(
        pairs=[
            _pair(words, documents, of_words, of_documents)
            for (_, of_words), (_, of_documents) in rows
        ],
        left_out=[(name, n) for name, n in words.left_out.items() if n],
        partial=[(name, n) for name, n in documents.partial.items() if n],
        caution=words.caution,
    )


def _pair(words: Comparison, documents: Comparison, of_words: Any, of_documents: Any) -> Pair:
    names = (str(of_words["first"]), str(of_words["second"]))
    scattered = words.scatter(*names)
    cells = counts(scattered["x"].to_numpy(), scattered["y"].to_numpy(), (False, False))
    dots = documents.scatter(*names)[["document", "x", "y"]]
    dots = dots.iloc[:: -(-len(dots) // MOST_DOTS)]
    data = pd.concat({"words": cells, "documents": dots}, names=["level"]).droplevel(1)
    figure = Exhibit(
        name=file_name("across", *names),
        about=f"{MEASURE} of words and documents, {names[1]} over {names[0]}",
        data=data,
        draw=partial(agreement_figure, cells, dots, names, MEASURE),
    )
    furthest = words.disagreements(*names, most=MOST_ROWS).to_dict("records")
    return Pair(names, figure, [("words", of_words), ("documents", of_documents)], furthest)
