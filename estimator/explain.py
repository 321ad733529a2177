"""Explain token densities by factors: boosted trees, their SHAP values, and a test against noise.

A tree model is fitted to the density of tokens; SHAP splits each prediction over the factors, so
that base value and SHAP values add up to it. Whether there is anything to explain is tested first:
R2 is cross-validated over documents and compared with that of shuffled densities. Documents of one
text are one unit: a copy in another fold would give its own densities away.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import shap
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import GroupKFold, cross_val_predict
from threadpoolctl import threadpool_limits

from ..errors import InputError
from ..tracer.indices import whole
from ..tracer.store import Store
from .arguments import given_names, given_seed
from .density import MAX_TOKENS
from .features import Column, factor_frame, first_of_text, is_category
from .frames import AUC, density_name, token_frame, tolerance
from .intervals import MIN_DOCUMENTS, mean_interval

MAX_CATEGORIES = 20  # values kept of one factor; rarer ones become OTHER
OTHER = "(other)"
INTERACTION_TOKENS = 200  # tokens whose interaction values, one per pair of columns, are computed
_DIFFERENCES = ["value", "factor", "difference", "low", "high", "exceeds"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FactorExplanation:
    """SHAP values of factors, and the evidence that tells a finding from noise.

    Attributes:
        target: what is explained: `auc_tv`, or log10 of `density@EPS`.
        unit: unit of the target, and so of all SHAP values.
        explanation: `values` float64 [n, F], `base_values` [n], `data` [n, F] (numbers; codes of
            categories), `display_data` [n, F] (names), `feature_names` [F].
        prediction: float64 [n], the model's predictions: base value plus SHAP values.
        document: int [n], the document of each token explained.
        r2: R2, cross-validated over documents.
        r2_shuffled: float64 [S], the same for densities shuffled over all tokens.
        factors: one row per factor, largest first: `mean_abs` (mean |SHAP| over documents),
            `low`, `high` (its interval), `direction` (rank correlation of a number with its SHAP
            value; NaN for a category).
        labels: by label, mean |SHAP| of each label value [value, factor].
        differences: one row per label, value and factor: `difference` (mean |SHAP| of the value's
            documents minus that of all others), `low` and `high`, simultaneous over all rows,
            `exceeds` (whether it exceeds resampling noise: the interval excludes 0).
        interactions: one row per pair of the top factors, largest first: `first`, `second`,
            `mean_abs` (mean of |2 x interaction value|).
        interaction_values: float64 [m, k, k] of the k top factors, on m of the tokens.
        top: names of these k factors.
        tokens: tokens with a target; `explanation` holds a sample if it has fewer.
    """

    target: str
    unit: str
    explanation: shap.Explanation
    prediction: Floats
    document: NDArray[np.int64]
    r2: float
    r2_shuffled: Floats
    factors: pd.DataFrame
    labels: Mapping[str, pd.DataFrame]
    differences: pd.DataFrame
    interactions: pd.DataFrame
    interaction_values: Floats
    top: tuple[str, ...]
    tokens: int

    @property
    def finding(self) -> bool:
        """Whether the factors predict unseen documents: R2 above 0 and above all shuffled ones."""
        return bool(self.r2 > 0 and self.r2 > self.r2_shuffled.max())

    @property
    def sample(self) -> str:
        """The tokens explained, in words."""
        shown, documents = len(self.document), len(np.unique(self.document))
        which = f"a sample of {shown:,} of" if shown < self.tokens else "all"
        return f"{which} {self.tokens:,} tokens, {documents:,} documents"


def explain_factors(
    store: Store,
    target: str = AUC,
    *,
    reference_counts: Mapping[int, float] | ArrayLike | None = None,
    factors: Mapping[str, Column] | None = None,
    leave_out: Sequence[str] = (),
    by: Sequence[str] | None = None,
    max_tokens: int = MAX_TOKENS,
    top: int = 5,
    shuffles: int = 5,
    seed: int = 0,
) -> FactorExplanation:
    """Explain the densities of a store's tokens by their factors.

    Args:
        store: a scanned store.
        target: `auc_tv`, or `density@EPS`, whose log10 is explained.
        reference_counts, factors: see `features.factor_frame`.
        leave_out: names of factors not to use.
        by: labels whose values are compared; by default all with at most 20 values.
        max_tokens: explain a uniform random sample of at most this many tokens.
        top: number of factors whose interactions are computed; 0 to skip them.
        shuffles: number of fits to shuffled densities.
        seed: seed of sampling, fitting, shuffling and resampling.

    Raises:
        InputError: an unknown target, factor or label; fewer than two documents; an impossible
            number or seed.

    Source: Lundberg et al., *From local explanations to global understanding with explainable AI
    for trees*, Nature Machine Intelligence 2020. The SHAP values are path-dependent
    (`tree_path_dependent`): correlated factors share what they explain.

    Example:
        >>> found = explain_factors(open_store("traces.zarr"))  # doctest: +SKIP
        >>> found.finding, found.factors.head()  # doctest: +SKIP
    """
    given_names("leave_out", leave_out)
    given_names("by", by)
    eps = tolerance(target)
    tokens = token_frame(store, eps)
    frame = factor_frame(store, reference_counts, factors, tokens=tokens)
    values = tokens[AUC] if target == AUC else np.log10(tokens[density_name(eps)]).rename(target)
    labels = {name: frame[name] for name in frame.attrs["labels"]}
    if wrong := [name for name in leave_out if name not in frame]:
        raise InputError(f"leave_out={wrong!r}: the factors are {', '.join(frame.columns)}")
    return explain_frame(
        frame.drop(columns=list(leave_out)),
        values,
        tokens["document"],
        group=first_of_text(store.documents["text"], tokens["document"]),
        labels=_compared(labels, by),
        unit="total variation x decades" if target == AUC else "decades of size",
        max_tokens=max_tokens,
        top=top,
        shuffles=shuffles,
        seed=seed,
    )


def _compared(labels: Mapping[str, pd.Series], by: Sequence[str] | None) -> dict[str, pd.Series]:
    if by is None:
        return {n: v for n, v in labels.items() if 2 <= v.nunique() <= MAX_CATEGORIES}
    if wrong := [name for name in by if name not in labels]:
        raise InputError(f"by={wrong!r}: the labels are {', '.join(labels) or 'none'}")
    return {name: labels[name] for name in by}


def explain_frame(
    factors: pd.DataFrame,
    target: pd.Series,
    document: pd.Series,
    *,
    group: pd.Series | None = None,
    labels: Mapping[str, pd.Series] | None = None,
    unit: str = "",
    max_tokens: int = MAX_TOKENS,
    top: int = 5,
    shuffles: int = 5,
    seed: int = 0,
) -> FactorExplanation:
    """Explain any per-token number by any factors; see `explain_factors`.

    Args:
        factors: [N, F] numbers (NaN where missing) and categories.
        target: float [N], what is explained; rows where it is NaN are left out.
        document: int [N], the document of each row.
        group: int [N], the unit of cross-validation and resampling; by default `document`. Give
            documents of the same text the same number.
        labels: name -> [N], constant within a document.
        unit: unit of the target.
        max_tokens, top, shuffles, seed: see `explain_factors`.

    Raises:
        InputError: fewer than two groups, no factor, `max_tokens` or `shuffles` below 1, `top`
            below 0, an impossible seed.
    """
    max_tokens, shuffles = whole("max_tokens", max_tokens, 1), whole("shuffles", shuffles, 1)
    top, seed = whole("top", top, 0), given_seed(seed)
    rng = np.random.default_rng(seed)
    known = np.flatnonzero(target.notna())
    chosen = np.sort(rng.choice(known, min(max_tokens, len(known)), replace=False))
    frame, y = factors.iloc[chosen], target.to_numpy(np.float64)[chosen]
    units = (document if group is None else group).to_numpy()[chosen]
    if len(np.unique(units)) < 2 or not len(frame.columns):
        raise InputError(
            f"{len(np.unique(units))} documents of different text, {len(frame.columns)} factors: "
            "an explanation needs two such documents, to be tested on one it was not fitted to, "
            "and a factor"
        )
    coded, owner = encode(frame)
    with threadpool_limits(1):  # fits this small lose more to synchronising threads than they gain
        r2 = _cross_validated(coded, y, units, seed)
        shuffled = [
            _cross_validated(coded, rng.permutation(y), units, seed) for _ in range(shuffles)
        ]
        model = _trees(seed).fit(coded, y)
    explainer = shap.TreeExplainer(model, feature_perturbation="tree_path_dependent")
    split = _gathered(np.asarray(explainer.shap_values(coded)), owner)
    few = np.sort(rng.choice(len(y), min(INTERACTION_TOKENS, len(y)), replace=False))
    table = _importance(frame, split, units, seed)
    leading = tuple(table.index[:top])
    places = [list(frame.columns).index(name) for name in leading]
    pairs = np.zeros((len(few), 0, 0))
    if top:
        pairs = _gathered(np.asarray(explainer.shap_interaction_values(coded[few])), owner, owner)
        pairs = pairs[:, places][:, :, places]
    grouped = {name: values.iloc[chosen] for name, values in (labels or {}).items()}
    means, differences = _by_label(np.abs(split), units, grouped, frame.columns, seed)
    return FactorExplanation(
        target=str(target.name),
        unit=unit,
        explanation=_explanation(frame, split, float(np.ravel(explainer.expected_value)[0])),
        prediction=np.asarray(model.predict(coded)),
        document=document.to_numpy()[chosen],
        r2=r2,
        r2_shuffled=np.array(shuffled),
        factors=table,
        labels=means,
        differences=differences,
        interactions=_interaction_table(pairs, leading),
        interaction_values=pairs,
        top=leading,
        tokens=len(known),
    )


def encode(frame: pd.DataFrame) -> tuple[Floats, NDArray[np.int64]]:
    """Encode factors as numbers: a category becomes one 0/1 column per frequent value.

    shap reads the categorical splits of scikit-learn's trees as if they were numerical, so
    categories are not passed to them as such.

    Args:
        frame: [n, F] numbers and categories.

    Returns:
        float64 [n, C], and int64 [C]: the number of the factor that each column belongs to.
    """
    columns: list[Floats] = []
    owner: list[int] = []
    for number, name in enumerate(frame.columns):
        column = frame[name]
        if is_category(column):
            values = _frequent(column)
            parts = [(values == value).to_numpy(np.float64) for value in values.unique()]
        else:
            parts = [column.to_numpy(np.float64)]
        columns += parts
        owner += [number] * len(parts)
    return np.column_stack(columns), np.array(owner)


def _frequent(column: pd.Series) -> pd.Series:
    """A category's values as strings, with all but the most frequent ones replaced by OTHER."""
    names = column.astype(str)
    counts = names.value_counts()
    return names.where(names.isin(counts.index[:MAX_CATEGORIES]), OTHER)


