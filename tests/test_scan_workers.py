"""The helpers for worker tests leave nothing behind in the test process."""

from pathlib import Path

import torch
from byte_model import byte_model, save
from scan_workers import Job, small_parts, write_corpus

from densitrace import open_store
from densitrace.tracer import layout, parts, windows


def settings() -> tuple[float, ...]:
    """The settings that `Job.run` changes while it runs."""
    return (
        layout.PART_VALUES, layout.PARTS, windows.TOGETHER, parts.POLL_SECONDS,
        torch.get_num_threads(),
    )  # fmt: skip


def test_a_job_restores_the_size_of_parts(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c.jsonl")
    before = settings()
    Job(save(tmp_path / "model", byte_model()), tmp_path / "c.jsonl", tmp_path / "s").run()
    assert open_store(tmp_path / "s").n_parts > 10
    assert settings() == before


def test_the_last_to_leave_restores_the_settings() -> None:
    before = settings()
    small_parts.__enter__()
    small_parts.__enter__()
    small_parts.__exit__()
    assert settings() != before
    small_parts.__exit__()
    assert settings() == before
