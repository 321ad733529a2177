"""Run the explanation of densities by factors while the rest of a report is made."""

from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context

from ..errors import DensitraceError


@contextmanager
def explainer(separate_process: bool) -> Iterator[Executor]:
    """Open an executor for explanations: a separate process, or a thread of this one.

    Raises:
        DensitraceError: the separate process died while the context was open.
    """
    if not separate_process:
        with ThreadPoolExecutor(1, "densitrace-explainer") as thread:
            yield thread
        return
    process = ProcessPoolExecutor(
        1,
        mp_context=get_context("spawn"),
        initializer=import_module,
        initargs=(f"{__package__}.explain",),
    )
    try:
        process.submit(int)  # start the process now: importing shap takes seconds
        yield process
    except BrokenProcessPool as error:
        raise DensitraceError(
            "the process that explains densities by factors died: it ran out of memory, or the "
            'script does not guard its work by `if __name__ == "__main__"`; '
            "a report without factors needs no such process"
        ) from error
    finally:
        process.shutdown(wait=False, cancel_futures=True)  # do not wait: it takes a while to end
