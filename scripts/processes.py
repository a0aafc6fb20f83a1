"""Run a process to its end, and measure what it takes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Run:
    """The time, peak memory and output of one process."""

    seconds: float
    peak_bytes: int
    output: str


def measure(
    command: list[str],
    expected: tuple[int, ...] = (0,),
    log: Path | None = None,
    limit: float | None = None,
    env: Mapping[str, str] | None = None,
) -> Run:
    """Run a process to its end, or kill it at the limit. Its peak memory is the kernel's ``ru_maxrss``.

    If there is a log, both errors and output go there.
    """
    began = time.perf_counter()
    errors = log.open("w", encoding="utf-8") if log else None
    with subprocess.Popen(
        command, stdout=errors or subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=env
    ) as process:
        killer = threading.Timer(limit or threading.TIMEOUT_MAX, process.kill)
        killer.daemon = True
        killer.start()
        output = process.stdout.read() if process.stdout is not None else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        killer.cancel()
    seconds = time.perf_counter() - began
    if errors:
        errors.close()
    if process.returncode not in expected:
        raise click.ClickException(f"{' '.join(command)} ended with {process.returncode}:\n{output}")
    return Run(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), output)
