"""Workers of one scan as processes that can be killed, for tests and benches of faults."""

import json
import multiprocessing
import random
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Lock
from unittest.mock import patch

import numpy as np
import torch

from densitrace import Threshold, Tracer, open_store, scan
from densitrace.tracer import layout, parts, windows
from densitrace.tracer.parts import Claims, Worker
from densitrace.tracer.progress import Meter
from densitrace.tracer.storage import Folder

RULE = Threshold([0.2, 0.05, 0.01])
CONTEXT = 16
WINDOWS = 2  # per part
SECONDS = 300.0  # to wait for what other processes do, on a busy machine

# Children are forked from a process that has imported everything and started no thread.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["scan_workers", "transformers.models.llama.modeling_llama"])


def write_corpus(path: Path) -> None:
    """Write two dozen documents of letters, for the model whose tokens are bytes."""
    letters = random.Random(0)
    texts = ("".join(letters.choices("abc xyz", k=letters.randint(1, 50))) for _ in range(24))
    path.write_text("".join(json.dumps({"text": f"t{text}"}) + "\n" for text in texts))


class _SmallParts:
    """Many parts for a small corpus, and one torch thread, while any thread is inside the context.

    Threads may enter and leave in any order: the first sets the values, the last restores them.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._undo = Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside > 1:
                return
            self._undo.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
            for module, name, value in (
                (layout, "PART_VALUES", WINDOWS * CONTEXT * len(RULE)),
                (layout, "PARTS", 2),  # a lone worker traces while the corpus is read
                (windows, "TOGETHER", 2),
                (parts, "POLL_SECONDS", 0.05),
            ):
                self._undo.enter_context(patch.object(module, name, value))

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._undo.close()


small_parts = _SmallParts()


@dataclass(frozen=True)
class Job:
    """A scan that several processes can work on."""

    model: Path
    corpus: Path
    out: Path
    lease: float = 600.0
    edges: int | None = None

    def run(self, worker: Worker | None = None) -> None:
        """Run one worker's share in this process."""
        with small_parts:
            tracer = Tracer.from_pretrained(self.model, device="cpu")
            scan(
                tracer, self.corpus, self.out, select=RULE, context=CONTEXT, batch_tokens=CONTEXT,
                edges=self.edges, worker=worker, lease_seconds=self.lease, progress=Meter(),
            )  # fmt: skip

    def started(self, count: int = 1) -> list[BaseProcess]:
        """Start workers as processes."""
        processes: list[BaseProcess] = [
            context.Process(target=self.run, args=(Worker(index, count),)) for index in range(count)
        ]
        for process in processes:
            process.start()
        return processes

    def finished(self, count: int = 1) -> None:
        """Run the scan to completion in processes."""
        for process in self.started(count):
            process.join()
            assert process.exitcode == 0


@dataclass(frozen=True)
class HeldJob(Job):
    """A scan whose workers each hold at the first part they claim, until `release` is called."""

    @property
    def _released(self) -> Path:
        return self.out.with_name(f"{self.out.name}.released")

    def release(self) -> None:
        """Let every worker go on."""
        self._released.touch()

    def run(self, worker: Worker | None = None) -> None:
        """Run one worker's share in this process."""
        take = Claims.take

        def take_and_hold(claims: Claims, part: int) -> bool:
            taken = take(claims, part)
            while taken and not self._released.exists():
                time.sleep(0.01)
            return taken

        with patch.object(Claims, "take", take_and_hold):
            super().run(worker)


def killed_until_complete(job: Job, workers: int, seconds: float, moments: random.Random) -> int:
    """Kill all workers at random moments of their first `seconds`, again and again.

    Returns:
        How many times they were killed before the scan was complete.
    """
    kills = 0
    while True:
        processes = job.started(workers)
        end = time.monotonic() + moments.uniform(0, seconds)
        while time.monotonic() < end and any(process.is_alive() for process in processes):
            time.sleep(0.001)
        alive = [process for process in processes if process.is_alive()]
        for process in alive:
            process.kill()
        for process in processes:
            process.join()
        if not alive:
            assert all(process.exitcode == 0 for process in processes)
            return kills
        kills += 1


def until(true: Callable[[], bool]) -> None:
    """Wait for what other processes do."""
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


def shards(path: Path) -> Mapping[str, bytes]:
    """Bytes of every shard, by array and part, without the leftovers of killed writes."""
    files = (file for file in path.rglob("c.*") if not file.name.endswith(".partial"))
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def beside(store: Path) -> list[str]:
    """Files next to a store that belong to it."""
    return [path.name for path in store.parent.iterdir() if path.name.startswith(f".{store.name}.")]


def assert_same_store(ours: Path, expected: Path) -> None:
    """Check that a store is complete, has the same bytes, and holds every token once."""
    store = open_store(ours)
    assert store.complete
    mine, theirs = shards(ours), shards(expected)
    assert sorted(mine) == sorted(theirs)
    different = [name for name in mine if mine[name] != theirs[name]]
    assert not different, different
    assert not [
        name for name in Folder(ours).files("part_done") if name.startswith(("claim", "failed"))
    ]
    tokens = store.tokens([])
    assert len(tokens) == store.attributes["tokens"]
    assert not tokens.duplicated(["document", "position"]).any()
    np.testing.assert_array_equal(tokens["token"], store.array("plan/token")[:])
