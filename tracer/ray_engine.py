"""A scan by workers of a Ray cluster: tasks that go through the parts as any worker does.

Ray starts a task again whose process died; the store, and not Ray, knows what is done.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, StoreError
from .parts import Worker
from .place import place_of
from .progress import Meter, Reporter
from .store import Store, open_place
from .tracer import Tracer

LOOK_SECONDS = 1.0  # between looks at how far the workers are


def work(
    loading: Mapping[str, Any],
    corpus: str,
    path: str,
    worker: Worker,
    limits: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:
    """What one worker does, in a process of its own."""
    from .run import Limits
    from .scan import scan

    tracer = Tracer.from_pretrained(**loading)
    scan(tracer, corpus, path, worker=worker, limits=Limits(**limits), progress=Meter(), **options)


def scan_with_ray(
    loading: Mapping[str, Any],
    corpus: str | Path,
    path: str | Path,
    *,
    workers: int,
    limits: Mapping[str, Any],
    progress: Reporter,
    **options: Any,
) -> Store:
    """`scan` by several workers of the Ray cluster that this process belongs to, or of a local one.

    Every machine has to find the model, the corpus and the store under the same paths.

    Args:
        loading: arguments of `Tracer.from_pretrained`.
        corpus, path, options: as `scan` takes them.
        workers: tasks; each has a GPU where there are any, and its share of the CPUs.
        limits: `max_parts` and `seconds` of each worker.
        progress: told how far all of them are.

    Raises:
        InputError: Ray is not installed.
        DensitraceError: as `scan`.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("engine='ray' needs Ray: pip install 'densitrace[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    task = ray.remote(
        max_retries=-1,  # of processes that die; what a worker raises is raised here
        num_cpus=max(1, int(resources.get("CPU", 1) // workers)),
        num_gpus=1 if resources.get("GPU") else 0,
    )(work)
    absolute = {
        name: str(Path(value).absolute()) if Path(value).exists() else str(value)
        for name, value in {"corpus": corpus, "model": loading["path"]}.items()
    }
    where = str(path) if "://" in str(path) else str(Path(path).absolute())
    waiting = [
        task.remote(
            {**loading, "path": absolute["model"]},
            absolute["corpus"],
            where,
            Worker(index, workers),
            limits,
            options,
        )
        for index in range(workers)
    ]
    seen: set[int] | None = None
    try:
        while waiting:
            finished, waiting = ray.wait(waiting, timeout=LOOK_SECONDS)
            seen = _tell(where, seen, progress)
            for one in finished:
                _result(ray, one)
    finally:
        progress.end()
        for one in waiting:
            ray.cancel(one, force=True)
    return open_place(place_of(where), to_write=False)


def _result(ray: Any, task: Any) -> None:
    """Raise what the worker raised, as it raised it."""
    try:
        ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def _tell(path: str, seen: set[int] | None, progress: Reporter) -> set[int] | None:
    """Tell which parts are done that were not `seen`; None while nothing is planned."""
    try:
        store = open_place(place_of(path), to_write=False)
    except StoreError:
        return None
    done = set(store.done_parts())
    tokens = sum(map(store.part_tokens, done))
    if seen is None:
        progress.begin("tracing", int(store.lengths.sum()), tokens)
    else:
        progress.advance(sum(map(store.part_tokens, done - seen)))
    progress.parts(len(done), store.n_parts, 0, tokens)
    return done
