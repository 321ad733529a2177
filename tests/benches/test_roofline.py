"""The roofline: counts on meta tensors equal those on tensors of a model."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from bench_files import bench
from click.testing import CliRunner
from costs import moved_bytes
from device_models import device_work, random_model, tiny_llama
from device_timing import parts_of
from op_cases import cases
from problems import Work, attention_problem_of, prediction_problem_of
from transformers import LlamaConfig

CPU = torch.device("cpu")
LENGTH, STRATA = 24, 3


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return bench("roofline")


@pytest.fixture(scope="module")
def config() -> LlamaConfig:
    return tiny_llama(96, blocks=4)


@pytest.fixture(scope="module")
def work(config: LlamaConfig) -> Work:
    return device_work(random_model(config, CPU, torch.bfloat16), LENGTH, STRATA, rows=1)


def test_counts_are_those_of_a_model(script: ModuleType, config: LlamaConfig, work: Work) -> None:
    with torch.inference_mode():
        attention, prediction = attention_problem_of(work), prediction_problem_of(work)
    # On a GPU the projection has the model's dtype.
    attention = replace(attention, w_o=attention.w_o.bfloat16())
    real = cases(attention, prediction)
    rows = {row.name: row for row in script.op_rows(config, LENGTH, STRATA)}
    assert rows.keys() == real.keys() - {"collect_edges"}
    for name, row in rows.items():
        case = real[name]
        assert row.operations == work.costs.operations(case.op, case.arguments), name
        moved = moved_bytes(*case.arguments, *case.options.values(), case.run())
        assert row.bytes == moved, name


def test_calls_are_those_of_a_scan(script: ModuleType, config: LlamaConfig, work: Work) -> None:
    with parts_of(CPU, work.costs, 1) as parts:
        work.scan()
    rows = script.op_rows(config, LENGTH, STRATA)
    counted = {row.name.partition(",")[0]: row.calls for row in rows if row.calls}
    assert counted == {name: part.calls for name, part in parts.items()}


def test_linear_layers(script: ModuleType, config: LlamaConfig) -> None:
    row = script.linear_row(config, LENGTH, STRATA)
    weights = 4 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48)
    tokens = LENGTH * (STRATA + 1)
    assert row.operations == 2 * weights * tokens
    ends = 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
    assert row.bytes == 2 * (weights + tokens * ends)


def test_the_nearer_ceiling_binds(script: ModuleType) -> None:
    device = script.Device(products=100.0, vector=10.0, bytes=1.0)
    rows = [
        script.Row("a", 1000, 5, True, 2),  # 10 s of products, 5 s of memory
        script.Row("b", 100, 50, False, 1),  # 10 s of vectors, 50 s of memory
        script.Row("c", 1000, 50, False),  # 100 s of vectors, in no scan
    ]
    a, b, c, scan = script.page(rows, device).splitlines()[2:]
    assert a == f"| a | {1e-6:.3g} | {5e-6:.3g} | 200 | products | 10,000 | 2 | 28.6% |"
    assert "| 2 | memory | 50,000 | 1 | 71.4% |" in b
    assert "| 20 | vector units | 100,000 | 0 |  |" in c
    assert "70,000" in scan


def test_the_command(script: ModuleType, tmp_path: Path) -> None:
    options = ["--shapes", "llama-1b", "--length", "16", "--strata", "2"]
    out = tmp_path / "counted"
    result = CliRunner().invoke(script.main, [*options, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "| lane_attention, live |" in out.with_suffix(".md").read_text()
    record = json.loads(out.with_suffix(".json").read_text())
    assert {"source_norms, L1", "output_errors"} <= {row["name"] for row in record["rows"]}
