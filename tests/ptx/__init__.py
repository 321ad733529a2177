"""A simulated PTX machine: runs the compiled GPU code of a kernel without a GPU."""

from .counts import Counts
from .launching import launch
from .machine import Launch
from .memory import Array, PtxError
from .program import Entry, entries

__all__ = ["Array", "Counts", "Entry", "Launch", "PtxError", "entries", "launch"]
