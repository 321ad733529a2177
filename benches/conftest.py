"""pytest-benchmark hooks that write records of the ledger, and the record of GPU benches."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ledger
import pytest
import torch
from device_record import DeviceRecord

RECORD = pytest.StashKey[DeviceRecord]()


@pytest.hookimpl(trylast=True)  # after the terminal's reporter
def pytest_configure(config: pytest.Config) -> None:
    """Create the record of GPU benches, which writes each row to $OUT and prints it."""
    plugins = config.pluginmanager
    reporter, capture = map(plugins.getplugin, ("terminalreporter", "capturemanager"))

    def say(row: str) -> None:
        if reporter is None:
            return
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            reporter.ensure_newline()
            reporter.write_line(row)
            reporter.flush()

    stem = Path(os.environ.get("OUT", "build/gpu")) / "benches"
    config.stash[RECORD] = DeviceRecord(stem=stem, say=say)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect benches that need a GPU if there is none."""
    if torch.cuda.is_available():
        return
    needing = [item for item in items if item.get_closest_marker("gpu")]
    config.hook.pytest_deselected(items=needing)
    items[:] = [item for item in items if item not in needing]


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest) -> DeviceRecord:
    """The record that GPU benches add their rows to."""
    return request.config.stash[RECORD]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table of GPU results, which is also in $OUT (default build/gpu)."""
    record = config.stash[RECORD]
    if record.sections:
        terminalreporter.write_line(record.page())
        terminalreporter.write_line(f"wrote {record.stem}.json and .md")


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Record the machine, without the host's name."""
    machine_info.clear()
    machine_info.update(ledger.machine())


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    """Write a Markdown page next to the JSON."""
    target: Path | None = config.getoption("benchmark_json")
    if target is not None:
        ledger.slim(output_json)
        target.with_suffix(".md").write_text(ledger.page(output_json), encoding="utf-8")
