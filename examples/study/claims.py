"""The papers' claims about computation density, each as a number with a test.

The claims are those of Kervadec et al., *Sparse or Dense?* (arXiv 2601.22795) and *Tracing
Computation Density in LLMs* (arXiv 2605.27033). Each names an effect and the smallest one that
counts; both were set before anything was measured. `verdict` is the rule for every line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypedDict

import numpy as np
import pandas as pd
from effects import elasticity, label_share, mean_of_documents, variance_share
from numpy.typing import NDArray

from densitrace import InputError, Store, compare
from densitrace.estimator.compare import Level, spearman
from densitrace.estimator.features import factor_frame
from densitrace.estimator.frames import AUC, density_name, scored, token_frame
from densitrace.estimator.intervals import Interval
from densitrace.tracer.curve import auc_tv

RULE = (
    "A claim names an effect and the least of it that counts. It holds where the whole 95% "
    "interval lies beyond that least effect, fails where the whole interval falls short of it, "
    "and is undecided where the interval contains it or cannot be given."
)
LEVELS: tuple[Level, ...] = ("document", "word")
SHORTEST = 8  # least tokens of context when its length is studied: smaller graphs have few edges
DOCUMENTS_OF_A_VALUE = 10  # least documents of a label's value for its mean to be compared
ROUGH, REFINED = 0.5, 0.1  # total variation of a trace's core, and of the trace refined


@dataclass(frozen=True)
class Claim:
    """A claim, and the effect measured for it."""

    name: str
    text: str
    effect: str
    least: float  # the smallest effect that counts; its sign is the direction claimed


CLAIMS = {
    claim.name: claim
    for claim in (
        Claim(
            "better than random",
            "Traces beat random subgraphs of equal size",
            "total variation of the random subgraph less that of the trace, token by token",
            0.05,
        ),
        Claim(
            "varies",
            "Density varies with the input",
            "share of the tokens' variance that lies between documents, length of context taken "
            "out (intraclass correlation; 0 is what chance gives)",
            0.05,
        ),
        Claim(
            "shared",
            "Density of the same text correlates across models",
            "Spearman correlation over words, their position in the document taken out",
            0.1,
        ),
        Claim(
            "rarer is denser",
            "Predicting rarer tokens takes a denser computation",
            "Spearman correlation of frequency and density over tokens",
            -0.1,
        ),
        Claim(
            "longer is sparser",
            "Longer context lowers density",
            "power of the context length by which density changes within a document",
            -0.1,
        ),
        Claim(
            "core is early",
            f"Phase one: the trace that predicts roughly (total variation {ROUGH:g}) lies mostly "
            "in early blocks",
            "share of its edges in the lower half of the blocks, less one half",
            0.05,
        ),
        Claim(
            "refined late",
            f"Phase two: edges that refine it (to {REFINED:g}) lie in later blocks than the core's",
            "share in the upper half of the blocks, added edges less core",
            0.05,
        ),
        Claim(
            "refined by attention",
            "Phase two: edges that refine it are more often attention",
            "share of attention edges, added edges less core",
            0.05,
        ),
        Claim(
            "uncertain is denser",
            "Uncertain predictions take a denser computation",
            "Spearman correlation of the prediction's entropy and density over tokens",
            0.1,
        ),
    )
}


@dataclass(frozen=True)
class Finding:
    """One line of the study.

    Attributes:
        claim: a name in `CLAIMS`.
        subject: the model, or the two models.
        what: which measure or part, in words.
        effect: the effect with its 95% interval over documents.
        main: whether this line decides the claim for its subject; the others are for information.
    """

    claim: str
    subject: str
    what: str
    effect: Interval
    main: bool = False

    @property
    def verdict(self) -> str:
        """`holds`, `fails` or `undecided`: see `RULE`."""
        return verdict(self.effect, CLAIMS[self.claim].least)


def verdict(effect: Interval, least: float) -> str:
    """Judge an effect by `RULE`.

    Args:
        effect: the effect with its interval.
        least: the smallest effect that counts; its sign is the direction claimed.

    Example:
        >>> verdict(Interval(-0.3, -0.4, -0.2), -0.1), verdict(Interval(0.3, 0.2, 0.4), -0.1)
        ('holds', 'fails')
    """
    ends = np.sign(least) * np.array([effect.low, effect.high])
    if np.isnan(ends).any():
        return "undecided"
    if ends.min() > abs(least):
        return "holds"
    return "fails" if ends.max() < abs(least) else "undecided"


def standing(findings: Sequence[Finding]) -> str:
    """Summarise a claim over all subjects: the verdict of its main lines, or counts if they differ.

    Example:
        >>> standing([])
        'not tested'
    """
    verdicts = [finding.verdict for finding in findings if finding.main]
    numbers = {verdict: verdicts.count(verdict) for verdict in ("holds", "fails", "undecided")}
    given = [name for name, number in numbers.items() if number]
    if len(given) < 2:
        return given[0] if given else "not tested"
    return ", ".join(f"{name} in {numbers[name]}" for name in given) + f" of {len(verdicts)}"


@dataclass(frozen=True)
class Scan:
    """One model's store, and the settings of its tests.

    Attributes:
        name: name of the model.
        store: its store, scanned with the control `random`.
        lower_half: float64 [T], share of the full graph's edges in the lower half of the blocks,
            by context length from 1; None leaves out the line that needs it.
        reference: occurrences by token id in a larger corpus, or None.
        eps: the total variation that `density@EPS` tolerates.
        resamples, seed: of the intervals.
    """

    name: str
    store: Store
    lower_half: NDArray[np.float64] | None = None
    reference: Sequence[float] | None = None
    eps: float = 0.1
    resamples: int = 999
    seed: int = 0

    def tokens(self) -> pd.DataFrame:
        """The token frame, with labels, and the frequencies of the tokens read and predicted."""
        tokens = token_frame(self.store, self.eps)
        counts = None if self.reference is None else np.asarray(self.reference, np.float64)
        factors = factor_frame(self.store, counts, tokens=tokens)
        for name in ("log_frequency", "log_reference_frequency"):
            if name in factors:
                tokens[name] = factors[name]
                tokens[f"next_{name}"] = factors[name].groupby(tokens["window"]).shift(-1)
        for label in self.store.labels:
            tokens[f"label_{label}"] = tokens["document"].map(self.store.documents[label])
        return tokens


def judge_model(scan: Scan) -> list[Finding]:
    """Test every claim about one model."""
    tokens = scan.tokens()
    tests = (
        better_than_random,
        varies,
        rarer_is_denser,
        longer_is_sparser,
        phases,
        uncertain_is_denser,
    )
    return [finding for test in tests for finding in test(scan, tokens)]


class _Resampling(TypedDict):
    n_resamples: int
    seed: int


def _resampling(scan: Scan) -> _Resampling:
    return {"n_resamples": scan.resamples, "seed": scan.seed}


def better_than_random(scan: Scan, tokens: pd.DataFrame) -> Iterator[Finding]:
    """Error of random subgraphs minus that of traces, over all strata and at each."""
    store, real = scan.store, scored(scan.store)
    full = tokens["full_edges"].to_numpy()
    size = np.asarray(store.size[:])[real].astype(np.float64)  # [N, K]
    decades = -np.log10(np.clip(size[:, 0], 1 / full, 1.0))

    def against(control: str, what: str, main: bool) -> tuple[Finding, NDArray[np.float64]]:
        tv = np.asarray(store.array(f"tv_{control}")[:])[real]
        excess = auc_tv(size, tv, full) - tokens[AUC].to_numpy()
        # A trace that is the full graph at every stratum spans no decade, and its difference is 0.
        mean = np.divide(excess, decades, out=np.zeros_like(decades), where=decades > 0)
        effect = mean_of_documents(pd.Series(mean), tokens["document"], scan.seed)
        finding = Finding("better than random", scan.name, what, effect, main)
        return finding, np.asarray(tv - np.asarray(store.tv[:])[real], np.float64)

    finding, differences = against("random", "mean over log size", main=True)
    yield finding
    for stratum, value in enumerate(store.strata):
        effect = mean_of_documents(
            pd.Series(differences[:, stratum]), tokens["document"], scan.seed
        )
        what = f"threshold {value:.2g} (median size {np.median(size[:, stratum]):.2g})"
        yield Finding("better than random", scan.name, what, effect)
    if "inverse" in store.controls:
        yield against("inverse", "against the dropped edges, mean over log size", main=False)[0]


def varies(scan: Scan, tokens: pd.DataFrame) -> Iterator[Finding]:
    """Variance between documents, and of their means between values of each label."""
    document = tokens["document"]
    eighths = np.floor(8 * np.log2(tokens["context"]))  # bands of 1/8 octave of context
    rng = np.random.default_rng(scan.seed)
    density = density_name(scan.eps)
    for measure, main in ((density, True), (AUC, False)):
        raw = tokens[measure] if measure == AUC else np.log10(tokens[measure])
        values = raw - raw.groupby(eighths).transform("mean")

        def finding(what: str, effect: Interval, main: bool = False) -> Finding:
            return Finding("varies", scan.name, what, effect, main)

        share = variance_share(values, document, scan.resamples, scan.seed)
        yield finding(f"{_shown(measure)} between documents", share, main)
        shuffled = pd.Series(rng.permutation(values), values.index)
        share = variance_share(shuffled, document, scan.resamples, scan.seed)
        yield finding(f"{_shown(measure)}, tokens shuffled (control: should fail)", share)
        means = values.groupby(document).mean()
        for label in scan.store.labels:
            value = scan.store.documents[label].reindex(means.index)
            large = value.map(value.value_counts()) >= DOCUMENTS_OF_A_VALUE
            if value[large].nunique() > 1:
                what = f"{_shown(measure)}, document means between values of {label}"
                yield finding(what, label_share(means[large], value[large]))


def _shown(measure: str) -> str:
    return measure if measure == AUC else f"log {measure}"


def rarer_is_denser(scan: Scan, tokens: pd.DataFrame) -> Iterator[Finding]:
    """Correlate density with the frequency of the token predicted, then of the token read."""
    density, resampling = density_name(scan.eps), _resampling(scan)

    def rank(rows: pd.DataFrame, frequency: str, measure: str = AUC) -> Interval:
        rows = rows.dropna(subset=[frequency])
        return spearman(rows[frequency], rows[measure], rows["document"], **resampling)

    def finding(what: str, effect: Interval, main: bool = False) -> Finding:
        return Finding("rarer is denser", scan.name, what, effect, main)

    predicted = "next_log_frequency"
    yield finding(f"token predicted, {AUC}", rank(tokens, predicted), main=True)
    yield finding(f"token predicted, {density}", rank(tokens, predicted, density))
    rows = tokens.dropna(subset=[predicted])
    given = spearman(
        rows[predicted], rows[AUC], rows["document"], given=rows["context"], **resampling
    )
    yield finding(f"token predicted, {AUC}, context taken out", given)
    if "label_lang" in tokens:
        lang = tokens["label_lang"].mode().iloc[0]
        effect = rank(tokens[tokens["label_lang"] == lang], predicted)
        yield finding(f"token predicted, {AUC}, {lang} alone", effect)
    if scan.reference is not None:
        effect = rank(tokens, "next_log_reference_frequency")
        yield finding(f"token predicted, reference corpus, {AUC}", effect)
    yield finding(f"token read, {AUC}", rank(tokens, "log_frequency"))


def longer_is_sparser(scan: Scan, tokens: pd.DataFrame) -> Iterator[Finding]:
    """Elasticity of relative size, edges and edges per token in the length of context."""
    rows = tokens[tokens["context"] >= SHORTEST]
    density = density_name(scan.eps)
    for measure, what in (
        (density, f"relative size ({density})"),
        ("edges", "edges"),
        ("edges_per_token", "edges per token of context"),
    ):
        effect = elasticity(
            rows["context"], rows[measure], rows["document"], scan.resamples, scan.seed
        )
        yield Finding("longer is sparser", scan.name, what, effect, main=measure == density)


def uncertain_is_denser(scan: Scan, tokens: pd.DataFrame) -> Iterator[Finding]:
    """Correlate density with the prediction's entropy."""
    for measure in (AUC, density_name(scan.eps)):
        effect = spearman(
            tokens["model_entropy"], tokens[measure], tokens["document"], **_resampling(scan)
        )
        yield Finding("uncertain is denser", scan.name, measure, effect, main=measure == AUC)


