"""Everything that the papers' reference computed on five small models, computed by densitrace.

The arrays are in tests/goldens; its README says what each holds and to which tolerance.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from golden import FAMILIES, LENGTHS, RULES, golden, tracer_of
from numpy.typing import NDArray

from densitrace import Rule, Threshold, Trace
from densitrace.tracer.batch import batch_of_lists
from densitrace.tracer.collect import edge_rows
from densitrace.tracer.evaluate import logits
from densitrace.tracer.nodes import ImportanceName
from densitrace.tracer.search import best_first
from densitrace.tracer.sizes import output_trace
from densitrace.tracer.tracing import Settings, Tracing

KINDS = ("attn", "res_attn", "res_mlp", "mlp")
WEIGHT_TOLERANCE = {"norm_l1": 1e-6, "norm_l2": 1e-6, "cosine": 1e-6, "proximity": 5e-5}
ERROR_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """One importance and rule on one sequence, ours beside the golden arrays."""

    family: str
    length: str
    importance: ImportanceName
    rule: str

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        return golden(self.family, self.length)

    def selection(self, name: str) -> NDArray[Any]:
        """Golden array of the strata; its last entry is the full graph."""
        return self.arrays[f"s.{self.importance}.{self.rule}.{name}"]

    def error(self, name: str) -> NDArray[Any]:
        return self.arrays[f"e.{self.importance}.{self.rule}.{name}"]

    @property
    def strata(self) -> int:
        """Strata that are traces by our definition: the full graph is one only as a threshold.

        The reference's last entry is the whole graph by fiat. Ours at threshold 0, nucleus mass 1
        or size 1 holds it too, except for edges of weight 0.
        """
        return len(self.selection("tau"))

    @property
    def comparable(self) -> int:
        """Strata whose errors compare: a sum of cosines reaches 1 long before the whole graph."""
        return self.strata - (self.importance == "cosine" and self.rule == "nucleus")

    @property
    def asked(self) -> Rule:
        return RULES[self.rule](self.selection("tau"))

    def trace(self) -> Trace:
        return trace_of(self)


@cache
def trace_of(case: Case) -> Trace:
    trace = tracer_of(case.family).trace(
        case.arrays["ids"].tolist(),
        importance=case.importance,
        select=case.asked,
        scope="output",
        controls=("inverse",),
        count="causal",
        next_token=[int(case.arrays["next_id"])],
    )
    assert isinstance(trace, Trace)
    return trace


CASES = [
    Case(family, length, importance, rule)
    for family in FAMILIES
    for length in LENGTHS
    for importance in ("norm_l1", "norm_l2", "cosine")
    for rule in RULES
    if f"s.{importance}.{rule}.tau" in golden(family, length)
]
every_case = pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.family}-{case.length}-{case.importance}-{case.rule}"
)


def test_all_goldens_are_read() -> None:
    """29 combinations of importance and rule: cosine/size is absent for gemma3 at T16."""
    assert len(CASES) == len(FAMILIES) * len(LENGTHS) * 9 - 1


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits(family: str, length: str) -> None:
    arrays = golden(family, length)
    verification = tracer_of(family).verify()
    assert verification.ok
    with torch.inference_mode():
        ids = torch.from_numpy(arrays["ids"]).long()[None]
        ours = tracer_of(family)._decoder.model(input_ids=ids).logits[0].numpy()
    expected = arrays["logits_full_all"]
    np.testing.assert_allclose(ours[-len(expected) :], expected, atol=ERROR_TOLERANCE)
    np.testing.assert_allclose(ours[-1], arrays["logits_full"], atol=ERROR_TOLERANCE)


@pytest.mark.parametrize("importance", WEIGHT_TOLERANCE)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_weights(family: str, length: str, importance: ImportanceName) -> None:
    arrays = golden(family, length)
    trace = tracer_of(family).trace(
        arrays["ids"].tolist(), importance=importance, select=Threshold([0.1])
    )
    assert isinstance(trace, Trace)
    for layer in range(4):
        ours = trace.weights(layer)
        for kind in KINDS:
            expected = arrays[f"w.{importance}.{kind}"][layer]
            # Outside a window the reference has edges of weight 0 (cosine: NaN), we have none.
            outside = np.isnan(ours[kind]) & ~np.isnan(expected)
            assert not expected[outside].any()
            assert not outside.any() or (family == "gemma3" and kind == "attn")
            np.testing.assert_allclose(
                np.where(outside, 0, ours[kind]), expected, atol=WEIGHT_TOLERANCE[importance]
            )


def labels(case: Case) -> dict[str, NDArray[np.int64]]:
    """Index of the smallest stratum that holds each edge; the number of strata where none does."""
    found = {
        kind: np.full(case.selection(f"lab_{kind}").shape, case.strata, dtype=np.int64)
        for kind in KINDS
    }
    for edge in edge_rows(case.trace().edges(stratum=-1)):
        index = (edge.layer, edge.head, edge.target, edge.source)
        found[edge.kind][index if edge.kind == "attn" else index[::2]] = edge.stratum
    return found


@every_case
def test_labels_and_sizes(case: Case) -> None:
    ours = labels(case)
    full = case.strata - 1
    differing = 0
    for kind in KINDS:
        expected = case.selection(f"lab_{kind}").astype(np.int64)
        exists = expected >= 0
        # In the reference's last stratum is every edge, whatever its weight.
        same = (ours[kind] == expected) | ((ours[kind] >= full) & (expected >= full))
        differing += int((exists & ~same).sum())
    assert differing == 0
    sizes = case.trace().edge_count[0]
    np.testing.assert_array_equal(sizes[:full], case.selection("raw_size")[:full])
    assert case.trace().full_edge_count[0] == case.selection("raw_size")[full]


@every_case
def test_errors(case: Case) -> None:
    strata = case.comparable
    errors = case.trace().errors
    for ours, theirs in (("", "only"), ("_inverse", "inv")):
        for measure, name in (("tv", "tv"), ("loss", "loss"), ("entropy", "ent")):
            np.testing.assert_allclose(
                errors[measure + ours][0, :strata],
                case.error(f"{name}_{theirs}")[:strata],
                atol=ERROR_TOLERANCE,
                err_msg=f"{measure}{ours}",
            )
        nucleus = errors["nucleus" + ours][0, :strata]
        np.testing.assert_array_equal(nucleus, case.error(f"nu_{theirs}")[:strata])


def lane_logits(case: Case) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits of the output: clean [V], and of the lanes [2, K, V], trace alone and inverse."""
    decoder = tracer_of(case.family)._decoder
    settings = Settings(case.importance, scope="output", controls=("inverse",), count="causal")
    tracing = Tracing(decoder, settings)
    row = batch_of_lists([case.arrays["ids"].tolist()])
    weigh, rule = tracing._as_cuts(row, case.asked)
    levels = tracing.loop(row, rule, weigh, masked_lanes=False).run().levels
    gates = output_trace(levels, len(rule), decoder.geometry).gates
    hidden = tracing.loop(row, rule, weigh, gates=gates).run().hidden[:, 0, -1]
    found = logits(decoder, hidden).numpy(force=True)
    return found[0], found[1:].reshape(2, len(rule), -1)


