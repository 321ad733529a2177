"""Scan with workers of a Ray cluster: tasks that trace parts as any other worker does.

One task plans the store, and only then do the workers start, so that none of them occupies
resources that the planner needs. The store, not Ray, keeps track of what is done.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import InputError, NotPlannedError, ScanError, first_line
from .corpus import check_alone
from .parts import Worker, failures_of
from .progress import Meter, Reporter
from .run import Limits, parts_failed
from .scan import scan
from .scan_log import json_log
from .signals import stop_signals
from .storage import storage_of
from .store import Store, is_planned, open_store_in
from .tracer import Tracer

LOOK_SECONDS = 1.0  # between progress reports
STOP_LOOKS = 10  # after which tasks that were asked to stop are asked again
TRIES = 4  # starts of a worker, at most: some part may kill its process every time

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayJob:
    """The arguments that all tasks of a scan share."""

    loading: Mapping[str, Any]
    corpus: str
    path: str
    log_file: Path | None
    options: Mapping[str, Any]

    def scan(self, worker: Worker, limits: Limits, overwrite: bool = False) -> None:
        """Do one worker's share in this process."""
        with json_log(self.log_file):
            tracer = Tracer.from_pretrained(**self.loading)
            scan(
                tracer, self.corpus, self.path, worker=worker, limits=limits, progress=Meter(),
                overwrite=overwrite, **self.options,
            )  # fmt: skip


def plan(job: RayJob, workers: int, replaced: Mapping[str, Any] | None) -> None:
    """Task: plan the store, unless an earlier try of this task already did.

    Args:
        job: the scan.
        workers: of the scan.
        replaced: attributes of the store to overwrite; None: there is none. If those found differ,
            an earlier try of this task planned the store and died before it could report.
    """
    overwrite = replaced is not None and replaced == _attributes(job.path)
    with stop_signals() as stop:
        job.scan(Worker(0, workers), Limits(max_parts=0, should_stop=stop.is_set), overwrite)


def work(job: RayJob, worker: Worker, limits: Mapping[str, Any]) -> None:
    """Task: one worker's share. Ray cancels it with an interrupt, which abandons the part."""
    with stop_signals() as stop:
        job.scan(worker, Limits(should_stop=stop.is_set, **limits))