# ---- two phases ----------------------------------------------------------------------------------


def phases(scan: Scan, tokens: pd.DataFrame) -> Iterator[Finding]:
    """Where the core of a trace lies, and which edges refine it."""
    shares = two_phases(scan.store)
    document = shares["document"]
    tried = f"{len(shares) / len(tokens):.0%} of tokens"

    def finding(claim: str, what: str, values: pd.Series, main: bool = True) -> Finding:
        return Finding(claim, scan.name, what, mean_of_documents(values, document, scan.seed), main)

    yield finding("core is early", f"edges, {tried}", shares["core_lower"] - 0.5)
    if scan.lower_half is not None:
        full = pd.Series(scan.lower_half[shares["context"] - 1], shares.index)
        what = "against the full graph's share instead of one half"
        yield finding("core is early", what, shares["core_lower"] - full, main=False)
    # The difference of the upper halves is minus that of the lower halves.
    yield finding("refined late", f"edges, {tried}", shares["core_lower"] - shares["added_lower"])
    gain = shares["added_attention"] - shares["core_attention"]
    yield finding("refined by attention", f"edges, {tried}", gain)


def two_phases(store: Store, rough: float = ROUGH, refined: float = REFINED) -> pd.DataFrame:
    """Locate each trace's core and the edges that refine it.

    The core is the sparsest trace with a total variation of at most `rough`. Added edges are those
    of the sparsest trace with at most `refined` that are not in the core: traces nest.

    Returns:
        One row per token that has both and whose trace grows between them: `document`, `context`,
        and for `core` and `added` the number of `edges` and the shares `lower` (edges in the lower
        half of the blocks) and `attention`, as `core_edges` and so on.
    """
    frames, done = [], scored(store)
    for part in store.done_parts():  # part by part: the topology is a store's largest array
        windows = store.windows(part)
        window, column = np.nonzero(done[windows])
        tv = store.tv[windows][window, column]  # [n, K]
        first, last = np.argmax(tv <= rough, 1), np.argmax(tv <= refined, 1)
        keep = (tv <= refined).any(1) & (last > first)
        window, column, first, last = window[keep], column[keep], first[keep], last[keep]
        topology = store.topology[windows]
        core = topology[window, column, first].astype(np.float64)  # [n, 4 kinds, 4 quartiles]
        added = topology[window, column, last] - core
        columns = {"document": store.document[windows][window], "context": column + 1}
        for name, edges in (("core", core), ("added", added)):
            total = edges.sum((1, 2))
            columns[f"{name}_edges"] = total
            columns[f"{name}_lower"] = edges[:, :, :2].sum((1, 2)) / np.maximum(total, 1)
            columns[f"{name}_attention"] = edges[:, 0].sum(1) / np.maximum(total, 1)
        frames.append(pd.DataFrame(columns))
    rows = pd.concat(frames, ignore_index=True)
    return rows[(rows["core_edges"] > 0) & (rows["added_edges"] > 0)].reset_index(drop=True)


