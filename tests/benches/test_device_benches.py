"""The GPU benches with a tiny model on the CPU; nothing here depends on actual times."""

import json
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cuda_host
import pytest
import torch
from bench_files import bench
from device_models import SHAPES, device_work, random_model, spread_thresholds, tiny_llama
from device_record import DeviceRecord
from device_timing import (
    MOST_LAUNCHED,
    VECTOR_RATE,
    Ceilings,
    Clock,
    ceilings,
    measure_on,
    parts_of,
    peak_added,
)
from op_cases import cases
from problems import Work, attention_problem_of, prediction_problem_of
from transformers import LlamaConfig, PreTrainedModel

CPU = torch.device("cpu")
STRATA = 3


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    config = tiny_llama(96, blocks=4)
    return random_model(config, CPU, torch.float32)


@pytest.fixture
def work(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> Work:
    monkeypatch.setattr("device_timing.BUDGET_SECONDS", 0.0)
    return device_work(model, 24, STRATA, rows=2)


def parameters(config: LlamaConfig) -> int:
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("llama-1b", 1_235_814_400), ("llama-8b", 8_030_261_248), ("qwen3-8b", 8_190_735_360)],
)
def test_shapes(shape: str, expected: int) -> None:
    """Parameter counts match those of the models the shapes are named after."""
    assert parameters(SHAPES[shape]()) == expected


def test_thresholds_follow_the_weights(work: Work) -> None:
    """The last stratum keeps most edges, the first hardly any."""
    counts, full = work.tracing.sizes(work.batch, work.rule)
    kept = counts[:, -1].double().numpy() / full[:, -1:]
    assert len(work.rule) == STRATA
    assert (kept[:, 0] < 0.2).all()
    assert (kept[:, -1] > 0.6).all()


def test_times_of_rounds() -> None:
    order: list[str] = []
    timed = measure_on(CPU, lambda: order.append("own"), {"other": lambda: order.append("other")})
    assert order[:2] == ["other", "own"]
    assert len(timed.own) == len(timed.baselines["other"]) >= 4
    assert (timed.own > 0).all()


def test_engine_rows(model: PreTrainedModel, work: Work) -> None:
    engine, record = bench("test_engine_gpu"), DeviceRecord()
    frozen = device_work(model, 24, STRATA, rows=2, attention="frozen")
    assert frozen.rule == work.rule
    engine.note_times(record, "times", work, engine.passes(work, frozen))
    engine.note_sizes(record, "times", work)
    engine.note_times(record, "times", work, engine.with_sizes(work, frozen))
    engine.note_parts(record, "parts", {"live": work, "frozen": frozen}, Ceilings(1e9, 1e9, 1e9))
    names = [name for name, _ in record.sections["times"]]
    scans = ["scan with sizes, live", "scan with sizes, frozen"]
    assert names == [*engine.passes(work, frozen), "sizes, apart", *scans]
    assert set(engine.LIMITS) < set(names)
    parts = dict(record.sections["parts"])
    ops = ("source_norms", "attention_stats", "edge_levels", "lane_attention", "output_errors")
    wanted = {f"{lanes}: {op}" for lanes in ("live", "frozen") for op in ops}
    assert parts.keys() == wanted | {"live: model and engine", "frozen: model and engine"}
    shares = [float(row["share"]) for name, row in parts.items() if name.startswith("live")]
    assert sum(shares) == pytest.approx(1)


