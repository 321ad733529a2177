"""A machine for PTX: runs what the compilers make of a kernel for a GPU, where there is none."""

from .counts import Counts
from .launching import launch
from .machine import Launch
from .memory import PtxError
from .program import Entry, entries

__all__ = ["Counts", "Entry", "Launch", "PtxError", "entries", "launch"]
