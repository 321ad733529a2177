"""How long a device was at the passes of a scan, on a clock that ticks once a look."""

import logging
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from densitrace import InputError, Threshold, Tracer, scan
from densitrace.tracer.clock import Clock, Stopwatch
from densitrace.tracer.parts import Worker
from densitrace.tracer.tracing import Scope
from densitrace.tracer.windows import batches

RULE = Threshold([0.2, 0.05])
CPU = torch.device("cpu")


class Queue(Clock):
    """A device that is behind the host: it reaches a moment when it is waited for."""

    def __init__(self) -> None:
        Clock.__init__(self, CPU)
        self.told, self.reached = 0, 0

    def mark(self) -> int:
        self.told += 1
        return self.told**2

    def between(self, start: int, end: int) -> float:
        self.reached = max(self.reached, end)
        return float(end - start)

    def is_past(self, moment: int) -> bool:
        return moment <= self.reached


def test_a_stopwatch_waits_only_when_read() -> None:
    queue = Queue()
    watch = Stopwatch(queue)
    for _ in range(3):  # moments 1 4, 9 16, 25 36
        with watch.running():
            assert queue.reached == 0
    assert queue.reached == 0
    assert watch.seconds() == 3 + 7 + 11 == watch.seconds()
    assert queue.reached == 36


def test_what_is_past_is_not_kept() -> None:
    queue = Queue()
    watch = Stopwatch(queue)
    for _ in range(5):
        with watch.running():
            pass
        queue.reached = queue.told**2
    assert len(watch._pending) == 1
    assert watch.seconds() == 3 + 7 + 11 + 15 + 19


def test_what_fails_does_not_count() -> None:
    watch = Stopwatch(Queue())
    with pytest.raises(InputError), watch.running():
        raise InputError("no")
    assert watch.seconds() == 0


def test_a_cpu_is_timed_by_the_wall() -> None:
    clock = Clock(CPU)
    start = clock.mark()
    end = clock.mark()
    assert clock.is_past(end)
    assert clock.between(start, end) == end - start >= 0


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second goes by from one look at the clock to the next."""
    looks = count()
    monkeypatch.setattr(Clock, "mark", lambda _: float(next(looks)))


@pytest.mark.usefixtures("ticks")
@pytest.mark.parametrize("edges", [None, 0])
@pytest.mark.parametrize("scope", ["all", "output"])
def test_a_part_tells_of_its_passes(
    scope: Scope,
    edges: int | None,
    byte_tracer: Tracer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A tick for the pass of every batch and one for its measures, or one for every output's pass.

    Edges may need passes of their own.
    """
    corpus = tmp_path / "c.txt"
    corpus.write_text("ab\n\nabcd" if scope == "output" else "abcdefgh" * 60)
    options: dict[str, Any] = {"context": 16, "batch_tokens": 40, "worker": Worker()}
    with caplog.at_level(logging.INFO, "densitrace"):
        store = scan(
            byte_tracer, corpus, tmp_path / "s", select=RULE, scope=scope, edges=edges, **options
        )
    lines = [vars(record) for record in caplog.records if record.message == "part done"]
    told = {line["part"]: line for line in lines}
    assert sorted(told) == list(range(store.n_parts))
    for part in range(store.n_parts):
        lengths = store.plan(part).length
        groups = len(batches(lengths, 40))
        of_outputs = lengths.sum() + (0 if edges is None else groups)
        expected = 2 * groups if scope == "all" else of_outputs
        assert told[part]["device_seconds"] == expected
        assert told[part]["seconds"] > 0


def test_the_log_tells_the_share_of_padding(
    byte_tracer: Tracer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = tmp_path / "c.jsonl"
    corpus.write_text("".join(f'{{"text": "{"a" * length}"}}\n' for length in (39, 38)))
    with caplog.at_level(logging.INFO, "densitrace"):
        store = scan(byte_tracer, corpus, tmp_path / "s", select=RULE, batch_tokens=80)
    [told] = [vars(record) for record in caplog.records if record.message == "part done"]
    lengths = store.plan(0).length
    assert told["tokens"] == lengths.sum() < 2 * lengths.max()
    assert told["padding"] == pytest.approx(2 * lengths.max() / lengths.sum() - 1)
