"""The lane engine on interpreted Triton kernels, for ops that have one, reproduces the goldens.

tests/tracer/test_parity.py checks all goldens on the compiled CPU ops.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from golden import CUT_RULES, assert_golden, golden, golden_trace, tracer_of

from densitrace import Trace, Tracer
from densitrace.kernels import AttentionEdges, dispatch, triton

FAMILY, LENGTH = "mistral", "T08"
ARRAYS = golden(FAMILY, LENGTH)
FULL = -1  # threshold 0: the reference defines its last stratum as the whole graph

Served = dict[str, str]  # op -> the backend whose function ran


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Prefer Triton, then plain torch; records which of them served each op."""
    backends: Served = {}
    pick = dispatch.pick

    def noted(
        op: Callable[..., Any],
        device: torch.device,
        backend: str,
        edges: AttentionEdges | None = None,
    ) -> Callable[..., Any]:
        function = pick(op, device, backend, edges)
        if backend == "auto":  # the comparison with plain torch requests it by name
            backends[op.__name__] = "triton" if ".triton." in function.__module__ else "reference"
        return function

    monkeypatch.setitem(dispatch.PREFERENCE, "cpu", ("triton", "reference"))
    monkeypatch.setattr(dispatch, "pick", noted)
    yield backends
    # Triton served every op that it has, among them the sweep over attention.
    assert backends == {op: "triton" if op in triton.__all__ else "reference" for op in backends}
    assert backends["attention_stats"] == "triton"


def traced(backend: str = "auto", rule: str = "threshold", **options: Any) -> Trace:
    tracer = Tracer(tracer_of(FAMILY)._decoder.model, backend=backend)
    return golden_trace(tracer, ARRAYS, rule, **options)


def test_weights(served: Served) -> None:
    weights = traced(scope="all").graph.weights()  # of all blocks at once
    assert weights
    for kind, ours in weights.items():
        np.testing.assert_allclose(ours, ARRAYS[f"w.norm_l1.{kind}"], atol=1e-6, err_msg=kind)


@pytest.mark.parametrize("rule", CUT_RULES)
def test_sizes_and_errors_live(rule: str, served: Served) -> None:
    """One output's trace, as in the reference, and its inverse."""
    trace = traced(rule=rule, scope="output", controls=("inverse",))
    assert_golden(trace, ARRAYS, rule)
    assert {"source_norms", "attention_stats", "edge_levels", "lane_attention"} <= served.keys()
    assert ("nucleus_cuts" in served) == (rule == "nucleus")


@pytest.mark.parametrize("attention", ["live", "frozen"])
def test_every_output(attention: str, served: Served) -> None:
    """All outputs in one pass: sizes of the last are golden, errors equal those of plain torch.

    The reference has no frozen attention, and masks by one output's trace.
    """
    options: dict[str, Any] = {"attention": attention, "controls": ("inverse", "random")}
    trace, expected = traced(**options), traced("reference", **options)
    np.testing.assert_array_equal(
        trace.edge_count[-1, :FULL], ARRAYS["s.norm_l1.threshold.raw_size"][:FULL]
    )
    np.testing.assert_array_equal(trace.topology, expected.topology)
    for name, values in expected.errors.items():
        np.testing.assert_allclose(trace.errors[name], values, atol=2e-5, rtol=2e-5, err_msg=name)
    assert {"lane_attention", "bottleneck", "trace_sizes", "output_errors"} <= served.keys()
