"""A scan by workers of a Ray cluster: tasks that go through the parts as any worker does.

One task plans the store, then the workers share it: none of them waits for a plan in a place that
the planner needs. The store, and not Ray, knows what is done.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import InputError, NotPlannedError, ScanError
from .corpus import check_alone
from .parts import Worker, failures_of
from .place import place_of
from .progress import Meter, Reporter
from .run import Limits, parts_failed
from .scan import scan
from .scan_log import json_log
from .signals import stop_signals
from .store import Store, is_planned, open_place
from .tracer import Tracer

LOOK_SECONDS = 1.0  # between looks at how far the workers are
TRIES = 4  # of a worker: a part that kills its process would do so for ever

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What every task of a scan is given."""

    loading: Mapping[str, Any]
    corpus: str
    path: str
    log_file: Path | None
    options: Mapping[str, Any]

    def scan(self, worker: Worker, limits: Limits, overwrite: bool = False) -> None:
        """One worker's share, in this process."""
        with json_log(self.log_file):
            tracer = Tracer.from_pretrained(**self.loading)
            scan(
                tracer, self.corpus, self.path, worker=worker, limits=limits, progress=Meter(),
                overwrite=overwrite, **self.options,
            )  # fmt: skip


def plan(job: Job, workers: int, replaced: Mapping[str, Any] | None) -> None:
    """A task: plan the store, or find that a try before this one did.

    Args:
        replaced: attributes of the store to overwrite. Where there are others, what is there was
            planned by a process that died before it could say so.
    """
    overwrite = replaced is not None and replaced == _attributes(job.path)
    job.scan(Worker(0, workers), Limits(max_parts=0), overwrite)


def work(job: Job, worker: Worker, limits: Mapping[str, Any]) -> None:
    """A task: what one worker does. Ray cancels it by an interrupt, which leaves the part."""
    with stop_signals() as asked:
        job.scan(worker, Limits(asked=asked.is_set, **limits))


