"""Sample a store of any size, and explain the sample's densities by factors."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..tracer.store import Store
from .arguments import given_seed
from .density import DensityResult
from .factor_plots import swarm_points
from .features import factor_frame, first_of_text, own_frequency
from .frames import AUC
from .intervals import MIN_DOCUMENTS

TOKENS = 4000  # tokens explained; SHAP of that many takes seconds
POOL = 40_000  # tokens of whole documents from which these are drawn
SHUFFLES = 2
FEWEST_TOKENS = 200  # with fewer, factors explain nothing


@dataclass(frozen=True)
class FactorSummary:
    """The numbers of an `explain.FactorExplanation` that a report needs; unpickles without shap.

    Attributes:
        target, unit, r2, r2_shuffled, finding, factors: as there.
        points: see `factor_plots.swarm_points`.
        tokens: number of tokens explained.
    """

    target: str
    unit: str
    r2: float
    r2_shuffled: NDArray[np.float64]
    finding: bool
    factors: pd.DataFrame
    points: pd.DataFrame
    tokens: int


@dataclass(frozen=True)
class FactorSample:
    """Tokens of whole documents: their factors, and the densities to explain.

    Attributes:
        factors: see `features.factor_frame`; frequencies are those in the whole store.
        target: `auc_tv`.
        document: the document of each token.
    """

    factors: pd.DataFrame
    target: pd.Series
    document: pd.Series

    def explain(self, seed: int = 0) -> FactorSummary:
        """Explain the sample, without interactions; see `explain.explain_frame`."""
        from .explain import explain_frame  # imported late: shap takes seconds

        explanation = explain_frame(
            self.factors,
            self.target,
            self.document,
            unit="total variation x decades",
            max_tokens=TOKENS,
            top=0,
            shuffles=SHUFFLES,
            seed=seed,
        )
        return FactorSummary(
            target=explanation.target,
            unit=explanation.unit,
            r2=explanation.r2,
            r2_shuffled=explanation.r2_shuffled,
            finding=explanation.finding,
            factors=explanation.factors,
            points=swarm_points(explanation),
            tokens=len(explanation.document),
        )


def factor_sample(store: Store, result: DensityResult, seed: int = 0) -> FactorSample | None:
    """Draw a sample of a store's tokens; None if there are too few to explain anything.

    Of documents with the same text only the first can be drawn.

    Args:
        store: a scanned store.
        result: its densities.
        seed: seed of the draw of documents.
    """
    tokens, sizes = result.tokens, result.tokens.groupby("document").size()
    texts = store.documents["text"][sizes.index]
    sizes = sizes[first_of_text(texts, sizes.index.to_series()).unique()]
    if len(sizes) < MIN_DOCUMENTS or len(tokens) < FEWEST_TOKENS:
        return None
    drawn = np.random.default_rng(given_seed(seed)).permutation(sizes.index.to_numpy())
    # Enough documents to fill the pool, and at least as many as an interval needs.
    enough = int(np.searchsorted(np.cumsum(sizes[drawn]), POOL)) + 1
    inside = tokens["document"].isin(drawn[: max(enough, MIN_DOCUMENTS)]).to_numpy()
    pool = tokens[inside].reset_index(drop=True)
    frame = factor_frame(store, tokens=pool)
    frame["log_frequency"] = own_frequency(tokens["token"].to_numpy())[inside]
    return FactorSample(frame, pool[AUC], pool["document"])
