"""Write densitrace's log (parts, seconds, failures) to a file as JSON lines."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from pythonjsonlogger.json import JsonFormatter

from ..errors import InputError


class _Lines(logging.FileHandler):
    """Appends records to a file; reports once if the file cannot be written any more."""

    _reported = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Report a failed write in one line, instead of a traceback per record."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)  # a record that JSON cannot encode: a bug of densitrace
        else:
            self._report(error)

    def close(self) -> None:
        """Close the file; records that cannot be written are lost."""
        try:
            super().close()
        except OSError as error:
            self._report(error)

    def _report(self, error: OSError) -> None:
        if not self._reported:
            self._reported = True
            click.echo(
                f"densitrace: log {self.baseFilename!r} cannot be written: {error.strerror}; the "
                "scan goes on without it",
                err=True,
            )


@contextmanager
def json_log(path: Path | None) -> Iterator[None]:
    """Append the log to a file too, one JSON object per line, inside the context.

    Args:
        path: the file; None: none.

    Raises:
        InputError: the file cannot be opened.
    """
    if path is None:
        yield
        return
    try:
        handler = _Lines(path, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror}") from error
    handler.setFormatter(
        JsonFormatter("{asctime}{levelname}{process}{message}", style="{", timestamp=True)
    )
    logger = logging.getLogger("densitrace")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