def stratum_shares(store: Store) -> pd.DataFrame:
    """Shares of each trace's edges, for every token and stratum.

    Returns:
        `document`, `stratum` (its number), `size`, `tv`, and the shares `lower_half` and
        `attention` of the trace's edges, NaN for a trace without edges.
    """
    frames, done = [], scored(store)
    for part in store.done_parts():
        windows = store.windows(part)
        places = np.nonzero(done[windows])
        edges = store.topology[windows][places].astype(np.float64)  # [n, K, 4 kinds, 4 quartiles]
        total = edges.sum((2, 3))
        total[total == 0] = np.nan
        columns = {
            "document": np.repeat(store.document[windows][places[0]], edges.shape[1]),
            "stratum": np.tile(np.arange(edges.shape[1]), len(edges)),
            "size": store.size[windows][places].ravel().astype(np.float64),
            "tv": store.tv[windows][places].ravel().astype(np.float64),
            "lower_half": (edges[..., :2].sum((2, 3)) / total).ravel(),
            "attention": (edges[:, :, 0].sum(2) / total).ravel(),
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


# ---- across models -------------------------------------------------------------------------------


def judge_pairs(scans: Sequence[Scan]) -> list[Finding]:
    """Test whether densities correlate across models, pair by pair.

    Raises:
        InputError: fewer than two models.
    """
    if len(scans) < 2:
        raise InputError(f"{len(scans)} models: densities of two or more are compared")
    return [
        finding
        for first, second in combinations(scans, 2)
        for finding in _shared(first, second, f"{first.name} and {second.name}")
    ]


def _shared(first: Scan, second: Scan, pair: str) -> Iterator[Finding]:
    names, stores = [first.name, second.name], [first.store, second.store]

    for measure in (AUC, density_name(first.eps)):
        for level in LEVELS:
            comparison = compare(stores, level, measure, names=names, seed=first.seed)
            row, table = comparison.correlations.iloc[0], comparison.table
            effect = Interval(*(float(row[column]) for column in ("spearman", "low", "high")))
            yield Finding("shared", pair, f"{level}s, {measure}", effect)
        # In every model density depends on position, which alone makes models correlate: control
        # for it. `table` is that of words.
        x, y = (table[name] for name in names)
        resampling = _resampling(first)
        effect = spearman(x, y, table["document"], given=table["start"], **resampling)
        what = f"words, {measure}, position taken out"
        yield Finding("shared", pair, what, effect, main=measure == AUC)
