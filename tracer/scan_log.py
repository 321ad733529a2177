"""What densitrace logs, as a file of JSON lines: parts, seconds, failures."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pythonjsonlogger.json import JsonFormatter

from ..errors import InputError


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
        handler = logging.FileHandler(path, encoding="utf-8")
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
