"""Indices that may count from the end, as users give them."""

from ..errors import InputError


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