def start_ray() -> Any:
    """Connect to the Ray cluster of this process, or start a local one, and return the module.

    This installs Ray's signal handlers: install your own afterwards.

    Raises:
        InputError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "engine='ray' needs Ray: pip install '.[ray]' in a checkout of densitrace"
        ) from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    return ray


def scan_with_ray(
    loading: Mapping[str, Any],
    corpus: str | Path,
    path: str | Path,
    *,
    workers: int,
    limits: Mapping[str, Any],
    progress: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
    log_file: Path | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Store:
    """Run `scan` with several workers of this process's Ray cluster, or of a local one.

    The model, the corpus, the store and the log must have the same paths on every machine.
    A worker whose process dies is restarted, up to `TRIES` starts; errors that workers raise are
    raised once all have ended.

    Args:
        loading: arguments of `Tracer.from_pretrained`.
        corpus, path, overwrite, options: see `scan`.
        workers: number of tasks; each gets its share of the CPUs, and a GPU if there are any.
        limits: `max_parts` and `seconds` of each worker.
        progress: receives the progress of all workers together.
        should_stop: polled; True stops the workers, which abandon the parts they are at.
        log_file: every worker appends its log to this file, on the machine that it runs on.

    Returns:
        The store, complete unless stopped by `limits` or `should_stop`.

    Raises:
        InputError: Ray is not installed, or `corpus` is standard input.
        ScanError: parts could not be traced, or workers died too often.
        DensitraceError: see `scan`.
    """
    check_alone(corpus, alone=False)
    ray = start_ray()
    location = str(path) if "://" in str(path) else str(Path(path).absolute())
    absolute = {
        name: str(Path(value).absolute()) if Path(value).exists() else str(value)
        for name, value in {"corpus": corpus, "model": loading["path"]}.items()
    }
    job = RayJob(
        {**loading, "path": absolute["model"]},
        absolute["corpus"],
        location,
        None if log_file is None else log_file.absolute(),
        options,
    )
    remote = ray.remote(max_retries=0, **_resources(ray, workers))  # `_Crew` tries again
    storage = storage_of(location)
    if overwrite or not is_planned(storage):
        replaced = _attributes(location) if overwrite else None
        planner = _Crew(ray, [partial(remote(plan).remote, job, workers, replaced)])
        progress.begin("planning", None)
        try:
            planner.run(should_stop, lambda: None)
        finally:
            progress.end()
        if planner.stopped and not is_planned(storage):  # its errors come from the interrupt
            raise NotPlannedError(f"store {location!r} is not planned yet; run the same scan again")
        if planner.errors:
            raise planner.errors[0]
    store = open_store_in(storage, to_write=False)
    if not should_stop():
        starts = [
            partial(remote(work).remote, job, Worker(index, workers), limits)
            for index in range(workers)
        ]
        _work(_Crew(ray, starts), store, should_stop, progress)
    return store


def _resources(ray: Any, workers: int) -> dict[str, float]:
    """Return a task's resources: never more CPUs than one machine has, or it would never start."""
    total = ray.cluster_resources()
    largest = max(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"])
    share = min(total.get("CPU", 1) // workers, largest)
    return {"num_cpus": max(1, int(share)), "num_gpus": 1 if total.get("GPU") else 0}


def _attributes(path: str) -> dict[str, Any] | None:
    """Return the attributes of the store at `path`, or None if nothing is planned there."""
    storage = storage_of(path)
    return open_store_in(storage, to_write=False).attributes if is_planned(storage) else None


def _work(crew: "_Crew", store: Store, should_stop: Callable[[], bool], progress: Reporter) -> None:
    """Run the workers to their end, report their progress, and raise what they raised."""
    seen = set(store.done_parts())

    def look() -> None:
        nonlocal seen
        with suppress(OSError):  # may be transient; the next call tries again
            done, failed = set(store.done_parts()), failures_of(store.storage)
            tokens = store.part_tokens(done)
            progress.advance(store.part_tokens(done - seen))
            progress.parts(len(done), store.n_parts, len(failed), tokens)
            seen = done

    progress.begin("tracing", int(store.lengths.sum()), store.part_tokens(seen))
    try:
        crew.run(should_stop, look)
    finally:
        progress.end()
    for error in crew.errors:
        if not isinstance(error, ScanError):
            raise error
    failed = failures_of(store.storage)  # without those that another worker traced after all
    if crew.errors and failed:
        raise parts_failed(failed, store.n_parts)
    if crew.errors and not store.complete:
        raise crew.errors[0]


class _Crew:
    """Runs tasks on a cluster, restarting each up to `TRIES` starts if its process dies.

    Attributes:
        errors: the errors that tasks raised; a ScanError for each that died too often.
        stopped: whether the tasks were asked to stop.
    """

    def __init__(self, ray: Any, starts: Sequence[Callable[[], Any]]) -> None:
        self.errors: list[Exception] = []
        self.stopped = False
        self._ray, self._starts = ray, starts
        self._tries = [0] * len(starts)
        self._running: dict[Any, int] = {}

    def run(self, should_stop: Callable[[], bool], look: Callable[[], None]) -> None:
        """Wait until all tasks have ended, well or not; call `look` regularly and at the end."""
        asked = 0  # looks since the tasks were asked to stop
        try:
            for number in range(len(self._starts)):
                self._start(number)
            while self._running:
                ended, _ = self._ray.wait(list(self._running), timeout=LOOK_SECONDS)
                look()
                for task in ended:
                    self._end(task)
                self.stopped = self.stopped or should_stop()
                if self.stopped:
                    # An interrupt may be lost: some imports catch every exception.
                    if asked % STOP_LOOKS == 0:
                        for task in self._running:
                            self._ray.cancel(task)
                    asked += 1
        finally:
            for task in self._running:
                self._ray.cancel(task, force=True)

    def _start(self, number: int) -> None:
        self._tries[number] += 1
        self._running[self._starts[number]()] = number

    def _end(self, task: Any) -> None:
        number, exceptions = self._running.pop(task), self._ray.exceptions
        try:
            self._ray.get(task)
        except exceptions.TaskCancelledError:
            pass  # cancelled before it began, or while it loaded the model
        except exceptions.RayTaskError as error:
            log.error("worker failed", extra={"worker": number, "reason": str(error.cause)})
            self.errors.append(error.cause)
        except exceptions.RayError as error:
            reason = first_line(error)
            log.warning("worker died", extra={"worker": number, "reason": reason})
            if self._tries[number] < TRIES and not self.stopped:
                self._start(number)
            elif not self.stopped:
                self.errors.append(
                    ScanError(
                        f"worker {number} died {TRIES} times ({reason}); finished parts are kept, "
                        "run the same command to continue"
                    )
                )
