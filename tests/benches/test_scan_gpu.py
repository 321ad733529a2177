"""Scans on a device with a tiny model on the CPU; nothing here depends on actual times."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from bench_files import bench
from click.testing import CliRunner

from densitrace import Threshold, Tracer, scan
from densitrace.tracer import layout
from densitrace.tracer.nodes import IMPORTANCES

TINY = ("--shapes", "tiny", "--device", "cpu", "--dtype", "float32")
TOKENS = 700

Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return bench("scan_gpu")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts, few rounds."""
    monkeypatch.setattr(layout, "FEWEST_VALUES", 1 << 11)
    monkeypatch.setattr("device_timing.BUDGET_SECONDS", 0.0)
    monkeypatch.setattr("device_timing.SHORTEST_SECONDS", 0.0)


def rows_of(script: ModuleType, out: Path, *command: str) -> Rows:
    """Run a command and return the rows it writes, by name."""
    result = CliRunner().invoke(script.main, [*command, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (section,) = json.loads(out.with_suffix(".json").read_text())["sections"].values()
    assert out.with_suffix(".md").read_text() in result.output
    return {row["name"]: row for row in section}


def test_a_store(script: ModuleType, tmp_path: Path) -> None:
    options = ("--tokens", str(TOKENS), "--context", "32", "--batch-tokens", "96")
    rows = rows_of(script, tmp_path / "out" / "scan", "store", *TINY, *options)
    first, others, whole = rows.values()
    assert first["parts"] == 1 < others["parts"] == whole["parts"] - 1
    assert first["tokens"] + others["tokens"] == whole["tokens"]
    assert whole["tokens"] == pytest.approx(TOKENS, rel=0.05)  # cut texts may merge tokens
    assert whole["of the tokens"] == 1
    for row in (first, others):
        assert row["tokens/s"] == row["tokens"] / row["seconds"]
        assert 0 < row["outside device work"] < 1
        assert row["bytes a token"] > 50


def test_a_scan_reports_what_fits_its_time_limit(script: ModuleType, tmp_path: Path) -> None:
    """After the limit no part begins except the first, without which there is nothing to report."""
    options = ("--tokens", str(TOKENS), "--context", "32", "--time-limit", "0")
    rows = rows_of(script, tmp_path / "scan", "store", *TINY, *options)
    first, whole = rows.values()
    assert first["parts"] == whole["parts"] == 1
    assert whole["of the tokens"] == pytest.approx(first["tokens"] / TOKENS, rel=0.05)
    assert whole["of the tokens"] < 0.5


def test_a_part_under_the_profiler(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With kernels of a fake device, compared with the part as it runs without the profiler."""
    monkeypatch.setattr(torch.profiler, "profile", made_up_profile)
    assert script.kernel_seconds(list) == 3e-6
    tracer = Tracer(script.random_model(script.tiny_llama(), torch.device("cpu"), torch.float32))
    tracer.tokenizer = script.tokenizer()
    corpus, out = tmp_path / "c.jsonl", tmp_path / "s"
    script.write_corpus(corpus, 200)

    def scanned(**limits: Any) -> Any:
        from densitrace.tracer.run import Limits

        return scan(tracer, corpus, out, select=RULE, context=32, limits=Limits(**limits))

    store = scanned()
    script.open_first_part(store)
    assert not store.is_done(0)
    recorded: list[dict[str, float]] = []
    figures_of = script.part_figures

    def noted(parts: Any) -> dict[str, float]:
        recorded.append(dict(figures_of(parts)))
        return dict(recorded[-1])

    def again() -> None:
        script.open_first_part(store)
        scanned(max_parts=1)

    monkeypatch.setattr(script, "part_figures", noted)
    record = script.DeviceRecord()
    script.note_kernels(record, "title", again)
    assert store.complete
    ((_, figures),) = record.sections["title"]
    without, slowed = (part["seconds"] for part in recorded)
    assert [part["parts"] for part in recorded] == [1, 1]
    assert figures["seconds"] == without
    assert figures["outside kernels"] == 1 - 3e-6 / without
    assert figures["x slower under the profiler"] == slowed / without


def test_an_interrupt_keeps_measured_rows(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The rows of finished parts are kept, and each part is reported."""
    scan_once, calls = script.densitrace.scan, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(options["limits"])
        if len(calls) < 3:  # plan, first part, all others
            return scan_once(*arguments, **options)
        scan_once(*arguments, **options | {"limits": type(calls[0])(max_parts=2)})
        raise KeyboardInterrupt

    monkeypatch.setattr(script.densitrace, "scan", interrupted)
    out = tmp_path / "scan"
    options = ("--tokens", str(TOKENS), "--context", "32", "--batch-tokens", "96")
    result = CliRunner().invoke(script.main, ["store", *TINY, *options, "--out", str(out)])
    assert result.exit_code == 1
    assert [line.split(":")[0] for line in result.output.splitlines() if line[:5] == "part "] == [
        "part 0", "part 1", "part 2",
    ]  # fmt: skip
    (section,) = json.loads(out.with_suffix(".json").read_text())["sections"].values()
    assert [(row["name"], row["parts"]) for row in section] == [
        ("first part", 1), ("other parts", 2),
    ]  # fmt: skip


RULE = Threshold([0.2, 0.05])


@contextmanager
def made_up_profile(**_: Any) -> Iterator[SimpleNamespace]:
    def event(name: str, start: float, end: float, device: str) -> SimpleNamespace:
        span = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(name=name, time_range=span, device_type=SimpleNamespace(name=device))

    events = [
        event("gemm", 5, 6, "CUDA"),
        event("norm", 0, 1.5, "CUDA"),
        event("cuts", 1, 2, "CUDA"),  # overlaps another kernel
        event("Memcpy DtoH (Device -> Pinned)", 2, 4, "CUDA"),
        event("aten::mm", 0, 9, "CPU"),
    ]
    yield SimpleNamespace(events=lambda: events)


def test_every_importance_is_compared(script: ModuleType, tmp_path: Path) -> None:
    shape = ("--length", "16", "--rows", "2")
    rows = rows_of(script, tmp_path / "modes", "modes", *TINY, *shape)
    assert tuple(rows) == IMPORTANCES
    assert all(row["from "] <= row["x forward"] <= row["to"] for row in rows.values())


def test_importances_on_the_bundled_model_and_text(script: ModuleType, tmp_path: Path) -> None:
    """Only some of its proximity edges are summed; tiling it up changes sizes only."""
    command = ("modes", "--shapes", "bundled", "--device", "cpu", "--dtype", "float32")
    rows = rows_of(script, tmp_path / "m", *command, "--length", "48", "--rows", "2")
    assert 0 < rows["proximity"]["edges summed"] < 1
    assert "edges summed" not in rows["norm_l1"]


def test_the_bundled_model_on_two_devices(script: ModuleType, tmp_path: Path) -> None:
    command = ("bundled", "--device", "cpu", "--documents", "1")
    rows = rows_of(script, tmp_path / "b", *command)
    assert rows.keys() == {spec.name for spec in layout.window_arrays()}
    assert all(row["share equal"] == 1 for row in rows.values())
    assert {row["verdict"] for row in rows.values()} == {"rounding"}


def test_two_devices_that_differ_by_more_than_rounding(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The command fails after its rows are written."""
    loaded, dtypes = Tracer.from_pretrained, iter(("bfloat16", "float32"))
    monkeypatch.setattr(
        Tracer,
        "from_pretrained",
        lambda path, device, dtype, backend: loaded(path, device, next(dtypes), backend),
    )
    out = tmp_path / "b"
    command = ["bundled", "--device", "cpu", "--documents", "1", "--out", str(out)]
    result = CliRunner().invoke(script.main, command)
    assert result.exit_code == 1
    (section,) = json.loads(out.with_suffix(".json").read_text())["sections"].values()
    wrong = [row["name"] for row in section if row["verdict"] != "rounding"]
    assert {"surprisal", "tv", "topology"} <= set(wrong)
    assert not {"token", "position", "full_edge_count"} & set(wrong)
    assert f"more than rounding: {', '.join(wrong)}" in result.output


def test_differences_are_seen(script: ModuleType, tmp_path: Path) -> None:
    """The same weights in two dtypes."""
    corpus, stores = tmp_path / "c.jsonl", []
    script.write_corpus(corpus, 100)
    for dtype in (torch.float32, torch.bfloat16):
        model = script.random_model(script.tiny_llama(), torch.device("cpu"), torch.float32).to(
            dtype
        )
        tracer = Tracer(model, script.tokenizer())
        stores.append(scan(tracer, corpus, tmp_path / str(dtype), select=RULE, context=32))
    figures = script.differences(*stores)
    for name in ("token", "position", "full_edge_count"):
        assert (figures[name]["share equal"], figures[name]["largest difference"]) == (1, 0)
    valid = stores[0].token[:] >= 0
    for name in ("tv", "topology"):
        left, right = (store.array(name)[:][valid].astype(float) for store in stores)
        assert figures[name]["largest difference"] == abs(left - right).max() > 0
        assert figures[name]["share equal"] == (left == right).mean() < 1
    assert figures["surprisal"]["NaN in one"] == 0
