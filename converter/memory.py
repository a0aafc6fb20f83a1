"""The memory of this process."""

from __future__ import annotations

import sys


def peak_memory() -> int | None:
    """Return the most memory that this process has held, in bytes, mapped files included; None where nobody counts."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
