"""Whole numbers as users give them, and values as messages show them."""

import operator
from typing import Any

from ..errors import InputError


def shown(value: Any) -> str:
    r"""Show a value in a message of one line.

    Example:
        >>> shown([[1, 2]] * 30)
        '[[1, 2], [1, 2], [1, 2], [1, 2], [1, 2], [1, 2], [1, 2], [1, 2], [1, 2], [1,...'
    """
    line = " ".join(repr(value).split())
    return line if len(line) <= 80 else f"{line[:77]}..."


def whole(name: str, value: Any, least: int | None = None) -> int:
    """Check a whole number of any kind: also of numpy, or a tensor.

    Args:
        name: of the argument, for the message.
        least: the smallest number allowed; None for no bound.

    Raises:
        InputError: it is no whole number, or below `least`.

    Example:
        >>> whole("seed", True)
        1
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name}={shown(value)} is not a whole number") from None
    if least is not None and number < least:
        raise InputError(f"{name}={number} is below {least}")
    return number


def from_start(name: str, index: int, count: int, things: str) -> int:
    """Turn an index that may count from the end into one from the start.

    Args:
        name: of the argument, for the message.
        index: -count to count - 1.
        count: number of things.
        things: what is indexed, in the plural, for the message.

    Raises:
        InputError: the index is no whole number, or out of range.

    Example:
        >>> from_start("layer", -1, 6, "blocks of the model")
        5
    """
    index = whole(name, index)
    if not -count <= index < count:
        raise InputError(f"{name}={index} is outside the {count} {things}")
    return index % count
