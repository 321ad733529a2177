"""What pytest-benchmark writes of a run, made a record of the ledger; and what a GPU showed."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ledger
import pytest
import torch
from device_record import DeviceRecord

FOUND = pytest.StashKey[DeviceRecord]()


@pytest.hookimpl(trylast=True)  # after the terminal's reporter
def pytest_configure(config: pytest.Config) -> None:
    """A record that the benches on a GPU fill: written to $OUT, and told, row by row."""
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
    config.stash[FOUND] = DeviceRecord(stem=stem, say=say)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Benches that need a GPU are not collected where there is none."""
    if torch.cuda.is_available():
        return
    needing = [item for item in items if item.get_closest_marker("gpu")]
    config.hook.pytest_deselected(items=needing)
    items[:] = [item for item in items if item not in needing]


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest) -> DeviceRecord:
    """Where a bench on a GPU puts its rows."""
    return request.config.stash[FOUND]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The table of what a GPU showed; it is in $OUT, too (build/gpu where that is not set)."""
    found = config.stash[FOUND]
    if found.sections:
        terminalreporter.write_line(found.page())
        terminalreporter.write_line(f"wrote {found.stem}.json and .md")


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
