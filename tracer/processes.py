"""Processes of a host, by what they leave behind: whether one is still there."""

import os
import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class Process:
    """A process of some host."""

    host: str
    number: int

    @classmethod
    def this(cls) -> "Process":
        """The one that asks."""
        return cls(socket.gethostname(), os.getpid())

    def gone(self) -> bool:
        """Whether it is known to be gone: what other hosts run is not known."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.number, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # somebody else's
            pass
        return False
