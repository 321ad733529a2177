"""What densitrace logs, as a file of JSON lines: parts, seconds, failures."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from pythonjsonlogger.json import JsonFormatter

from ..errors import InputError


class _Lines(logging.FileHandler):
    """Appends to a file for as long as it can be written; says once that it cannot."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        """One line, where `logging` would print a traceback for each record."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)  # a record that is no JSON: ours to mend
        else:
            self._tell(error)

    def close(self) -> None:
        """What could not be written until now is given up."""
        try:
            super().close()
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            click.echo(
                f"densitrace: log {self.baseFilename!r} cannot be written: {error.strerror}; the "
                "scan goes on without it",
                err=True,
            )


@contextmanager
def json_log(path: Path | None) -> Iterator[None]:
    """What is logged meanwhile is appended to a file, too, a line at a time; None: to no file.

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
