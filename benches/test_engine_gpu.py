"""What does tracing cost on a GPU, against the plain SDPA forward of the same model?

Random models of 1 and 8 billion parameters in bfloat16, 12 strata. Each pass is timed in turns with
the plain forward of the same batch (logits included); `x forward` is the ratio of the two. Sizes,
which follow from the levels of the clean pass, are also timed on their own; scans are timed with
and without them. Further rows give the time of each op in a pass and its ratio to the op's counted
limit (`x limit`, see test_kernels_gpu.py), and the peak memory over that of the plain forward of as
many rows as the pass runs. CUDA graphs come last, because a failed capture may break what follows.
"""

import gc
from collections.abc import Iterator
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from device_models import MEMORY_LIMIT, SHAPES, device_work, random_model
from device_record import DeviceRecord
from device_timing import (
    Ceilings,
    Clock,
    ceilings,
    measure_on,
    parts_of,
    peak_added,
)
from problems import Work
from timing import Run
from transformers import PreTrainedModel

from densitrace.kernels import dispatch

CUDA = "densitrace.kernels.cuda"
LENGTHS = (512, 2048, 8192)
LIMITS = {  # over the plain forward, at 2,048 tokens: METHOD §8
    "importance and cuts": 1.2,
    "importance + sizes": 1.25,
    "scan, live": 1.15 * 13,
    "scan, frozen": 13.0,
    "scan with sizes, live": 1.15 * 13,
    "scan with sizes, frozen": 13.0,
}
LONG = (4096, 8192, 16384, 32768)  # lengths of the memory curve
LAST_SIZES = 2048  # beyond this length sizes are timed only if `bottleneck` has a kernel


def passes(live: Work, frozen: Work) -> dict[str, Run]:
    """The passes that are timed, by name."""
    return {
        "plain forward": live.forward,
        "importance and cuts": live.clean_lane,
        **({"importance + sizes": live.sizes} if sizes_are_timed(live) else {}),
        "scan, live": live.lanes,
        "scan, frozen": frozen.lanes,
    }


def sizes_are_timed(work: Work) -> bool:
    """Whether sizes take seconds, not minutes."""
    served = dispatch.serving("bottleneck", work.ids.device)
    return work.ids.shape[1] <= LAST_SIZES or served != "reference"


def with_sizes(live: Work, frozen: Work) -> dict[str, Run]:
    """Whole scans, by name."""
    return {"scan with sizes, live": live.scan, "scan with sizes, frozen": frozen.scan}


def note_times(record: DeviceRecord, title: str, work: Work, runs: dict[str, Run]) -> None:
    """Time each pass in turns with the plain forward."""
    forward = {"forward": work.forward}
    for name, run in runs.items():
        timed = measure_on(work.ids.device, run, forward)
        low, ratio, high = timed.over("forward")
        limit = {"wanted": LIMITS[name]} if name in LIMITS and work.ids.shape[1] == 2048 else {}
        record.add(
            title, name, ms=1e3 * timed.seconds, x_forward=ratio, from_=low, to=high,
            tokens_a_second=work.ids.numel() / timed.seconds, **limit,
        )  # fmt: skip


def note_sizes(record: DeviceRecord, title: str, work: Work) -> None:
    """Time all sizes from the levels of a pass once, after one warm-up."""
    run = work.clean_lane()
    clock = Clock(work.ids.device)
    work.sizes_of(run)
    seconds = clock.seconds(lambda: work.sizes_of(run))
    forward = clock.seconds(work.forward)
    record.add(title, "sizes, apart", ms=1e3 * seconds, x_forward=seconds / forward)


def note_methods(record: DeviceRecord, title: str, work: Work, module: Any) -> None:
    """Time sizes, and scans with them, under both methods of the (max, min) product, in turns."""
    run = work.clean_lane()

    def by(method: str, passes: Run) -> Run:
        def timed() -> object:
            original = module.bottleneck
            module.bottleneck = partial(original, method=method)
            try:
                return passes()
            finally:
                module.bottleneck = original

        return timed

    for name, passes in {"sizes": lambda: work.sizes_of(run), "scan with sizes": work.scan}.items():
        timed = measure_on(work.ids.device, by("boolean", passes), {"packed": by("packed", passes)})
        low, ratio, high = timed.over("packed")
        packed = float(np.median(timed.baselines["packed"]))
        record.add(title, f"{name}, bottleneck packed", ms=1e3 * packed)
        record.add(
            title, f"{name}, bottleneck boolean", ms=1e3 * timed.seconds, x_packed=ratio,
            from_=low, to=high,
        )  # fmt: skip


def note_replays(record: DeviceRecord, title: str, work: Work) -> None:
    """Time a scan with sizes until its results are on the host: as it is, and as a CUDA graph."""
    graph = work.replayed()

    def as_it_is() -> object:
        return work.scan().results()

    def replayed() -> object:
        return graph.scan().results()

    timed = measure_on(work.ids.device, replayed, {"as it is": as_it_is})
    low, ratio, high = timed.over("as it is")
    graphs = graph.tracing.graphs
    assert graphs is not None
    record.add(
        title, "scan with sizes, as a CUDA graph", ms=1e3 * timed.seconds, x_as_it_is=ratio,
        from_=low, to=high, tokens_a_second=work.ids.numel() / timed.seconds,
        captured="yes" if graphs._graphs else "no: both as they are",
    )  # fmt: skip


