"""The memory that a process has held."""

import resource
import sys
from pathlib import Path

_CLEAR = Path("/proc/self/clear_refs")


def forget_peak() -> None:
    """Count the peak anew; where the system is not Linux, it stays that since the process began."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")  # proc(5): resets the peak resident set size


def peak_gib() -> float:
    """Return the peak of resident memory, GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # getrusage(2): bytes there, KiB elsewhere