def _gathered(values: Floats, *owners: NDArray[np.int64]) -> Floats:
    """Sum SHAP values [n, C] or [n, C, C] over the columns of each factor."""
    for axis, owner in enumerate(owners, start=1):
        starts = np.searchsorted(owner, np.arange(owner[-1] + 1))
        values = np.add.reduceat(values, starts, axis=axis)
    return values


class _Trees(HistGradientBoostingRegressor):  # type: ignore[misc] # scikit-learn ships no types
    """Boosted trees that accept columns without any finite value."""

    def fit(self, X: Floats, y: Floats) -> "_Trees":
        # Set to 0 such a column is constant, and no tree splits on it.
        return super().fit(np.where(np.isfinite(X).any(0), X, 0), y)  # type: ignore[no-any-return]


def _trees(seed: int) -> _Trees:
    # Small trees: deeper ones fit the noise of a few documents, and the cost of TreeSHAP grows
    # with the square of the depth. 60 trees predict as well as 100 at a lower learning rate.
    return _Trees(
        max_iter=60, learning_rate=0.15, max_depth=5, min_samples_leaf=20, random_state=seed
    )


def _cross_validated(
    coded: Floats, y: Floats, units: NDArray[np.int64], seed: int, folds: int = 5
) -> float:
    """R2 of predictions for held-out documents, relative to the overall mean."""
    splitter = GroupKFold(min(folds, len(np.unique(units))))
    predicted = cross_val_predict(_trees(seed), coded, y, groups=units, cv=splitter)
    if np.ptp(y) == 0:  # exactly: the variance of a constant need not be 0 in floating point
        return 0.0
    return 1 - float(((y - predicted) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def _explanation(frame: pd.DataFrame, split: Floats, base: float) -> shap.Explanation:
    data = {
        name: _frequent(column).astype("category").cat.codes if is_category(column) else column
        for name, column in frame.items()
    }
    return shap.Explanation(
        values=split,
        base_values=np.full(len(split), base),
        data=np.column_stack([np.asarray(column, np.float64) for column in data.values()]),
        display_data=frame.astype(object).to_numpy(),
        feature_names=list(frame.columns),
    )


def _importance(
    frame: pd.DataFrame, split: Floats, units: NDArray[np.int64], seed: int
) -> pd.DataFrame:
    sizes = pd.DataFrame(np.abs(split), columns=frame.columns).groupby(units).mean()
    rows = {}
    for number, name in enumerate(frame.columns):
        value, low, high = mean_interval(sizes[name], n_resamples=1999, seed=seed)
        direction = np.nan
        if not is_category(frame[name]):
            direction = _rank_correlation(frame[name].to_numpy(np.float64), split[:, number])
        rows[name] = {"mean_abs": value, "low": low, "high": high, "direction": direction}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("factor")
    return table.sort_values("mean_abs", ascending=False, kind="stable")


def _rank_correlation(values: Floats, split: Floats) -> float:
    known = ~np.isnan(values)
    if not known.any() or np.ptp(values[known]) == 0 or np.ptp(split[known]) == 0:
        return np.nan
    return float(stats.spearmanr(values[known], split[known]).statistic)


def _interaction_table(pairs: Floats, names: Sequence[str]) -> pd.DataFrame:
    # The matrix is symmetric: a pair's interaction is the sum of both halves.
    rows: list[dict[str, Any]] = [
        {
            "first": names[a],
            "second": names[b],
            "mean_abs": float(np.abs(2 * pairs[:, a, b]).mean()),
        }
        for a, b in combinations(range(len(names)), 2)
    ]
    table = pd.DataFrame(rows, columns=["first", "second", "mean_abs"])
    return table.sort_values("mean_abs", ascending=False, ignore_index=True)


# ---- label values --------------------------------------------------------------------------------


def _by_label(
    sizes: Floats,
    units: NDArray[np.int64],
    labels: Mapping[str, pd.Series],
    factors: Sequence[str] | pd.Index,
    seed: int,
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Return mean |SHAP| by label value, and which values differ from all the others."""
    frame = pd.DataFrame(sizes, columns=list(factors))
    level = 1 - 0.05 / max(1, len(labels))  # Bonferroni: the labels are tested separately
    means, rows = {}, []
    for label, values in labels.items():
        # Copies of a text may differ in their label: they are a unit of each value then.
        documents = frame.groupby([values.astype(str).to_numpy(), units]).mean().droplevel(1)
        means[label] = documents.groupby(level=0).mean().rename_axis(label)
        groups = documents.index.to_numpy()
        rows.append(label_differences(documents, groups, level, seed=seed).assign(label=label))
    columns = ["label", *_DIFFERENCES]
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)
    return means, table[columns]


def label_differences(
    documents: pd.DataFrame,
    groups: NDArray[Any],
    level: float = 0.95,
    n_resamples: int = 999,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the document means of each group with all other documents, beyond resampling noise.

    The intervals are simultaneous (bootstrap max-t): documents are resampled within each group,
    and the largest studentised deviation over all groups and factors sets the width. If nothing
    differs, no row of the table `exceeds` in about a share `level` of corpora. For several tables
    at once choose a higher level.

    Args:
        documents: float [D, F], one row per document.
        groups: [D], the group of each document; groups of fewer than `MIN_DOCUMENTS` are not
            compared, but count among the other documents.
        level: coverage of all intervals together.
        n_resamples: number of bootstrap samples.
        seed: seed of the resampling.

    Returns:
        One row per group and factor: `value`, `factor`, `difference`, `low`, `high`, `exceeds`.

    Raises:
        InputError: `n_resamples` below 1, or an impossible seed.

    Source: Westfall and Young, *Resampling-Based Multiple Testing*, 1993, §2.
    """
    data = documents.to_numpy(np.float64)
    names, owner, counts = np.unique(groups, return_inverse=True, return_counts=True)
    compared = [
        g for g, n in enumerate(counts) if n >= MIN_DOCUMENTS and len(data) - n >= MIN_DOCUMENTS
    ]
    if not compared:
        return pd.DataFrame(columns=_DIFFERENCES)
    difference, error = _against_others(data, owner, compared)
    rng = np.random.default_rng(given_seed(seed))
    members = [np.flatnonzero(owner == g) for g in range(len(names))]
    largest = np.empty(whole("n_resamples", n_resamples, least=1))
    for sample in range(len(largest)):
        drawn = np.concatenate([rng.choice(m, len(m)) for m in members])
        again, spread = _against_others(data[drawn], owner[drawn], compared)
        deviation = np.abs(again - difference)
        # A group resampled to one document has no spread: count its deviation as extreme.
        scaled = np.divide(deviation, spread, out=np.full_like(deviation, np.inf), where=spread > 0)
        largest[sample] = np.where(deviation > 0, scaled, 0).max()
    reach = np.quantile(largest, level, method="higher") * error
    low, high = difference - reach, difference + reach
    index = pd.MultiIndex.from_product([names[compared], documents.columns])
    flat = {"difference": difference, "low": low, "high": high, "exceeds": (low > 0) | (high < 0)}
    table = pd.DataFrame({name: values.ravel() for name, values in flat.items()}, index=index)
    return table.rename_axis(["value", "factor"]).reset_index()[_DIFFERENCES]


def _against_others(
    data: Floats, owner: NDArray[np.int64], compared: Sequence[int]
) -> tuple[Floats, Floats]:
    """Mean of each group minus the mean of the others, and its standard error; [groups, F]."""
    differences, errors = [], []
    for group in compared:
        inside, outside = data[owner == group], data[owner != group]
        differences.append(inside.mean(0) - outside.mean(0))
        variances = (part.var(0, ddof=1) / len(part) for part in (inside, outside))
        errors.append(np.sqrt(sum(variances)))
    return np.array(differences), np.array(errors)
