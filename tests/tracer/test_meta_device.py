"""The host code of whole passes on a device that is not the CPU: operands meet on one device.

The device is `meta`, where operations check shapes and devices and compute nothing.
"""

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from host_waits import COPIES, waits_in
from meta_device import Launches, served_as_a_gpu
from tiny_models import FURTHER, VARIANTS, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.aria import modeling_aria

from densitrace import Nucleus, Rule, Threshold, TopFraction
from densitrace.tracer.batch import batch_of_lists
from densitrace.tracer.engine import CONTROLS, Attention, LaneLoop
from densitrace.tracer.models import architecture_of
from densitrace.tracer.models.decoder import Decoder
from densitrace.tracer.nodes import IMPORTANCES, ImportanceName
from densitrace.tracer.tracing import Settings, Tracing

ROWS = [[5, 9, 33, 2, 60, 17, 8, 41, 12, 50], [7, 7, 1, 30]]
RULES = (Threshold([0.6, 0.1]), Nucleus([0.5, 0.9]), TopFraction([0.1, 0.5]))


class Deterministic(TorchDispatchMode):
    """Refuses what torch refuses on a GPU where `use_deterministic_algorithms` is set.

    But for `histc`, by which transformers counts the tokens of experts.
    """

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("put_", "bincount", "median")
        assert name != "cumsum" or not args[0].is_floating_point()
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches() -> Iterator[Launches]:
    """Serve ops on `meta` as on a GPU that is to be deterministic."""
    with served_as_a_gpu() as counted, Deterministic():
        yield counted


@cache
def decoder_of(family: str) -> Decoder:
    model: Any = tiny_model(family)
    return Decoder(model.to("meta", torch.bfloat16), architecture_of(model.config))


# transformers reads a number on the host: in a block, in the mask of Mamba's blocks, and, in older
# versions, in Aria's experts.
READ_BY_HOST = ["dbrx", "granitemoehybrid"]
if hasattr(modeling_aria, "sequential_experts_gemm"):
    READ_BY_HOST.append("aria_text")

# Every family, and every importance with every rule in a sequential and a parallel model.
CASES: list[tuple[Any, ...]] = [
    (family, "norm_l1", RULES[0], "live")
    for family in (*VARIANTS, *FURTHER)
    if family not in READ_BY_HOST
]
for importance, rule in product(IMPORTANCES, RULES):
    CASES += [("llama", importance, rule, "frozen"), ("gpt_neox", importance, rule, "live")]


@pytest.mark.parametrize(("family", "importance", "rule", "attention"), CASES)
def test_all_outputs(
    family: str,
    importance: ImportanceName,
    rule: Rule,
    attention: Attention,
    launches: Launches,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a scan, some rows at a time; no block copies between the host and the device."""
    settings = Settings(importance, attention, controls=CONTROLS)
    tracing = Tracing(decoder_of(family), settings, tokens_at_once=10, packed=True)
    with waits_in(LaneLoop, "_run_block", monkeypatch) as found:
        tracing.measured(tracing.start(batch_of_lists(ROWS, [3, -1]), rule))
    assert not COPIES & found.keys()  # of tensors on the host, the host may read numbers
    assert {"trace_sizes", "bottleneck", "logits_kernel", "distances_kernel"} < set(launches)


@pytest.mark.parametrize(("family", "importance", "rule", "attention"), CASES[-5:])
def test_one_output(
    family: str, importance: ImportanceName, rule: Rule, attention: Attention, launches: Launches
) -> None:
    tracing = Tracing(decoder_of(family), Settings(importance, attention, controls=CONTROLS))
    tracing.one_output(batch_of_lists(ROWS[:1]), rule)
    assert {"logits_kernel", "distances_kernel"} < set(launches)
