"""Run the explanation of densities by factors while the rest of a report is made."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context, parent_process
from threading import Thread

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
        initializer=_prepare,
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


def _prepare() -> None:
    """Prepare the separate process, which must neither outlive the other one nor report for it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt on a terminal reaches both
    Thread(target=_end_with_parent, daemon=True).start()
    import_module(f"{__package__}.explain")


def _end_with_parent() -> None:
    """End this process as soon as the one that started it has died, however that was."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