def nucleus_size(clean: NDArray[np.float32], percent: int) -> int:
    """Tokens of the clean model's ranked nucleus, none at 0 percent."""
    p = np.exp(clean.astype(np.float64) - clean.max())
    mass = np.sort(p / p.sum())[::-1].cumsum()
    return int((mass < percent / 100).sum()) + 1 if percent else 0


@every_case
def test_logits_of_the_lanes(case: Case) -> None:
    clean, (only, inverse) = lane_logits(case)
    strata = case.comparable

    def assert_close(ours: NDArray[np.float32], name: str) -> None:
        theirs = case.error(name)[:strata]
        np.testing.assert_allclose(ours[:strata], theirs, atol=ERROR_TOLERANCE, rtol=0)

    assert_close(only, "logits_only")
    if case.importance == "norm_l1":  # the only one whose inverse logits there are
        assert_close(inverse, "logits_inv")
    for name in ("only", "inv"):
        ours = [nucleus_size(clean, int(percent)) for percent in case.error(f"nu_{name}")]
        np.testing.assert_array_equal(ours, case.error(f"nusize_{name}"))


@every_case
def test_what_a_trace_holds(case: Case) -> None:
    """The full graph by kind, relative sizes, and whether a trace reaches a token embedding."""
    trace = case.trace()
    np.testing.assert_allclose(
        trace.size[0, :-1], case.selection("rel_size")[:-1], rtol=1e-6, atol=1e-7
    )
    exists = sum(int(case.arrays[f"exists.{kind}"].sum()) for kind in KINDS)
    assert trace.full_edge_count[0] == exists
    table = trace.edges(stratum=-1)
    first = table[(table.layer == 0) & table.kind.isin(["attn", "res_attn"])]
    connected = [bool((first.stratum <= stratum).any()) for stratum in range(case.strata)]
    np.testing.assert_array_equal(connected, case.selection("connected"))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_order_of_the_search(family: str, length: str) -> None:
    """The s-Trace takes the same edges in the same order, keys of the reference included.

    Its keys number the edges between two nodes: the residual if there is one, then MLP or heads.
    """
    arrays = golden(family, length)
    expected = arrays["s.norm_l1.size.pop_order"]
    trace = tracer_of(family).trace(arrays["ids"].tolist(), select=Threshold([0.1]))
    assert isinstance(trace, Trace)
    tokens = len(arrays["ids"])
    order = []
    weights = trace.graph.weights()
    for kind, layer, head, source, target in best_first(weights, trace.geometry, tokens - 1):
        below = 2 * layer + (kind in ("mlp", "res_mlp"))
        key = head + (source == target) if kind == "attn" else int(kind == "mlp")
        order.append((below * tokens + source, (below + 1) * tokens + target, key))
    np.testing.assert_array_equal(order[: len(expected)], expected)
