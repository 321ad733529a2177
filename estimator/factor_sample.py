"""Factors of a store of any size: those of a sample, explained beside what else is done."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..tracer.store import Store
from .density import AUC, DensityResult
from .factor_plots import swarm_points
from .features import factor_frame, own_frequency
from .intervals import MIN_DOCUMENTS

TOKENS = 4000  # explained; SHAP of as many takes seconds
POOL = 40_000  # tokens of whole documents, among which these are drawn
SHUFFLES = 2
FEWEST_TOKENS = 200  # an explanation by factors of fewer says nothing


@dataclass(frozen=True)
class FactorSummary:
    """What is said of an `explain.FactorExplanation`: few numbers, read without shap.

    Attributes:
        target, unit, r2, r2_shuffled, finding, factors: as there.
        points: see `factor_plots.swarm_points`.
        tokens: how many were explained.
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
    """Tokens of some whole documents: what is known of them, and what is explained.

    Attributes:
        factors: see `features.factor_frame`; frequencies are those in the whole store.
        target: `auc_tv`.
        document: of each token.
    """

    factors: pd.DataFrame
    target: pd.Series
    document: pd.Series

    def explain(self, seed: int = 0) -> FactorSummary:
        """See `explain.explain_frame`; interactions of factors are left out."""
        from .explain import explain_frame  # shap takes seconds to import

        found = explain_frame(
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
            found.target,
            found.unit,
            found.r2,
            found.r2_shuffled,
            found.finding,
            found.factors,
            swarm_points(found),
            len(found.document),
        )


def factor_sample(store: Store, result: DensityResult, seed: int = 0) -> FactorSample | None:
    """A sample of a store's tokens; None where there are too few to explain anything.

    Args:
        store: a scanned store.
        result: its densities.
        seed: of the drawing of documents.
    """
    tokens, sizes = result.tokens, result.tokens.groupby("document").size()
    if len(sizes) < MIN_DOCUMENTS or len(tokens) < FEWEST_TOKENS:
        return None
    drawn = np.random.default_rng(seed).permutation(sizes.index.to_numpy())
    # So many that the pool is full, and those that an interval needs at least.
    enough = int(np.searchsorted(np.cumsum(sizes[drawn]), POOL)) + 1
    inside = tokens["document"].isin(drawn[: max(enough, MIN_DOCUMENTS)]).to_numpy()
    pool = tokens[inside].reset_index(drop=True)
    frame = factor_frame(store, tokens=pool)
    frame["log_frequency"] = own_frequency(tokens["token"].to_numpy())[inside]
    return FactorSample(frame, pool[AUC], pool["document"])
