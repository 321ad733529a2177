"""The densities of a corpus: `DensityResult`, and `DensityEstimator`, which scans for it."""

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..errors import InputError
from ..tracer.indices import shown
from ..tracer.select import DEFAULT_STRATA, AutoStrata, Rule
from ..tracer.store import Store, open_store
from .frames import (
    ABSOLUTE,
    AUC,
    check_scanned,
    density_name,
    group_means,
    joined,
    measure_column,
    read_run,
    result_labels,
    stratum_frame,
    unit_means,
)

if TYPE_CHECKING:
    import shap
    import xarray as xr
    from matplotlib.figure import Figure

    from ..tracer.tracer import Tracer
    from .explain import FactorExplanation
    from .features import Column

MAX_TOKENS = 10_000  # tokens explained by factors at most; TreeSHAP of that many takes seconds


@dataclass(frozen=True)
class DensityResult:
    """The densities of one scan: token rows, curve quartiles, documents and settings.

    Attributes:
        tokens: see `token_frame`.
        strata: see `stratum_frame`.
        documents: the scanned documents with their labels, `text`, and the means of
            `density@EPS` and `auc_tv` over their tokens; the index is `tokens.document`.
        errors: mean total variation of each document at each stratum [document, stratum].
        labels: names of the label columns of `documents`: the store's labels, renamed `label_NAME`
            where NAME is another column of the result or a variable of its dataset.
        settings: model, rule, options and versions, as the store records them.
        eps: the total variation that `density@EPS` tolerates.
    """

    tokens: pd.DataFrame
    strata: pd.DataFrame
    documents: pd.DataFrame
    errors: pd.DataFrame
    labels: tuple[str, ...]
    settings: Mapping[str, Any]
    eps: float

    @classmethod
    def from_store(cls, store: Store, eps: float = 0.1) -> Self:
        """Compute the densities of a store.

        Args:
            store: a scanned store; it may be incomplete.
            eps: the total variation that `density@EPS` tolerates.

        Raises:
            InputError: a negative or non-finite `eps`.
            StoreError: the store holds no scanned token.
        """
        runs = store.by_runs(lambda run: read_run(store, run, eps))
        check_scanned(store, [run.tokens for run in runs])
        curves = {name: [run.curves[name] for run in runs] for name in ("size", "tv")}
        strata = stratum_frame(store, curves)
        sums = np.zeros((len(store.documents), len(store.strata)))
        for run in runs:
            np.add.at(sums, *run.error_sums())
        frames = [run.tokens for run in runs]
        del runs, curves  # free the curves, which are as large as the rows
        tokens = joined(frames, eps)
        by_document = tokens.groupby("document")
        means = by_document[[density_name(eps), AUC]].mean()
        labels = result_labels(store, eps)
        documents = store.documents.rename(columns=labels).join(means, how="inner")
        errors = sums[means.index] / by_document.size().to_numpy()[:, None]
        settings = dict(store.attributes)
        if not store.complete:
            settings["incomplete"] = f"{len(store.done_parts())} of {store.n_parts} parts scanned"
        return cls(
            tokens=tokens,
            strata=strata,
            documents=documents,
            errors=pd.DataFrame(errors, means.index, store.rule.values),
            labels=tuple(labels.values()),
            settings=settings,
            eps=eps,
        )

    @property
    def density(self) -> str:
        """The name of the first measure, `density@EPS`."""
        return density_name(self.eps)

    @property
    def measures(self) -> tuple[str, str]:
        """The names of the two measures of a token."""
        return (self.density, AUC)

    def to_pandas(self) -> pd.DataFrame:
        """Return the token rows with their document's labels as one tidy frame."""
        return self.tokens.join(self.documents[list(self.labels)], on="document")

    def to_xarray(self) -> "xr.Dataset":
        """Return tokens, documents and curve quartiles as one labelled dataset.

        Returns:
            Token columns over `row`, of which `document` refers to `doc`; labels and means of
            documents over `doc` (means as `document_NAME`); quartiles of size and TV over `lane`
            and `stratum`. Attributes: `eps`, and `settings` as JSON.
        """
        import xarray as xr

        tokens = self.tokens.assign(regime=self.tokens["regime"].astype(str))
        documents = self.documents.rename(
            columns=lambda name: f"document_{name}" if name in tokens else name
        )
        strata = self.strata.set_index(["lane", "stratum"])
        return xr.merge(
            [
                xr.Dataset.from_dataframe(tokens.rename_axis("row")),
                xr.Dataset.from_dataframe(documents.rename_axis("doc")),
                xr.Dataset.from_dataframe(strata),
            ]
        ).assign_attrs({"eps": self.eps, "settings": json.dumps(self.settings, default=str)})

    def summary(self, by: str | None = None, level: float = 0.95) -> pd.DataFrame:
        """Mean densities over documents with bootstrap intervals, overall or by a column.

        Args:
            by: one of `labels` (`domain`, `lang`, ...) or any column of `to_pandas()`; None for
                one row.
            level: the nominal coverage of the intervals.

        Returns:
            See `group_means`; the measures are `density@EPS`, `auc_tv`, `dense` (the share of
            tokens in the dense regime), `edges` and `edges_per_token`.

        Raises:
            InputError: there is no such column.
        """
        measures = [*self.measures, "dense", *ABSOLUTE]
        dense = self.tokens["regime"] == "dense"
        if by is not None and by not in self.labels:
            return group_means(self.to_pandas().assign(dense=dense), by, measures, level)
        # A label does not split documents: average each document once, then group the means.
        by_document = self.tokens.assign(dense=dense).groupby("document")
        means, sizes = by_document[measures].mean(), by_document.size()
        of = self.documents[by] if by is not None else pd.Series("all", self.documents.index)
        group = of.loc[means.index].rename("corpus" if by is None else by)
        units = means.set_index([group, means.index])
        table = unit_means(units, sizes.groupby(group).sum().to_dict(), level)
        return table.sort_values(measures[0], ascending=False, kind="stable")

    def plot(self, by: str | None = None, measure: str | None = None) -> "Figure":
        """Draw the densities of documents by a label, or those of all tokens.

        Args:
            by: one of `labels`: a row for each of its values, with a dot for each document, their
                mean and its interval. None for tokens, counted in cells, over the entropy of the
                prediction, the token's frequency and its context, with rank correlations.
            measure: one of `measures`; by default `density@EPS`.

        Returns:
            A figure of its own, unknown to pyplot: use its `savefig`.

        Raises:
            InputError: there is no such label or measure.

        Example:
            >>> result.plot("domain").savefig("density-by-domain.png")  # doctest: +SKIP
        """
        # Imported late: reading a store needs no matplotlib.
        from .plots import LIGHT, label_figure
        from .relation_plots import relation_figure, relation_panels
        from .relations import relations

        shown = self.density if measure is None else measure_column(measure)
        if shown not in self.measures:
            raise InputError(f"measure={measure!r}: the measures are {', '.join(self.measures)}")
        if by is None:
            related = relations(self)
            panels = relation_panels(related, self.tokens[[shown]])
            figure = relation_figure(panels[shown], related, shown, LIGHT)
        elif by in self.labels:
            summary = self.summary(by).sort_values(shown, ascending=False, kind="stable")
            figure = label_figure(self.documents, summary, shown, shown != AUC, LIGHT)
        else:
            raise InputError(f"by={by!r}: the labels are {', '.join(self.labels) or 'none'}")
        figure.set_facecolor(LIGHT.paper)
        return figure

    def by_position(self) -> pd.DataFrame:
        """Means by octave of context length: relative size, edges, edges per context token.

        The full graph grows with the square of the context, so relative size falls with context
        for that reason alone; compare the absolute columns (METHOD §6). Only some documents reach
        a long context, so rows cover different documents: see the column `documents`.

        Returns:
            See `group_means`; the index `first` and the column `last` are the octave's ends.
        """
        octave = np.floor(np.log2(self.tokens["context"])).astype(int)
        frame = self.tokens.assign(first=2**octave)
        measures = (*self.measures, *ABSOLUTE, "full_edges")
        table = group_means(frame, "first", measures).sort_index()
        table["last"] = frame.groupby("first")["context"].max()
        return table