def note_parts(record: DeviceRecord, title: str, works: dict[str, Work], reached: Ceilings) -> None:
    """The time of each op in a scan, and its ratio to the limit of the device."""
    for name, work in works.items():
        device = work.ids.device
        work.lanes()
        clock = Clock(device)
        with parts_of(device, work.costs, len(work.ids)) as parts:
            whole = clock.seconds(work.lanes)
        for op, part in sorted(parts.items(), key=lambda item: -item[1].seconds):
            others = part.operations - part.products
            limit = reached.limit(part.products, others, part.bytes)
            record.add(
                title, f"{name}: {op}", by=part.backend, calls=part.calls, ms=1e3 * part.seconds,
                share=part.seconds / whole, TFLOP=part.operations / 1e12,
                GB=part.bytes / 1e9,
                x_limit=part.seconds / limit,
            )  # fmt: skip
        rest = whole - sum(part.seconds for part in parts.values())
        record.add(title, f"{name}: model and engine", ms=1e3 * rest, share=rest / whole)


def note_memory(record: DeviceRecord, title: str, name: str, live: Work, frozen: Work) -> None:
    """Peak memory of each pass over that of the plain forward of as many rows.

    What a pass caches of the model's weights counts as its own: each pass starts with empty caches.
    Level maps, a byte per pair of tokens and attention node, are the one part that is not linear in
    the length: the limit is on the rest.
    """
    device = live.ids.device
    maps = len(live.tracing.decoder.blocks) * live.ids.numel() * live.ids.shape[1]
    alone = peak_added(device, live.without_unembedding)
    lanes = peak_added(device, live.forward_of_all_lanes)
    record.add(title, f"{name} forward of all lanes", peak_GiB=lanes / 2**30)
    for part, run, over in (
        ("importance and cuts", live.afresh().clean_lane, alone),
        ("scan, live", live.afresh().lanes, lanes),
        ("scan, frozen", frozen.afresh().lanes, lanes),
    ):
        peak = peak_added(device, run)
        record.add(
            title, f"{name} {part}", peak_GiB=peak / 2**30, x_forward_of_its_rows=peak / over,
            x_without_maps=(peak - maps) / over, wanted=MEMORY_LIMIT,
        )  # fmt: skip


# ---- on the GPU ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cuda")


@cache
def reached() -> Ceilings:
    return ceilings(torch.device("cuda"))


@pytest.fixture(scope="module", params=list(SHAPES))
def model(request: pytest.FixtureRequest, device: torch.device) -> Iterator[PreTrainedModel]:
    """One model at a time on the device."""
    yield random_model(SHAPES[request.param](), device)
    gc.collect()
    torch.cuda.empty_cache()


def name_of(model: PreTrainedModel) -> str:
    config: Any = model.config
    return next(name for name, build in SHAPES.items() if same_shape(build(), config))


def same_shape(left: Any, right: Any) -> bool:
    names = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
    return all(getattr(left, name) == getattr(right, name) for name in names)


def works(model: PreTrainedModel, length: int) -> tuple[Work, Work]:
    """Live and frozen attention under the same thresholds."""
    live = device_work(model, length)
    frozen = device_work(model, length, attention="frozen")
    return live, frozen


@pytest.mark.gpu
@pytest.mark.parametrize("length", LENGTHS)
def test_passes(model: PreTrainedModel, length: int, record: DeviceRecord) -> None:
    live, frozen = works(model, length)
    name = f"{name_of(model)}, {len(live.ids)} x {length} tokens"
    note_times(record, name, live, passes(live, frozen))
    if sizes_are_timed(live):
        note_sizes(record, name, live)
        note_times(record, name, live, with_sizes(live, frozen))
    if length == LAST_SIZES and dispatch.serving("bottleneck", live.ids.device) == "cuda":
        note_methods(record, name, live, import_module(CUDA))
    note_memory(record, "peak memory", f"{name_of(model)} T={length}", live, frozen)
    parts = {"live": live, "frozen": frozen}
    note_parts(record, f"ops of a scan of {name}", parts, reached())


@pytest.mark.gpu
@pytest.mark.parametrize("length", LONG)
def test_memory_curve(length: int, device: torch.device, record: DeviceRecord) -> None:
    """One sequence of up to 32,768 tokens on the 1B shape."""
    model = random_model(SHAPES["llama-1b"](), device)
    live, frozen = works(model, length)
    note_memory(record, "peak memory by length, llama-1b", f"T={length}", live, frozen)


# Last, and without the `model` fixture, by which pytest would reorder it: after a failed capture,
# anything that draws random numbers may fail. benches/gpu.sh runs each case in its own process.
@pytest.mark.gpu
@pytest.mark.parametrize("length", LENGTHS[:2])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_replays(shape: str, length: int, device: torch.device, record: DeviceRecord) -> None:
    work = device_work(random_model(SHAPES[shape](), device), length)
    note_replays(record, f"{shape}, {len(work.ids)} x {length} tokens", work)
