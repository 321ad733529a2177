"""Trace the windows of a part, in batches of similar length, and fill the rows of its arrays."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import layout
from .engine import Observer
from .select import Rule
from .sizes import by_quartile
from .store import Store
from .trace import Trace
from .tracer import Tracer
from .tracing import Settings
from .windows import Plan


def traces(
    tracer: Tracer,
    plan: Plan,
    groups: Sequence[Sequence[int]],
    rule: Rule,
    settings: Settings,
    batch_tokens: int,
    observers: Sequence[Observer] = (),
) -> Iterator[list[Trace]]:
    """Yield the traces of each group of windows.

    Args:
        tracer: the model.
        plan: the windows.
        groups: windows that pass the model together.
        rule: the selection rule, with its thresholds chosen.
        settings: of the scan.
        batch_tokens: tokens of a group that are inside a block together, at most; divided as
            `windows.batches` does.
        observers: one per group, called with the group's graph; or none.
    """
    if settings.scope == "all":
        batches = (
            ([plan.ids(window) for window in group], [plan.next_token(window) for window in group])
            for group in groups
        )
        return tracer.trace_batches(batches, rule, settings, batch_tokens, observers, packed=True)
    return _groups_one_by_one(tracer, plan, groups, rule, settings, observers)


def _groups_one_by_one(
    tracer: Tracer,
    plan: Plan,
    groups: Sequence[Sequence[int]],
    rule: Rule,
    settings: Settings,
    observers: Sequence[Observer],
) -> Iterator[list[Trace]]:
    options: dict[str, Any] = {**vars(settings), "select": rule}
    for number, group in enumerate(groups):
        for observer in observers[number : number + 1]:  # a separate pass, for all outputs at once
            tracer.observe([plan.ids(window) for window in group], rule, settings, observer)
        yield [_one_by_one(tracer, plan, window, options) for window in group]


def _one_by_one(tracer: Tracer, plan: Plan, window: int, options: dict[str, Any]) -> Trace:
    """Trace every output position of a window separately and join them; depths by quartile."""
    ids, following = plan.ids(window), [plan.next_token(window)]
    rows = []
    for output in range(len(ids)):
        row = tracer.trace([ids], next_token=following, output=output, **options)
        assert isinstance(row, list)  # as `[ids]` is a batch
        rows += row
    joined = join_rows(rows)
    topology = by_quartile(torch.from_numpy(joined.topology)).numpy()
    return replace(joined, topology=topology)


def join_rows(rows: Sequence[Trace]) -> Trace:
    """Join the traces of different output positions of one sequence into one trace."""
    first = rows[0]
    arrays = {
        name: np.concatenate([getattr(row, name) for row in rows])
        for name in (
            "positions",
            "size",
            "edge_count",
            "full_edge_count",
            "surprisal",
            "model_entropy",
            "topology",
        )
    }
    errors = {name: np.concatenate([row.errors[name] for row in rows]) for name in first.errors}
    return Trace(
        tokens=first.tokens,
        rule=first.rule,
        errors=errors,
        geometry=first.geometry,
        graph=first.graph,
        **arrays,
    )


# ---- a part's arrays -----------------------------------------------------------------------------


def empty_part(store: Store, run: slice) -> dict[str, NDArray[Any]]:
    """Allocate every array of a part, filled with its fill value (the value of padding)."""
    arrays = {}
    for spec in layout.window_arrays(store.controls):
        array = store.array(spec.name)
        shape = (run.stop - run.start, *array.shape[1:])
        arrays[spec.name] = np.full(shape, spec.fill, dtype=array.dtype)
    return arrays


def fill(arrays: dict[str, NDArray[Any]], row: int, plan: Plan, trace: Trace) -> None:
    """Write a window and its trace into row `row` of a part's arrays."""
    start, length = int(plan.window_start[row]), int(plan.length[row])
    tokens = plan.token_range(row)
    arrays["document"][row] = plan.document[row]
    arrays["window_start"][row] = start
    arrays["position"][row, :length] = np.arange(start, start + length)
    arrays["token"][row, :length] = plan.tokens[tokens]
    arrays["char_start"][row, :length] = plan.spans[tokens, 0]
    arrays["char_end"][row, :length] = plan.spans[tokens, 1]
    for name in ("surprisal", "model_entropy", "full_edge_count", "size"):
        arrays[name][row, :length] = getattr(trace, name)
    for name, values in trace.errors.items():
        arrays[name][row, :length] = values
    arrays["topology"][row, :length] = trace.topology
