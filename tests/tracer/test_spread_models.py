"""Models spread over devices, as accelerate does it: a hook on each module moves its inputs.

The second device is `meta`, the only one every machine has: it checks that all operands of an
operation are on one device, and computes nothing.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import VARIANTS, tiny_model
from torch import Tensor, nn

from densitrace import Threshold, Trace, Tracer
from densitrace.tracer.batch import batch_of_lists
from densitrace.tracer.engine import Attention, LaneLoop
from densitrace.tracer.graph import KINDS
from densitrace.tracer.models import architecture_of
from densitrace.tracer.models.decoder import Decoder
from densitrace.tracer.models.linear import is_plain
from densitrace.tracer.nodes import GivenImportance, ImportanceName
from densitrace.tracer.select import GivenCuts
from densitrace.tracer.sizes import all_traces, output_trace
from densitrace.tracer.tracing import Settings, Tracing

ROWS = [[5, 9, 33, 2, 60, 17], [7, 7, 1, 30]]
RULE = Threshold([0.6, 0.1])
META = torch.device("meta")


def hooked(module: nn.Module) -> None:
    """Inputs go where the module's weights are, by a `forward` set on the instance."""
    inner: Callable[..., Any] = module.forward
    device = next(module.parameters()).device

    def forward(*args: Any, **kwargs: Any) -> Any:
        def move(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) else value

        named = {name: move(value) for name, value in kwargs.items()}
        return inner(*map(move, args), **named)

    module.forward = forward
    vars(module)["_hf_hook"] = "moves inputs"  # accelerate's mark


def spread(family: str, first: int) -> Decoder:
    """A tiny model whose blocks from `first` on, and final norm, are on the second device."""
    model: Any = tiny_model(family)
    architecture = architecture_of(model.config)
    blocks = list(model.get_submodule(architecture.blocks).children())
    assert isinstance(architecture.final_norm, str)
    final = model.get_submodule(architecture.final_norm)
    for module in (*blocks[first:], final):
        module.to(META)
    for module in (*blocks, final):
        for part in module.modules():
            if any(True for _ in part.parameters()):
                hooked(part)
    return Decoder(model, architecture)


@pytest.fixture
def zeros_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is copied from the second device, which has no numbers, is zero."""
    to = Tensor.to

    def copied(tensor: Tensor, *where: Any, **options: Any) -> Tensor:
        if tensor.is_meta and where and where[0] == torch.device("cpu"):
            return torch.zeros_like(tensor, device=where[0])
        moved: Tensor = to(tensor, *where, **options)
        return moved

    monkeypatch.setattr(Tensor, "to", copied)


@pytest.mark.parametrize("importance", ["norm_l1", "cosine", "random"])
@pytest.mark.parametrize("attention", ["live", "frozen"])
@pytest.mark.parametrize("family", [*VARIANTS, "gemma4_shared"])
def test_blocks_on_two_devices(
    family: str,
    attention: Attention,
    importance: ImportanceName,
    zeros_come_back: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every operation of a pass finds its operands on one device: that of the block."""
    first = 4 if family == "gemma4_shared" else 1  # the last block reads keys and values of another
    decoder = spread(family, first)
    settings = Settings(importance, attention=attention, controls=("inverse",))
    batch = batch_of_lists(ROWS)
    monkeypatch.setattr(LaneLoop, "host_reads", False)  # what is on `meta` nobody can read
    found = Tracing(decoder, settings, "reference").loop(batch, RULE).run()
    devices = [node.side.device.type for node in found.levels]
    of_a_block = 1 if decoder.geometry.parallel else 2
    there = of_a_block * (len(decoder.blocks) - first)
    assert devices == ["cpu"] * (len(devices) - there) + ["meta"] * there
    assert found.hidden.device == batch.ids.device
    sizes = all_traces(found.levels, len(RULE), decoder.geometry, "reference")
    assert sizes.shape[:3] == (*batch.ids.shape, len(RULE))
    trace = output_trace(found.levels, len(RULE), decoder.geometry)
    again = Tracing(decoder, settings, "reference").loop(batch, RULE, gates=trace.gates).run()
    assert again.hidden.shape == found.hidden.shape


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_an_order_of_edges_on_two_devices(
    family: str, zeros_come_back: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `Size` gives it, from the first device."""
    decoder = spread(family, first=1)
    batch = batch_of_lists(ROWS[:1])
    blocks, length = len(decoder.blocks), len(ROWS[0])
    order = {kind: torch.ones(blocks, length) for kind in KINDS}
    order["attn"] = torch.ones(blocks, decoder.heads, length, length)
    weigh = GivenImportance(order, "reference")
    monkeypatch.setattr(LaneLoop, "host_reads", False)
    found = Tracing(decoder, Settings(), "reference").loop(batch, GivenCuts([2, 0]), weigh).run()
    assert [found.levels[place].side.device.type for place in (0, -1)] == ["cpu", "meta"]


def test_hooks_change_nothing() -> None:
    """On one device: hooks on every module, and what they wrap back in place afterwards."""
    plain, hooks = Tracer(tiny_model("llama")), tiny_model("llama")
    tracer = Tracer(hooks)
    for block in tracer._decoder.blocks:
        for part in block.module.modules():
            if any(True for _ in part.parameters()):
                hooked(part)
    assert all(is_plain(block.projection) for block in tracer._decoder.blocks)
    set_before = [block.module.forward for block in tracer._decoder.blocks]
    found, expected = (each.trace(ROWS[0], select=RULE) for each in (tracer, plain))
    assert isinstance(found, Trace)
    assert isinstance(expected, Trace)
    np.testing.assert_array_equal(found.errors["tv"], expected.errors["tv"])
    assert [block.module.forward for block in tracer._decoder.blocks] == set_before
