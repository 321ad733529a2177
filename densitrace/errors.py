"""The exceptions of densitrace: a base class, and a subclass per kind of failure.

Every message is one line that names the argument, its value and what would be right.
"""


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message that is not blank, or the name of its type.

    Example:
        >>> first_line(ValueError("no such key\n  at line 3")), first_line(KeyError())
        ('no such key', 'KeyError')
    """
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


class DensitraceError(Exception):
    """Base class of all exceptions that densitrace raises on purpose."""


class InputError(DensitraceError, ValueError):
    """An argument that cannot be used: a threshold out of range, an unknown token id."""


class ModelError(DensitraceError):
    """A model that cannot be loaded or traced: no weights, NaN, an undeclared architecture."""


class NotFiniteError(ModelError):
    """A model that computes NaN or infinity from its input; trying again does not help."""


class CorpusError(DensitraceError):
    """A corpus that cannot be read: no such file, nothing in it, the wrong field."""


class StoreError(DensitraceError):
    """A store that cannot be opened, written or continued."""


class NotPlannedError(StoreError):
    """A store that is not planned yet: its corpus was not read to the end."""


class ScanError(DensitraceError):
    """A scan in which some parts could not be traced; all others are done."""


class BackendError(DensitraceError):
    """A kernel backend that was requested and is not available on this machine."""
