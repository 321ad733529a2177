"""Passes replayed as CUDA graphs, with a graph that runs on a CPU in place of CUDA's."""

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor

from densitrace import InputError, Threshold, Trace, Tracer
from densitrace.kernels.constants import on_device
from densitrace.tracer import cuda_graphs
from densitrace.tracer.cuda_graphs import GraphCache, captured
from densitrace.tracer.models.block import Block
from densitrace.tracer.tracing import Settings

Outputs = dict[str, Tensor]
Run = Callable[[], Outputs]
RULE = Threshold([0.4, 0.1, 0.01])


class Graphs:
    """Stands in for CUDA's: replaying computes anew, from the same inputs into the same outputs."""

    def __init__(self) -> None:
        self.captured, self.replayed = 0, 0

    def __call__(self, run: Run, device: torch.device) -> Run:
        self.captured += 1
        with torch.inference_mode():
            outputs = {name: tensor.clone() for name, tensor in run().items()}

        def again() -> Outputs:
            self.replayed += 1
            with torch.inference_mode():
                for name, tensor in run().items():
                    outputs[name].copy_(tensor)
            return outputs

        return again


@pytest.fixture
def graphs() -> Graphs:
    return Graphs()


def doubled(inputs: Any) -> Outputs:
    return {"y": 2 * inputs["x"]}


def test_the_second_pass_of_a_shape_is_captured(graphs: Graphs) -> None:
    cache = GraphCache(graphs)
    found = [cache("key", doubled, {"x": torch.full((2,), float(i))})["y"] for i in range(4)]
    # Earlier results stay: they may still be on their way to the host.
    assert [tensor.tolist() for tensor in found] == [[2.0 * i] * 2 for i in range(4)]
    assert (graphs.captured, graphs.replayed) == (1, 3)


def test_what_cannot_be_captured_runs_as_it_is() -> None:
    tried = []

    def refuse(run: Run, device: torch.device) -> Run:
        tried.append(run)
        raise RuntimeError("operation not permitted when stream is capturing")

    cache = GraphCache(refuse)
    for value in range(4):
        assert cache("key", doubled, {"x": torch.tensor(value)})["y"] == 2 * value
    assert len(tried) == 1


def test_after_a_failed_capture_no_other_is_tried(graphs: Graphs) -> None:
    """Each would keep the memory that it took; graphs that there are stay, a new model may try."""

    def capture(run: Run, device: torch.device) -> Run:
        if run()["y"].numel() == 2:
            raise RuntimeError("operation not permitted when stream is capturing")
        return graphs(run, device)

    cache = GraphCache(capture)
    for size in (1, 1, 2, 2, 3, 3, 3, 1):
        assert cache(size, doubled, {"x": torch.ones(size)})["y"].tolist() == [2.0] * size
    assert (graphs.captured, graphs.replayed) == (1, 2)
    cache.only_for("another")
    for _ in range(2):
        cache(3, doubled, {"x": torch.ones(3)})
    assert (graphs.captured, graphs.replayed) == (2, 3)


