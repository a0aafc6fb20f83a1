"""Give memory that is no longer needed back to the system at once: models of many gigabytes follow one another."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Collection
from pathlib import Path

MADV_DONTNEED = 4  # linux/mman.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h

LARGE_BLOCK = 2**30

# From this many parameters on blocks are not kept: weights would lie among them and could not be given back.
LARGE_MODEL = 500_000_000

# From this many parameters on it pays to look for memory to give back: 64 MB in float32, for about 0.1 s.
WORTH_RELEASING = 16_000_000


def keep_large_blocks() -> None:
    """Make glibc reuse blocks of up to a gigabyte; ``release_memory`` still gives them back.

    Otherwise glibc maps, zeroes and unmaps such blocks for every operation, which takes a fifth of the time of a check.
    Only for a process that does nothing else.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
        mallopt(M_TRIM_THRESHOLD, 2 * LARGE_BLOCK - 1)


def release_memory(parameters: int) -> None:
    """Give back what the legs of a model with this many parameters have freed.

    glibc would keep every block below 32 MB, which adds up to a whole model. Small models are left alone.
    """
    if parameters < WORTH_RELEASING:
        return
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def forget_pages(files: Collection[Path]) -> None:
    """Unload what has been read of these mapped files. The mappings stay, and read again what is used again.

    Nothing here writes to a mapped weight, so every page holds what the file holds. This is for Linux only; other
    systems take such pages back when they need them.
    """
    if sys.platform != "linux":
        return
    names = {os.path.realpath(file) for file in files}
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            span, mode, _, _, _, *name = line.rstrip("\n").split(maxsplit=5)
            if name and name[0] in names and mode.startswith("r"):
                begin, end = (int(address, 16) for address in span.split("-"))
                libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_DONTNEED)
