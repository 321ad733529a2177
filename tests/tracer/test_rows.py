"""What a masked lane drops it does not compute: rows that reach the MLP and attention modules."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import VARIANTS, tiny_model
from torch import Tensor, nn

from densitrace import Threshold, Trace, Tracer, kernels
from densitrace.tracer import engine
from densitrace.tracer.graph import KINDS
from densitrace.tracer.models import Block, architecture_of
from densitrace.tracer.models.decoder import Decoder

IDS = [5, 9, 33, 2, 60, 17, 8, 41, 12, 50]
RULE = Threshold([0.6, 0.4, 0.1, 0.01])  # MLP edges weigh between 0.1 and 0.9 in these models
ATTENTION = ("live", "frozen")
CONTROLS = ("inverse", "random")
WIRINGS = ("llama", "gemma3", "gpt2", "gpt_neox", "gpt_neox_sequential")


def decoder_of(family: str, dtype: torch.dtype = torch.float32) -> Decoder:
    model: Any = tiny_model(family)
    return Decoder(model.to(dtype), architecture_of(model.config))


@contextmanager
def rows_seen(blocks: list[Block], part: str) -> Iterator[list[list[int]]]:
    """Rows of every call of a module of each block while the context is open, by block."""
    seen: list[list[int]] = [[] for _ in blocks]

    def hook(calls: list[int]) -> Any:
        def count(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states = args[0] if args else kwargs["hidden_states"]
            calls.append(states.shape[:-1].numel())

        return count

    handles = [
        getattr(block, part).register_forward_pre_hook(hook(calls), with_kwargs=True)
        for block, calls in zip(blocks, seen, strict=True)
    ]
    yield seen
    for handle in handles:
        handle.remove()


def kept_by_weight(trace: Trace, layer: int) -> int:
    """MLP edges of a block above the thresholds, all strata together."""
    weights = trace.weights(layer)["mlp"]
    return int((weights[:, None] > trace.strata).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [*VARIANTS, "gemma4_shared"])
def test_values(family: str, dtype: torch.dtype) -> None:
    """A block's values are those that its attention module hands to the attention function."""
    decoder = decoder_of(family, dtype)
    compared = []

    def run_block(layer: int, hidden: Tensor, call: dict[str, Any]) -> Tensor:
        block = decoder.blocks[layer]

        def attend(pattern: kernels.Pattern, value: Tensor) -> Tensor:
            # A slice of a fused projection may be summed in another order than the whole.
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(
                block.values(hidden, call), value, rtol=4 * eps, atol=4 * eps
            )
            compared.append(layer)
            return kernels.attention_stats(pattern, value).output

        return hidden + block.attend(hidden, call, attend)

    ids = torch.tensor([IDS, IDS[::-1]])
    positions = torch.arange(len(IDS)).expand_as(ids)
    with torch.inference_mode():
        decoder.hidden_states(ids, positions, torch.ones_like(ids), run_block)
    assert compared == list(range(len(decoder.blocks)))


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", VARIANTS)
def test_mlp_sees_kept_rows_alone(family: str, attention: str) -> None:
    tracer = Tracer(tiny_model(family))
    options: dict[str, Any] = {"select": RULE, "attention": attention, "controls": CONTROLS}
    with rows_seen(tracer._decoder.blocks, "mlp_module") as seen:
        trace = tracer.trace(IDS, **options)
    assert isinstance(trace, Trace)
    every = len(RULE) * len(IDS)
    kept = [kept_by_weight(trace, layer) for layer in range(tracer.n_layers)]
    assert 0 < sum(kept) < every * tracer.n_layers
    for calls, ours in zip(seen, kept, strict=True):
        # The clean lane, the trace, its inverse, and as many as the trace again at random.
        assert sum(calls) == len(IDS) + ours + (every - ours) + ours


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", WIRINGS)
def test_mlp_sees_rows_of_one_trace_alone(family: str, attention: str) -> None:
    """`scope="output"`: a pass of the clean lane alone, then lanes inside the trace."""
    tracer = Tracer(tiny_model(family))
    options: dict[str, Any] = {"select": RULE, "attention": attention, "scope": "output"}
    with rows_seen(tracer._decoder.blocks, "mlp_module") as alone:
        trace = tracer.trace(IDS, **options)
    with rows_seen(tracer._decoder.blocks, "mlp_module") as controlled:
        tracer.trace(IDS, **options, controls=CONTROLS)
    assert isinstance(trace, Trace)
    kept = trace.topology[0, :, KINDS.index("mlp")].sum(0)
    for layer in range(tracer.n_layers):
        assert sum(alone[layer]) == 2 * len(IDS) + kept[layer]
        # Of the last block's nodes the last token's alone is read.
        every = len(RULE) * (1 if layer == tracer.n_layers - 1 else len(IDS))
        assert sum(controlled[layer]) == 2 * len(IDS) + every + kept[layer]