def test_the_graph_used_longest_ago_makes_room(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is stale; until then passes of other shapes run as they are."""
    monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", 2)
    monkeypatch.setattr(cuda_graphs, "STALE_PASSES", 3)
    cache = GraphCache(graphs)
    x = {"x": torch.ones(1)}

    def captures(keys: str) -> int:
        before = graphs.captured
        for key in keys:
            assert cache(key, doubled, x)["y"] == 2
        return graphs.captured - before

    assert captures("aabb") == 2
    assert captures("cabcabcabc") == 0  # shapes take turns: no graph is replaced
    assert captures("c") == 0  # of the last three passes the first replayed a
    assert captures("bbbbc") == 1  # c in place of a
    assert captures("bca") == 0
    assert captures("bbbba") == 1  # a in place of c: b was captured before, but is used


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox", "gemma4_shared"])
def test_replayed_traces_are_the_traces(
    family: str, packed: bool, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = Tracer(tiny_model(family))
    batches = [([[5, 9, 33, 2, 60, 17], [7, 7, 1, 30]], [3, -1]) for _ in range(2)]
    batches += [([[8, 1, 2, 44, 6, 9], [1, 2, 3, 4]], [-1, 5]), ([[1, 2]], [3])]
    settings = Settings(controls=("inverse",))

    def traced() -> list[list[Trace]]:
        return list(tracer.trace_batches(batches, RULE, settings, packed=packed))

    plain = traced()
    monkeypatch.setattr(tracer, "_graphs", GraphCache(graphs))
    replayed = traced()
    assert (graphs.captured, graphs.replayed) == (1, 2)
    for ours, expected in zip(chain(*replayed), chain(*plain), strict=True):
        np.testing.assert_array_equal(ours.topology, expected.topology)
        np.testing.assert_array_equal(ours.full_edge_count, expected.full_edge_count)
        for name, values in expected.errors.items():
            np.testing.assert_array_equal(ours.errors[name], values, err_msg=name)


def test_rows_cut_elsewhere_are_another_pass(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of a batch end at the lengths of their rows, whatever the shape of the batch."""
    tracer = Tracer(tiny_model("llama"))
    long, short = [5, 9, 33, 2, 60, 17, 8], [7, 7, 1, 30, 3]
    batches = [([long, short], [-1, -1])] * 2 + [([short, long], [-1, -1])]

    def traced() -> list[Trace]:
        return list(chain(*tracer.trace_batches(batches, RULE, Settings(), tokens_at_once=7)))

    plain = traced()
    monkeypatch.setattr(tracer, "_graphs", GraphCache(graphs))
    for ours, expected in zip(traced(), plain, strict=True):
        np.testing.assert_array_equal(ours.edge_count, expected.edge_count)
        np.testing.assert_array_equal(ours.errors["tv"], expected.errors["tv"])
    assert graphs.captured == 1


def test_other_rules_and_settings_are_other_passes(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = Tracer(tiny_model("llama"))
    batches = [([[5, 9, 33, 2, 60]], [-1])] * 2
    asked = [
        (RULE, Settings()),
        (Threshold([0.3, 0.2, 0.1]), Settings()),
        (RULE, Settings(importance="norm_l2")),
        (RULE, Settings(attention="frozen")),
    ]

    def traced() -> list[Trace]:
        return list(chain(*(chain(*tracer.trace_batches(batches, *each)) for each in asked)))

    plain = traced()
    monkeypatch.setattr(tracer, "_graphs", GraphCache(graphs))
    for ours, expected in zip(traced(), plain, strict=True):
        np.testing.assert_array_equal(ours.edge_count, expected.edge_count)
        np.testing.assert_array_equal(ours.errors["tv"], expected.errors["tv"])
    assert (graphs.captured, graphs.replayed) == (4, 4)


def test_a_graph_keeps_the_constants_that_it_reads(graphs: Graphs) -> None:
    """A rule's cuts, say, which the cache forgets after many other rules."""
    values = (0.25, 0.125)

    def scaled(inputs: Any) -> Outputs:
        cuts = on_device(values, torch.float32, inputs["x"].device)
        read.append(weakref.ref(cuts))
        return {"y": cuts * inputs["x"]}

    read: list[weakref.ref[Tensor]] = []
    cache = GraphCache(graphs)
    for _ in range(2):
        cache("key", scaled, {"x": torch.ones(2)})
    for number in range(100):
        on_device((float(number),), torch.float32, torch.device("cpu"))
    gc.collect()
    assert read[1]() is not None


def test_passes_that_draw_at_random_run_as_they_are(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host waits for the numbers of edges to draw from."""
    tracer = Tracer(tiny_model("llama"))
    monkeypatch.setattr(tracer, "_graphs", GraphCache(graphs))
    batches = [([[5, 9, 33, 2]], [3])] * 3
    settings = Settings(controls=("random",))
    assert len(list(tracer.trace_batches(batches, RULE, settings))) == 3
    assert graphs.captured == 0


def test_a_model_on_several_devices_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = iter(["cuda:0", "cuda:1"] * 9)
    monkeypatch.setattr(Block, "device", property(lambda _: torch.device(next(devices))))
    with pytest.raises(InputError, match="spread over several"):
        Tracer(tiny_model("llama"), cuda_graphs=True)


def test_a_capture_that_fails_gives_the_stream_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ending it fails too, and before torch would have gone back to the stream of before."""
    current = ["the model's"]

    class Capturing:
        def __init__(self, graph: object, stream: str, capture_error_mode: str) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            current[0] = self.stream

        def __exit__(self, *_: object) -> None:
            raise RuntimeError("capture invalidated")

    def waits() -> Outputs:
        raise RuntimeError("operation not permitted when stream is capturing")

    for name, value in {
        "CUDAGraph": object,
        "device": lambda device: nullcontext(),
        "Stream": lambda: "a side stream",
        "current_stream": lambda: current[0],
        "set_stream": lambda stream: current.__setitem__(0, stream),
        "graph": Capturing,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    with pytest.raises(RuntimeError, match="capture invalidated"):
        captured(waits, torch.device("cuda", 0))
    assert current == ["the model's"]
