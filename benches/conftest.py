"""The ledger: every run of the benchmarks as JSON, and as a table that can be read."""

import platform
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """What ran: processor, threads and versions, without the host's name."""
    import transformers

    machine_info.clear()
    machine_info.update(
        processor=_processor(),
        threads=torch.get_num_threads(),
        system=platform.system(),
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    """Beside the JSON, a Markdown table: seconds, and what each benchmark noted of itself."""
    target: Path | None = config.getoption("benchmark_json")
    if target is None:
        return
    output_json.pop("commit_info", None)
    info = output_json["machine_info"]
    rows = [
        f"# Benchmarks, {date.today()}",
        "",
        f"`make bench` on {info['processor']}, {info['threads']} threads, Python {info['python']}, "
        f"torch {info['torch']}, transformers {info['transformers']}.",
        "",
        "| benchmark | seconds (median) | quartile range | rounds | noted |",
        "| --- | --- | --- | --- | --- |",
    ]
    for entry in output_json["benchmarks"]:
        stats = entry["stats"]
        noted = ", ".join(f"{key} {value}" for key, value in entry["extra_info"].items())
        rows.append(
            f"| {entry['fullname'].removeprefix('benches/')} | {stats['median']:.4g} "
            f"| {stats['iqr']:.2g} | {stats['rounds']} | {noted} |"
        )
    target.with_suffix(".md").write_text("\n".join(rows) + "\n", encoding="utf-8")
