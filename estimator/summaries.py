"""Summaries with intervals over documents: densities by frequency, traces by their parts."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import InputError, StoreError
from ..tracer.curve import check_tolerance
from ..tracer.graph import KIND_NAMES, QUARTILES
from ..tracer.indices import from_start
from ..tracer.store import Store
from .features import factor_frame, frequency_bands
from .frames import ABSOLUTE, AUC, density_name, group_means, label_names, token_frame, unit_means

PART_MEASURES = ("share", "size", *ABSOLUTE)
ENDS = ("", "_low", "_high")


def by_frequency(store: Store, eps: float = 0.1, level: float = 0.95) -> pd.DataFrame:
    """Mean densities by decade of the token's frequency in the scanned corpus.

    Args:
        store: a scanned store.
        eps: the total variation that `density@EPS` tolerates.
        level: the nominal coverage of the intervals.

    Returns:
        See `density.group_means`, rarest tokens first; the index is the band, occurrences per
        million tokens; the measures are `density@EPS`, `auc_tv`, `edges`, `edges_per_token`.

    Example:
        >>> by_frequency(open_store("traces.zarr"))["density@0.1"]  # doctest: +SKIP
    """
    tokens = token_frame(store, eps)
    bands = frequency_bands(factor_frame(store, tokens=tokens)["log_frequency"])
    tokens["per_million"] = bands
    table = group_means(tokens, "per_million", (density_name(eps), AUC, *ABSOLUTE), level)
    return table.reindex([band for band in bands.cat.categories if band in table.index])


def trace_parts(
    store: Store,
    stratum: int | None = None,
    eps: float = 0.1,
    by: str | None = None,
    level: float = 0.95,
    max_tokens: int | None = None,
) -> pd.DataFrame:
    """Break traces down by kind of edge and depth, relative and absolute.

    Args:
        store: a scanned store.
        stratum: column of the rule whose traces are counted; by default each token's sparsest
            with a total variation of at most `eps`. Tokens without such a stratum are left out.
        eps: the tolerated total variation.
        by: a label to group by; its level of the index is `label_NAME` where NAME is a column or
            another level.
        level: the nominal coverage of the intervals.
        max_tokens: read only parts, evenly spread over the store, with about this many tokens;
            None for all.

    Returns:
        One row per label value (with `by`), `kind` of edge and depth `quartile` of blocks,
        1 the lowest (block l of L is in quartile 1 + 4 l // L): `documents`, `tokens`, and with
        `_low` and `_high` each: `share` (of the trace's edges), `size` (of the full graph's
        edges), `edges`, `edges_per_token` (of context). Means of document means.

    Raises:
        InputError: there is no such stratum or label, or a negative or non-finite `eps`.
        StoreError: no token has a stratum that meets `eps`, or parts are damaged.

    Example:
        >>> trace_parts(open_store("traces.zarr"))["share"].unstack()  # doctest: +SKIP
    """
    strata = len(store.strata)
    if stratum is not None:
        stratum = from_start("stratum", stratum, strata, "strata of the store")
    check_tolerance(eps)
    if by is not None and by not in store.labels:
        raise InputError(f"by={by!r}: the labels are {', '.join(store.labels) or 'none'}")
    sums, counts = _part_sums(store, _spread_parts(store, max_tokens), stratum, eps)
    counted = counts > 0
    if not counted.any():
        raise StoreError(f"no token has a stratum with a total variation of {eps:g} or less")
    documents = store.documents[counted]
    group = np.full(len(documents), "all") if by is None else documents[by].to_numpy()
    means = sums[counted] / counts[counted][:, None, None, None]
    measures = [f"{measure}{end}" for measure in PART_MEASURES for end in ENDS]
    taken = ("documents", "tokens", "kind", "quartile", *measures)
    name = "all" if by is None else label_names([by], taken)[by]
    tokens = pd.Series(counts[counted]).groupby(group).sum().to_dict()
    index = pd.MultiIndex.from_arrays([group, documents.index], names=[name, "document"])
    places = list(product(KIND_NAMES, range(1, QUARTILES + 1)))
    flat = means.reshape(len(means), -1)
    names = [f"{place}{measure}" for measure in PART_MEASURES for place in range(len(places))]
    table = unit_means(pd.DataFrame(flat, index, names), tokens, level)
    parts = []
    for place, (kind, quartile) in enumerate(places):
        columns = {
            f"{place}{measure}{end}": f"{measure}{end}" for measure in PART_MEASURES for end in ENDS
        }
        part = table[["documents", "tokens", *columns]].rename(columns=columns)
        parts.append(part.assign(kind=kind, quartile=quartile).reset_index())
    # Stable, so kinds and quartiles stay in the order of the graph within each label value.
    joined = pd.concat(parts)
    if by is None:
        return joined.drop(columns=name).set_index(["kind", "quartile"])
    return joined.sort_values(name, kind="stable").set_index([name, "kind", "quartile"])


def _spread_parts(store: Store, max_tokens: int | None) -> list[int]:
    """Finished parts: all, or evenly spread ones that hold about `max_tokens` tokens."""
    done = store.whole_parts()
    tokens = store.part_tokens(done)
    if max_tokens is None or tokens <= max_tokens:
        return done
    wanted = max(1, round(len(done) * max_tokens / tokens))
    return [done[i] for i in np.unique(np.linspace(0, len(done) - 1, wanted).astype(int))]


def _part_sums(
    store: Store, parts: Sequence[int], stratum: int | None, eps: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum traces by kind and depth over each document's tokens, and count these tokens.

    Reads part by part, because the topology is the largest array of a store.

    Returns:
        float64 [M, 4 measures, 4 kinds, 4 quartiles]: share, size, edges, edges per token of
        context; int64 [M].
    """
    documents = len(store.documents)
    sums = np.zeros((documents, len(PART_MEASURES), len(KIND_NAMES), QUARTILES))
    counts = np.zeros(documents, np.int64)
    for part in parts:
        windows = store.windows(part)
        window, column = np.nonzero(store.is_token(windows))
        tv = store.tv[windows][window, column]
        met = np.argmax(tv <= eps, axis=1) if stratum is None else np.full(len(tv), stratum)
        keep = np.isfinite(tv).all(1) & ((tv <= eps).any(1) | (stratum is not None))
        window, column, met = window[keep], column[keep], met[keep]
        edges = store.topology[windows][window, column, met].astype(np.float64)
        full = store.full_edge_count[windows][window, column]
        total = np.maximum(edges.sum((1, 2)), 1)
        owner = store.owners[windows][window]  # windows are stored document by document
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        for measure, divisor in enumerate((total, full, np.ones_like(total), column + 1)):
            document_sums = np.add.reduceat(edges / divisor[:, None, None], starts, axis=0)
            sums[owner[starts], measure] += document_sums
        counts += np.bincount(owner, minlength=documents)
    return sums, counts
