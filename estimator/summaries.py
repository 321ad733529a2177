"""Summaries with intervals over documents: densities by frequency, traces by their parts."""

from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import InputError, StoreError
from ..tracer.graph import KIND_NAMES
from ..tracer.layout import QUARTILES
from ..tracer.store import Store
from .density import AUC, density_name, group_means, scored, token_frame
from .features import factor_frame, frequency_bands

MEASURES = ("edges", "edges_per_token")  # beside relative sizes: see METHOD §6


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
    table = group_means(tokens, "per_million", (density_name(eps), AUC, *MEASURES), level)
    return table.reindex([band for band in bands.cat.categories if band in table.index])


def trace_parts(
    store: Store,
    stratum: int | None = None,
    eps: float = 0.1,
    by: str | None = None,
    level: float = 0.95,
) -> pd.DataFrame:
    """What traces consist of: edges by kind and depth, relative and absolute.

    Args:
        store: a scanned store.
        stratum: column of the rule whose traces are taken apart; by default each token's sparsest
            with a total variation of at most `eps`. Tokens for which no stratum has, are left out.
        eps: the tolerated total variation.
        by: a label whose values are told apart.
        level: the nominal coverage of the intervals.

    Returns:
        One row for each label value (with `by`), `kind` of edge and depth `quartile` of blocks,
        1 the lowest (block l of L is in quartile 1 + 4 l // L): `documents`, `tokens`, and with
        `_low` and `_high` each: `share` (of the trace's edges), `size` (of the full graph's
        edges), `edges`, `edges_per_token` (of context). Means of document means.

    Raises:
        InputError: no such stratum or label.
        StoreError: no token has a stratum that meets `eps`.

    Example:
        >>> trace_parts(open_store("traces.zarr"))["share"].unstack()  # doctest: +SKIP
    """
    strata = len(store.strata)
    if stratum is not None and not -strata <= stratum < strata:
        raise InputError(f"stratum={stratum}: the store has {strata}")
    if by is not None and by not in store.labels:
        raise InputError(f"by={by!r}: the labels are {', '.join(store.labels) or 'none'}")
    tokens, parts = _parts(store, stratum, eps)
    if tokens.empty:
        raise StoreError(f"no token has a stratum with a total variation of {eps:g} or less")
    keys = [] if by is None else [by]
    tokens[by or "all"] = "all" if by is None else tokens["document"].map(store.documents[by])
    measures = ("share", "size", *MEASURES)
    tables = []
    for (number, kind), quartile in product(enumerate(KIND_NAMES), range(QUARTILES)):
        edges = parts[:, number, quartile]
        rows = tokens.assign(
            share=edges / np.maximum(parts.sum((1, 2)), 1),
            size=edges / tokens["full_edges"],
            edges=edges,
            edges_per_token=edges / tokens["context"],
        )
        table = group_means(rows, by or "all", measures, level).reset_index()
        tables.append(table.assign(kind=kind, quartile=quartile + 1))
    # Stable, so kinds and quartiles stay in the order of the graph within each label value.
    found = pd.concat(tables).sort_values(keys, kind="stable") if keys else pd.concat(tables)
    return found.set_index([*keys, "kind", "quartile"]).drop(columns="all", errors="ignore")


def _parts(store: Store, stratum: int | None, eps: float) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Token rows with a trace to take apart, and its edges [n, 4 kinds, 4 quartiles].

    Part by part: of all arrays of a store the topology is the largest.
    """
    frames, found = [], []
    done = scored(store)
    for part in store.done_parts():
        windows = store.windows(part)
        window, column = np.nonzero(done[windows])
        tv = store.tv[windows][window, column]
        met = np.argmax(tv <= eps, axis=1) if stratum is None else np.full(len(tv), stratum)
        keep = np.isfinite(tv).all(1) & ((tv <= eps).any(1) | (stratum is not None))
        window, column, met = window[keep], column[keep], met[keep]
        frames.append(
            pd.DataFrame(
                {
                    "document": store.document[windows][window],
                    "context": column + 1,
                    "full_edges": store.full_edge_count[windows][window, column],
                }
            )
        )
        found.append(store.topology[windows][window, column, met].astype(np.int64))
    return pd.concat(frames, ignore_index=True), np.concatenate(found)