class DensityEstimator:
    """Estimate the density of texts under one model, given a `Tracer` and the options of a scan.

    Args:
        tracer: the model, with a tokenizer.
        select: the rule; the default chooses 12 thresholds evenly in log size.
        context: tokens per window.
        eps: the total variation that `density@EPS` tolerates.
        options: further keyword arguments of `densitrace.scan`.

    Example:
        >>> estimator = DensityEstimator.from_pretrained("examples/model")  # doctest: +SKIP
        >>> estimator.estimate(["The cat sat.", "E = mc2"]).summary()  # doctest: +SKIP
    """

    def __init__(
        self,
        tracer: "Tracer",
        *,
        select: Rule | AutoStrata = DEFAULT_STRATA,
        context: int = 512,
        eps: float = 0.1,
        **options: Any,
    ) -> None:
        self.tracer = tracer
        self.select = select
        self.context = context
        self.eps = eps
        self.options = options

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: str = "auto", dtype: str = "auto", **options: Any
    ) -> Self:
        """Load a local model folder or a hub id; `options` are those of the class."""
        from ..tracer.tracer import Tracer

        return cls(Tracer.from_pretrained(path, device=device, dtype=dtype), **options)

    def estimate(self, texts: Iterable[str]) -> DensityResult:
        """Scan texts, one document each, and return their densities.

        Args:
            texts: the texts.

        Returns:
            The densities; `documents["id"]` is a text's index in `texts`. Texts without a token,
            such as empty ones, texts that UTF-8 cannot encode, and items that are no string are
            left out.

        Raises:
            InputError: a single string instead of several, or no text.
            CorpusError: no text is left.
        """
        from ..tracer.parts import Worker
        from ..tracer.scan import scan  # imported late: reading a store needs no transformers

        if isinstance(texts, str):
            raise InputError("texts is one string: give a list of texts, for example [text]")
        if not isinstance(texts, Iterable):
            raise InputError(f"texts={shown(texts)}: give a list of texts")
        rows = [
            json.dumps({"id": number, "text": text if isinstance(text, str) else None})
            for number, text in enumerate(texts)
        ]
        if not rows:
            raise InputError("texts is empty: give at least one text")
        with tempfile.TemporaryDirectory(prefix="densitrace-") as folder:
            corpus = Path(folder) / "texts.jsonl"
            corpus.write_text("\n".join(rows), encoding="ascii")
            store = scan(
                self.tracer,
                corpus,
                Path(folder) / "traces.zarr",
                select=self.select,
                context=self.context,
                # Nobody shares the folder, whatever torchrun or Slurm say.
                **{"worker": Worker(), **self.options},
            )
            return DensityResult.from_store(store, self.eps)

    @staticmethod
    def from_store(store: Store | str | Path, eps: float = 0.1) -> DensityResult:
        """Return the densities of a scanned store; see `DensityResult.from_store`."""
        return DensityResult.from_store(open_store(store), eps)

    @staticmethod
    def explain_factors(
        store: Store | str | Path,
        target: str = AUC,
        *,
        reference_counts: Mapping[int, float] | ArrayLike | None = None,
        factors: "Mapping[str, Column] | None" = None,
        leave_out: Sequence[str] = (),
        by: Sequence[str] | None = None,
        max_tokens: int = MAX_TOKENS,
        top: int = 5,
        shuffles: int = 5,
        seed: int = 0,
    ) -> "FactorExplanation":
        """Explain the densities of a store by factors; see `explain.explain_factors`."""
        from .explain import explain_factors  # imported late: shap takes seconds

        return explain_factors(
            open_store(store),
            target,
            reference_counts=reference_counts,
            factors=factors,
            leave_out=leave_out,
            by=by,
            max_tokens=max_tokens,
            top=top,
            shuffles=shuffles,
            seed=seed,
        )

    def explain_tokens(
        self, text: str | Sequence[int], position: int = -1, **options: Any
    ) -> "shap.Explanation":
        """Explain which tokens make the prediction at a position dense; see `explain_tokens`.

        Uses the estimator's rule, and those of its options that `Tracer.trace` takes too.
        """
        from .explain_tokens import explain_tokens

        shared = ("importance", "attention", "count", "seed")
        own = {name: self.options[name] for name in shared if name in self.options}
        given = {"select": self.select, **own, **options}
        return explain_tokens(self.tracer, text, position, **given)

    @staticmethod
    def by_frequency(
        store: Store | str | Path, eps: float = 0.1, level: float = 0.95
    ) -> pd.DataFrame:
        """Mean densities by the token's frequency; see `summaries.by_frequency`."""
        from .summaries import by_frequency

        return by_frequency(open_store(store), eps, level)

    @staticmethod
    def trace_parts(
        store: Store | str | Path,
        stratum: int | None = None,
        eps: float = 0.1,
        by: str | None = None,
        level: float = 0.95,
        max_tokens: int | None = None,
    ) -> pd.DataFrame:
        """Break traces down by kind of edge and depth; see `summaries.trace_parts`."""
        from .summaries import trace_parts

        return trace_parts(open_store(store), stratum, eps, by, level, max_tokens)
