"""The lane loop as it runs on a device, run on the CPU: the same results, and no host waits."""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from host_waits import HostWaits, waits_in
from tiny_models import VARIANTS, tiny_model
from torch import Tensor

from densitrace import Threshold, Trace, Tracer
from densitrace.tracer import engine, tracing
from densitrace.tracer.engine import LaneLoop
from densitrace.tracer.evaluate import Evaluation

ROWS = [[5, 9, 33, 2, 60, 17, 8, 41, 12, 50], [7, 7, 1, 30]]
RULE = Threshold([0.6, 0.4, 0.1, 0.01])
ATTENTION = ("live", "frozen")


@pytest.fixture
def as_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, the engine takes the CPU for a device that the host had to wait for."""

    def force() -> None:
        monkeypatch.setattr(LaneLoop, "host_reads", False)

    return force


READS: dict[str, Callable[[Tensor], object]] = {
    "item": Tensor.item,
    "int": int,
    "bool": bool,
    "equal": lambda x: torch.equal(x, x),
    "where": torch.where,
    "nonzero": Tensor.nonzero,
    "masked": lambda x: x[None][x[None] > 0],
    "put": lambda x: x[None].clone().index_put_((x[None] > 0,), x),
    "constant": lambda x: torch.tensor(1.0),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("read", list(READS))
def test_what_makes_the_host_wait_is_seen(read: str, inference: bool) -> None:
    with torch.inference_mode(inference):
        number = torch.ones(())
        with HostWaits() as watch:
            READS[read](number)
    assert watch.found.total() > 0
    with torch.inference_mode(inference), HostWaits() as watch:
        torch.where(number > 0, number, 0).to(torch.float64).add_(1)
    assert not watch.found


def traced(tracer: Tracer, **options: Any) -> list[Trace]:
    traces = tracer.trace(ROWS, select=RULE, **options)
    assert isinstance(traces, list)
    return traces


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", [*VARIANTS, "gemma4_shared"])
def test_no_block_waits(
    family: str, attention: str, as_device: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = Tracer(tiny_model(family), backend="reference")
    options: dict[str, Any] = {"attention": attention, "controls": ("inverse", "random")}
    with waits_in(LaneLoop, "_run_block", monkeypatch) as found:
        traced(tracer, **options)
    assert found["nonzero"] > 0  # on a CPU rows are gathered
    as_device()
    with waits_in(LaneLoop, "_run_block", monkeypatch) as found:
        traced(tracer, **options)
    assert not found


@pytest.mark.parametrize("family", VARIANTS)
def test_nothing_waits_until_results_leave(
    family: str, as_device: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last block: sizes, and the choice of outputs. The windows are the host's own."""
    tracer = Tracer(tiny_model(family), backend="reference")
    as_device()
    monkeypatch.setattr(tracing, "evaluate", lambda *_: Evaluation({}, *torch.zeros(2, 14)))
    with (
        waits_in(tracing.Tracing, "_measure", monkeypatch) as measuring,
        waits_in(tracing, "_outcome", monkeypatch) as ending,
        waits_in(tracing, "all_traces", monkeypatch) as sizing,
    ):
        traced(tracer)
    assert ending == {"lift_fresh": 1}  # the windows, a tensor on the host
    assert not measuring
    assert not sizing


@pytest.mark.parametrize("scope", ["all", "output"])
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", [*VARIANTS, "gemma4_shared"])
def test_same_results(
    family: str,
    attention: str,
    scope: str,
    as_device: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MLP branches of all rows, of which some are dropped; a bounded number at a time."""
    tracer = Tracer(tiny_model(family))
    options: dict[str, Any] = {
        "attention": attention, "scope": scope, "controls": ("inverse", "random"),
    }  # fmt: skip
    gathered = traced(tracer, **options)
    as_device()
    monkeypatch.setattr(engine, "DEVICE_MLP_ROWS", 7)
    for ours, expected in zip(traced(tracer, **options), gathered, strict=True):
        np.testing.assert_array_equal(ours.topology, expected.topology)
        for name, values in expected.errors.items():
            np.testing.assert_allclose(
                ours.errors[name], values, atol=2e-5, rtol=2e-5, err_msg=name
            )


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_infinite_branches_are_dropped(family: str, as_device: Callable[[], None]) -> None:
    """What a dropped row's MLP gives reaches nothing, however large it is."""
    tracer = Tracer(tiny_model(family))
    block = tracer._decoder.blocks[0]
    loop = LaneLoop.__new__(LaneLoop)
    as_device()
    with torch.inference_mode():
        rows = torch.full((3, 32), torch.inf)
        branch = loop._kept_mlp(block, rows, torch.tensor([False, True, False]))
    assert not branch[[0, 2]].any()
    assert branch[1].isnan().all()


def test_a_pass_runs_while_the_host_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host does nothing between measuring a pass, which it waits for, and starting the next."""
    tracer = Tracer(tiny_model("llama"))
    log: list[str] = []
    passes: list[weakref.ref[Any]] = []

    def noted(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def note(*arguments: Any, **named: Any) -> Any:
            if name == "start":
                assert not any(started() for started in passes)  # its states would take memory
            log.append(name)
            result = function(*arguments, **named)
            if name == "start":
                passes.append(weakref.ref(result))
            return result

        monkeypatch.setattr(owner, name, note)

    for owner, name in (
        (tracing.Tracing, "start"), (tracing.Tracing, "measured"),
        (Tracer, "_batch"), (Tracer, "_traces"),
    ):  # fmt: skip
        noted(owner, name)
    batches = [(ROWS, [1, 2]), (ROWS[:1], [3]), (ROWS[1:], [4])]
    found = list(tracer.trace_batches(iter(batches), RULE, tracing.Settings()))
    assert [len(traces) for traces in found] == [2, 1, 1]
    assert [trace.tokens.tolist() for traces in found for trace in traces] == [*ROWS, *ROWS]
    step = ["_batch", "measured", "start", "_traces"]
    assert log == ["_batch", "start", *step, *step, "measured", "_traces"]


@pytest.mark.parametrize("kept", [slice(2, 5), torch.tensor([0, 3, 4])])
def test_rows_are_put_back_where_they_were_read(kept: slice | torch.Tensor) -> None:
    """A slice in place, others gathered: nothing else is touched."""
    rows = torch.arange(12.0).view(6, 2)
    expected = rows.clone()
    expected[kept] *= 3
    engine._put(rows, kept, rows[kept].mul_(3))
    assert torch.equal(rows, expected)