@pytest.mark.parametrize("family", WIRINGS)
def test_padding_reaches_no_masked_mlp(family: str) -> None:
    tracer = Tracer(tiny_model(family))
    rows = [IDS, IDS[:4]]
    with rows_seen(tracer._decoder.blocks, "mlp_module") as seen:
        traces = tracer.trace(rows, select=RULE, controls=("inverse",))
    assert isinstance(traces, list)
    tokens = sum(len(row) for row in rows)
    for calls in seen:
        assert sum(calls) == len(rows) * len(IDS) + len(RULE) * tokens


@pytest.mark.parametrize("family", VARIANTS)
def test_frozen_lanes_ask_nothing(family: str) -> None:
    """Queries and keys are computed for the clean lane alone where attention is frozen."""
    tracer = Tracer(tiny_model(family))
    for attention, lanes in (("frozen", 1), ("live", 1 + 2 * len(RULE))):
        options: dict[str, Any] = {"select": RULE, "attention": attention}
        with rows_seen(tracer._decoder.blocks, "attention") as seen:
            tracer.trace(IDS, **options, controls=("inverse",))
        assert [sum(calls) for calls in seen] == [lanes * len(IDS)] * tracer.n_layers


@pytest.mark.parametrize(
    ("bounds", "module", "most"),
    [
        ({"MLP_ROWS": 3}, "mlp_module", 3),
        ({"LANE_ROWS": 1, "FEWEST_LANES": 2}, "attention", 2 * len(IDS)),
    ],
)
@pytest.mark.parametrize("family", WIRINGS)
def test_rows_a_few_at_a_time(
    family: str, bounds: dict[str, int], module: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound on the rows of one call holds, and changes nothing."""
    tracer = Tracer(tiny_model(family))
    options: dict[str, Any] = {"select": RULE, "controls": CONTROLS}
    expected = tracer.trace(IDS, **options)
    for name, bound in bounds.items():
        monkeypatch.setattr(engine, name, bound)
    with rows_seen(tracer._decoder.blocks, module) as seen:
        trace = tracer.trace(IDS, **options)
    assert isinstance(trace, Trace)
    assert isinstance(expected, Trace)
    assert max(max(calls) for calls in seen) == most
    np.testing.assert_array_equal(trace.topology, expected.topology)
    for name, values in expected.errors.items():
        np.testing.assert_allclose(trace.errors[name], values, atol=2e-5, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ("0000", []),
        ("1111", [slice(0, 3), slice(3, 4)]),
        ("0111110", [slice(1, 4), slice(4, 6)]),
        ("1010110", [[0, 2, 4], slice(5, 6)]),
        ("0100", [slice(1, 2)]),
    ],
)
def test_kept_rows(
    kept: str, expected: list[slice | list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices where rows lie side by side, places elsewhere, a bounded number of them."""
    monkeypatch.setattr(engine, "MLP_ROWS", 3)
    mask = torch.tensor([int(bit) for bit in kept]).bool()
    found = [some if isinstance(some, slice) else some.tolist() for some in engine._kept_rows(mask)]
    assert found == expected
