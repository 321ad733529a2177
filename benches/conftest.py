"""What pytest-benchmark writes of a run, made into a record of the ledger."""

from pathlib import Path
from typing import Any

import ledger
import pytest


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """What ran, without the host's name."""
    machine_info.clear()
    machine_info.update(ledger.machine())


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    """Beside the JSON, a Markdown page."""
    target: Path | None = config.getoption("benchmark_json")
    if target is not None:
        ledger.slim(output_json)
        target.with_suffix(".md").write_text(ledger.page(output_json), encoding="utf-8")
