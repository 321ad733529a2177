"""Whole numbers, and indices that may count from the end, as users give them."""

from operator import index as as_index
from typing import Any

from ..errors import InputError


def whole_number(name: str, value: Any) -> int:
    """Return a whole number, of NumPy or torch too, as an int, which JSON holds.

    Args:
        name: of the argument, for the message.
        value: of the argument.

    Raises:
        InputError: the value is no whole number.

    Example:
        >>> whole_number("seed", np.int64(3))
        3
    """
    try:
        if not isinstance(value, bool):
            return as_index(value)
    except TypeError:
        pass
    raise InputError(f"{name}={value!r} is not a whole number")


def from_start(name: str, index: int, count: int, things: str) -> int:
    """Turn an index that may count from the end into one from the start.

    Args:
        name: of the argument, for the message.
        index: -count to count - 1.
        count: number of things.
        things: what is indexed, in the plural, for the message.

    Raises:
        InputError: the index is out of range.

    Example:
        >>> from_start("layer", -1, 6, "blocks of the model")
        5
    """
    if not -count <= index < count:
        raise InputError(f"{name}={index} is outside the {count} {things}")
    return index % count
