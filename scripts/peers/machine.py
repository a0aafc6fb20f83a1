"""Describe the machine on which the figures depend."""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path


def machine() -> str:
    """Return the date, the processor, and other facts on which the figures depend."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{time.strftime('%Y-%m-%d')}, {processor()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory, "
        f"{platform.system()}, Python {platform.python_version()}."
    )


def processor() -> str:
    """Return the processor's model, and the instructions that decide how fast low precisions are."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = values.get("flags", "").split()
    useful = [
        flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8") if flag in flags
    ]
    name = values.get("model name", platform.machine() or sys.platform)
    return f"{name} ({' '.join(useful)})" if useful else name
