"""What leaves the device in a scan: a store's values in a store's types, and hardly more."""

from itertools import chain

import numpy as np
import pytest
import torch
from tiny_models import VARIANTS, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from densitrace import Threshold, Tracer
from densitrace.tracer import layout, tracing
from densitrace.tracer.batch import batch_of_lists
from densitrace.tracer.graph import Geometry, full_edge_counts, most_edges
from densitrace.tracer.sizes import by_quartile
from densitrace.tracer.tracing import Settings, Tracing

STRATA = 12
RULE = Threshold(np.geomspace(0.9, 0.001, STRATA))
LENGTHS = (60, 44)
FROM_THE_DEVICE = ("surprisal", "model_entropy", "topology", *layout.ERRORS)
CONTROLS = ("inverse", "random")


def deep_tracer(blocks: int) -> Tracer:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=blocks,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return Tracer(LlamaForCausalLM(config))


def bytes_a_token(names: tuple[str, ...] = ()) -> int:
    """Of arrays of a store, raw; of all that has a value for each token where none are named."""
    sizes = {"stratum": STRATA, "edge_kind": 4, "depth_quartile": 4}
    return sum(
        int(np.prod([sizes[dim] for dim in spec.dims[2:]])) * np.dtype(spec.dtype).itemsize
        for spec in layout.window_arrays()
        if "column" in spec.dims and (not names or spec.name in names)
    )


@pytest.mark.parametrize("blocks", [8, 10, 32])
def test_as_many_bytes_leave_as_a_store_holds(blocks: int) -> None:
    """Of a batch with padding, whatever the number of blocks; windows and a flag come along."""
    traced = Tracing(deep_tracer(blocks)._decoder, Settings(), packed=True)
    batch = batch_of_lists([[7 * token % 64 for token in range(length)] for length in LENGTHS])
    arrays = traced.all_outputs(batch, RULE).leaving.arrays()
    found = sum(array.nbytes for array in arrays.values()) / sum(LENGTHS)
    assert 1 <= found / bytes_a_token(FROM_THE_DEVICE) < 1.03
    assert 0.9 < found / bytes_a_token() < 1
    assert arrays["topology"].dtype.itemsize == 4
    assert arrays["top1"].dtype == arrays["nucleus"].dtype == np.int8


@pytest.mark.parametrize("family", VARIANTS)
def test_packed_traces_are_the_traces(family: str) -> None:
    tracer = Tracer(tiny_model(family))
    batches = [([[5, 9, 33, 2, 60, 17], [7, 7, 1, 30]], [3, -1]), ([[1, 2]], [3])]
    settings = Settings(controls=CONTROLS)
    whole, packed = (
        list(chain(*tracer.trace_batches(batches, RULE, settings, packed=packed)))
        for packed in (False, True)
    )
    for ours, expected in zip(packed, whole, strict=True):
        quartiles = by_quartile(torch.from_numpy(expected.topology))
        np.testing.assert_array_equal(ours.topology, quartiles)
        for name in ("size", "edge_count", "full_edge_count", "surprisal", "model_entropy"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(expected, name))
        assert ours.errors.keys() == expected.errors.keys()
        for name, values in expected.errors.items():
            np.testing.assert_array_equal(ours.errors[name], values, err_msg=name)
            measure = name.partition("_")[0]
            kind = "int8" if measure in ("top1", "nucleus") else "float32"
            assert [str(each.dtype) for each in (values, ours.errors[name])] == ["float32", kind]


def test_graphs_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts leave in 64 bits where the graph has more edges than 31 bits can count."""
    traced = Tracing(deep_tracer(8)._decoder, Settings(), packed=True)
    batch = batch_of_lists([[1, 2, 3]])
    for most, size in ((2**31 - 1, 4), (2**31, 8), (2**32, 8)):
        monkeypatch.setattr(tracing, "most_edges", lambda *_, most=most: most)
        assert traced.all_outputs(batch, RULE).leaving.arrays()["topology"].itemsize == size


@pytest.mark.parametrize("windows", [[None] * 3, [None, 2, 3]])
@pytest.mark.parametrize("parallel", [False, True])
def test_no_graph_has_more_edges(windows: list[int | None], parallel: bool) -> None:
    full = full_edge_counts(9, 4, windows, Geometry.of_blocks(3, parallel))
    below, bound = np.array([[most_edges(t, 4, blocks) for t in range(1, 10)] for blocks in (2, 3)])
    assert (full <= bound).all()
    if not parallel and windows == [None] * 3:  # of the last block, only what enters the output
        assert (full > below).all()
