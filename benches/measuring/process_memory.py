"""Memory of a process as Linux counts it, from /proc.

getrusage does not serve: it also counts what the parent held at the fork.
"""

from pathlib import Path


def peak_bytes(pid: int | str = "self") -> int:
    """Peak memory of a process, pages of mapped files included; 0 once it has ended."""
    return _status_bytes(pid, "VmHWM")


def held_bytes(pid: int | str = "self") -> int:
    """Memory that a process holds; 0 once it has ended."""
    return _status_bytes(pid, "VmRSS")


def forget_peak() -> None:
    """Reset this process's peak to what it holds now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status_bytes(pid: int | str, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    kibibytes = (line.split()[1] for line in lines if line.startswith(name))
    return 1024 * int(next(kibibytes, 0))  # a process that has ended but is not reaped has none