def start_ray() -> Any:
    """Ray, as a part of the cluster that this process belongs to, or of one of this machine alone.

    Its start sets handlers of signals: set others afterwards.

    Raises:
        InputError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("engine='ray' needs Ray: pip install 'densitrace[ray]'") from error
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
    asked: Callable[[], bool] = lambda: False,
    log_file: Path | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Store:
    """`scan` by several workers of the Ray cluster that this process belongs to, or of a local one.

    Every machine has to find the model, the corpus, the store and the log under the same paths.
    A worker whose process dies is started again, `TRIES` times in all; what one raises is raised
    when all have ended.

    Args:
        loading: arguments of `Tracer.from_pretrained`.
        corpus, path, overwrite, options: as `scan` takes them.
        workers: tasks; each has a GPU where there are any, and its share of the CPUs.
        limits: `max_parts` and `seconds` of each worker.
        progress: told how far all of them are.
        asked: whether to stop: the parts at hand are left.
        log_file: what every worker logs is appended to it, on the machine that it runs on.

    Raises:
        InputError: Ray is not installed, or `corpus` is standard input.
        ScanError: parts that could not be traced, or workers that died too often.
        DensitraceError: as `scan`.
    """
    check_alone(corpus, alone=False)
    ray = start_ray()
    where = str(path) if "://" in str(path) else str(Path(path).absolute())
    absolute = {
        name: str(Path(value).absolute()) if Path(value).exists() else str(value)
        for name, value in {"corpus": corpus, "model": loading["path"]}.items()
    }
    job = Job(
        {**loading, "path": absolute["model"]},
        absolute["corpus"],
        where,
        None if log_file is None else log_file.absolute(),
        options,
    )
    remote = ray.remote(max_retries=0, **_resources(ray, workers))  # `_Crew` tries again
    place = place_of(where)
    if overwrite or not is_planned(place):
        replaced = _attributes(where) if overwrite else None
        planner = _Crew(ray, [partial(remote(plan).remote, job, workers, replaced)])
        progress.begin("planning", None)
        try:
            planner.run(asked, lambda: None)
        finally:
            progress.end()
        if planner.stopped and not is_planned(place):  # whatever it raised as it was interrupted
            raise NotPlannedError(f"store {where!r} is not planned yet; the same scan starts again")
        if planner.errors:
            raise planner.errors[0]
    store = open_place(place, to_write=False)
    if not asked():
        starts = [
            partial(remote(work).remote, job, Worker(index, workers), limits)
            for index in range(workers)
        ]
        _work(_Crew(ray, starts), store, asked, progress)
    return store


def _resources(ray: Any, workers: int) -> dict[str, float]:
    """What a task asks for: no more CPUs than one machine has, or it would wait for ever."""
    everywhere = ray.cluster_resources()
    largest = max(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"])
    share = min(everywhere.get("CPU", 1) // workers, largest)
    return {"num_cpus": max(1, int(share)), "num_gpus": 1 if everywhere.get("GPU") else 0}


def _attributes(path: str) -> dict[str, Any] | None:
    """Those of the store that lies there; None where nothing does."""
    place = place_of(path)
    return open_place(place, to_write=False).attributes if is_planned(place) else None


def _work(crew: "_Crew", store: Store, asked: Callable[[], bool], progress: Reporter) -> None:
    """Until all workers have ended; tells of what they do, and raises what they raised."""
    seen = set(store.done_parts())

    def look() -> None:
        nonlocal seen
        with suppress(OSError):  # what cannot be read now may be in a moment
            done, failed = set(store.done_parts()), failures_of(store.place)
            tokens = store.part_tokens(done)
            progress.advance(store.part_tokens(done - seen))
            progress.parts(len(done), store.n_parts, len(failed), tokens)
            seen = done

    progress.begin("tracing", int(store.lengths.sum()), store.part_tokens(seen))
    try:
        crew.run(asked, look)
    finally:
        progress.end()
    for error in crew.errors:
        if not isinstance(error, ScanError):
            raise error
    failed = failures_of(store.place)  # what one worker could not trace another may have
    if crew.errors and failed:
        raise parts_failed(failed, store.n_parts)
    if crew.errors and not store.complete:
        raise crew.errors[0]


class _Crew:
    """Tasks of a cluster, each started again when its process dies, a few times.

    Attributes:
        errors: what tasks raised; a ScanError of each that died too often.
        stopped: they were told to leave.
    """

    def __init__(self, ray: Any, starts: Sequence[Callable[[], Any]]) -> None:
        self.errors: list[Exception] = []
        self.stopped = False
        self._ray, self._starts = ray, starts
        self._tries = [0] * len(starts)
        self._running: dict[Any, int] = {}

    def run(self, asked: Callable[[], bool], look: Callable[[], None]) -> None:
        """Until all have ended, well or not; `look` is called now and then, and at the end."""
        try:
            for number in range(len(self._starts)):
                self._start(number)
            while self._running:
                ended, _ = self._ray.wait(list(self._running), timeout=LOOK_SECONDS)
                look()
                for task in ended:
                    self._end(task)
                if asked() and not self.stopped:
                    self.stopped = True
                    for task in self._running:
                        self._ray.cancel(task)
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
            pass  # before it had begun, or while it loaded the model
        except exceptions.RayTaskError as error:
            log.error("worker failed", extra={"worker": number, "reason": str(error.cause)})
            self.errors.append(error.cause)
        except exceptions.RayError as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            log.warning("worker died", extra={"worker": number, "reason": reason})
            if self._tries[number] < TRIES and not self.stopped:
                self._start(number)
            elif not self.stopped:
                self.errors.append(
                    ScanError(
                        f"worker {number} died {TRIES} times ({reason}); what is done stays, the "
                        "same command goes on"
                    )
                )
