"""Puts weights that have been laid out anew on pages of 2 MiB, once a model has run for a while.

Decoding reads all weights for every token, and with pages of 4 KiB the processor is busy looking up where they are:
with large ones it decodes 6 to 10 % faster (docs/bench.md). Memory of the C library is on small pages unless the
environment asked otherwise before the process began, but Linux 6.1 and newer move it on request (madvise(2),
MADV_COLLAPSE). It takes a second for 500 MB, so only what runs on gets it, beside the work of others; where it cannot
be had nothing changes.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

PAGE = 2 << 20
MADV_COLLAPSE = 25

# What is smaller fits into the caches of processors, or nearly so.
LEAST_BYTES = 32 << 20

# By then it is no short text. At 10 % a step saved, moving pays off within another few hundred.
AFTER_STEPS = 64

Region = tuple[int, int]  # first address, and the one after the last


def regions() -> frozenset[Region]:
    """Return the large private regions of this process's memory that belong to no file, in whole pages."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(region for region in _anonymous(lines) if region[1] - region[0] >= LEAST_BYTES)


def _anonymous(lines: list[str]) -> Iterator[Region]:
    for line in lines:
        addresses, access, _, _, inode, *_ = line.split()
        if access == "rw-p" and inode == "0":
            begin, end = (int(address, 16) for address in addresses.split("-"))
            yield -(-begin // PAGE) * PAGE, end // PAGE * PAGE


def collapse(region: Region) -> bool:
    """Move a region to large pages; tell whether the kernel did so."""
    if not sys.platform.startswith("linux"):
        return False
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return madvise(region[0], region[1] - region[0], MADV_COLLAPSE) == 0


class Mover:
    """Moves the memory that was added since ``before`` to large pages, in a thread, after a number of steps."""

    def __init__(self, before: frozenset[Region]) -> None:
        self.regions, self.steps = regions() - before, 0
        self.thread: threading.Thread | None = None

    def step(self) -> None:
        """Note that one more step was run."""
        self.steps += 1
        if self.steps == AFTER_STEPS and self.regions:
            self.thread = threading.Thread(target=self._move, name="huge pages", daemon=True)
            self.thread.start()

    def _move(self) -> None:
        for region in self.regions:
            collapse(region)
