"""Checks of arguments that several functions of this part take."""

from collections.abc import Sequence

from ..errors import InputError
from ..tracer.indices import whole

SEEDS = 1 << 32  # of NumPy's older generators, which shap and scikit-learn use


def given_names(argument: str, names: Sequence[str] | None) -> None:
    """Refuse one name where a list of them is needed.

    Args:
        argument: what the names are given as, for the message.
        names: the argument's value.

    Raises:
        InputError: a single string.
    """
    if isinstance(names, str):
        raise InputError(f"{argument}={names!r} is one name: give a list of them")


def given_seed(seed: int) -> int:
    """Check the seed of a random draw.

    Raises:
        InputError: it is no whole number from 0 to 2^32 - 1.

    Example:
        >>> given_seed(7)
        7
    """
    number = whole("seed", seed, least=0)
    if number >= SEEDS:
        raise InputError(f"seed={number} is not below 2^32")
    return number