def test_both_methods_of_the_bottleneck_are_timed(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, record = bench("test_engine_gpu"), DeviceRecord()
    bottleneck, seen = cuda_host.ops.bottleneck, []
    module = SimpleNamespace(bottleneck=bottleneck)

    def scan() -> None:
        seen.append(signature(module.bottleneck).parameters["method"].default)

    monkeypatch.setattr(work, "scan", scan)
    engine.note_methods(record, "methods", work, module)
    assert seen[:2] == ["packed", "boolean"]
    assert module.bottleneck is bottleneck
    rows = [name for name, _ in record.sections["methods"]]
    passes = ("sizes", "scan with sizes")
    assert rows == [f"{name}, bottleneck {way}" for name in passes for way in ("packed", "boolean")]


@pytest.mark.parametrize(("graphs", "said"), [({"shape": 1}, "yes"), ({}, "no")])
def test_a_replay_row_records_whether_the_pass_was_captured(
    graphs: dict[str, int], said: str, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused capture runs uncaptured."""
    engine, record = bench("test_engine_gpu"), DeviceRecord()
    results = SimpleNamespace(results=lambda: None)
    tracing = SimpleNamespace(graphs=SimpleNamespace(_graphs=graphs))
    monkeypatch.setattr(work, "scan", lambda: results)
    monkeypatch.setattr(
        work, "replayed", lambda: SimpleNamespace(scan=lambda: results, tracing=tracing)
    )
    engine.note_replays(record, "replays", work)
    ((_, figures),) = record.sections["replays"]
    assert str(figures["captured"]).startswith(said)


def test_memory_rows_start_with_empty_caches(
    work: Work, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pass gets its own decoder, and each row its limit."""
    engine, record = bench("test_engine_gpu"), DeviceRecord()
    frozen = device_work(model, 24, STRATA, rows=2, attention="frozen")
    kept: list[bool] = []

    def peak_added(device: torch.device, run: Any) -> int:
        blocks = run.__self__.tracing.decoder.blocks
        kept.append("w_o" in vars(blocks[0]))
        run()
        return 1 << 20

    monkeypatch.setattr(engine, "peak_added", peak_added)
    engine.note_memory(record, "memory", "model", work, frozen)
    assert kept == [True, True, False, False, False]  # the plain forwards cache nothing
    limits = [figures.get("wanted") for _, figures in record.sections["memory"]]
    assert limits == [None, 1.3, 1.3, 1.3]
    levels = [node.attention for node in work.clean_lane().levels]
    maps = sum(level_map.nbytes for level_map in levels if level_map is not None)
    for _, figures in record.sections["memory"][1:]:
        assert figures["x without maps"] == pytest.approx(1 - maps / 2**20)


def test_peak_memory_includes_what_a_run_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake allocator: 5 bytes before, 7 kept from the first run on, 10 more during a run."""
    held, peak = [5], [0]

    def run() -> None:
        if len(held) == 1:
            held.append(7)
        peak[0] = max(peak[0], sum(held) + 10)

    fakes = {
        "synchronize": lambda _: None,
        "empty_cache": lambda: None,
        "memory_allocated": lambda _: sum(held),
        "max_memory_allocated": lambda _: peak[0],
        "reset_peak_memory_stats": lambda _: peak.__setitem__(0, sum(held)),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    assert peak_added(CPU, run) == 7 + 10


def test_a_device_waits_until_the_host_has_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fake clock and launch time: the wait comes before a round's first mark."""
    events: list[Any] = []
    monkeypatch.setattr("device_timing.BUDGET_SECONDS", 0.0)
    monkeypatch.setattr(Clock, "wait", lambda self, seconds: events.append(round(seconds, 4)))
    monkeypatch.setattr(Clock, "launching", lambda self, run: 2e-3)
    mark = Clock.mark

    def marked(self: Clock) -> Any:
        events.append("mark")
        return mark(self)

    monkeypatch.setattr(Clock, "mark", marked)
    measure_on(CPU, lambda: events.append("run"), {}, launched=True)
    warm_up, first, rounds = events[:1], events[1:5], events[5:]
    assert warm_up == ["run"]
    assert first == [0.0031, "mark", "run", "mark"]
    a_round = rounds[: len(rounds) // 4]
    repeats = a_round.count("run")
    assert repeats == MOST_LAUNCHED
    assert a_round == [round(1.5 * repeats * 2e-3 + 1e-4, 4), "mark", *["run"] * repeats, "mark"]


def test_kernel_rows(work: Work, tmp_path: Path) -> None:
    ops, record = bench("test_kernels_gpu"), DeviceRecord()
    row = Work(work.model, work.ids[:1].tolist(), work.rule)
    with torch.inference_mode():
        attention, prediction = attention_problem_of(row), prediction_problem_of(row)
    ops.note_ops(record, "ops", attention, prediction, Ceilings(1e9, 1e9, 1e9))
    record.write(tmp_path / "found" / "ops")
    written = json.loads((tmp_path / "found" / "ops.json").read_text())
    rows = {row["name"]: row for row in written["sections"]["ops"]}
    assert rows.keys() == {"SDPA", "SDPA of all lanes", *ops.cases(attention, prediction)}
    assert all(row["ms"] > 0 and row["x limit"] > 0 for row in rows.values())
    page = (tmp_path / "found" / "ops.md").read_text().splitlines()
    assert sum(line.startswith("| lane_attention") for line in page) == 2


def test_ceilings_are_rates() -> None:
    measured = ceilings(CPU, side=16, elements=1 << 10)
    assert measured.products > 0 and measured.bytes > 0
    assert measured.vector == VECTOR_RATE
    assert measured.limit(0, 0, int(measured.bytes)) == pytest.approx(1, rel=1e-3)


def test_limits_depend_on_the_kind_of_operations(work: Work) -> None:
    """Minima and additions do not run at the rate of products."""
    device = Ceilings(products=100.0, vector=10.0, bytes=1.0)
    assert device.limit(1000, 0, 5) == 10
    assert device.limit(0, 1000, 5) == 100
    assert device.limit(0, 10, 50) == 50
    with parts_of(CPU, work.costs, 2) as parts:
        work.sizes()
    for op in ("bottleneck", "trace_sizes"):
        assert parts[op].products == 0 < parts[op].operations, op
    for op in ("attention_stats", "edge_levels"):
        assert 0 < parts[op].products == parts[op].operations, op


def test_cases_cache_nothing_between_runs(work: Work) -> None:
    """Runs do not cache work on the case's arguments."""
    row = Work(work.model, work.ids[:1].tolist(), work.rule)
    with torch.inference_mode():
        attention, prediction = attention_problem_of(row), prediction_problem_of(row)
    case = cases(attention, prediction)["edge_mass, proximity"]
    case.run()
    assert case.edges is not None and "ranked" not in vars(case.edges.weight)


def test_parts_put_dispatch_back(work: Work) -> None:
    from densitrace.kernels import dispatch

    pick = dispatch.pick
    with parts_of(CPU, work.costs, 2) as parts:
        work.lanes()
    assert dispatch.pick is pick
    assert parts["lane_attention"].calls == 4 * 1
    assert spread_thresholds(work, STRATA) == work.rule
