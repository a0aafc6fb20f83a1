"""The command line, called in this process or as one of its own."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from converter.cli import cli

Run = Callable[..., Result]
Watch = Callable[..., tuple[int, str]]


@pytest.fixture
def run() -> Run:
    """``run(*arguments, stdin=None, **environment)`` in this process."""

    def invoke(*arguments: object, stdin: str | None = None, **environment: str | None) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin, env=environment)

    return invoke


@pytest.fixture
def watch() -> Watch:
    """``watch(*arguments, columns=80, **environment)``: the exit code, and what a terminal so wide is sent."""

    def show(*arguments: object, columns: int = 80, **environment: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "converter.cli", *map(str, arguments)]
        master, slave = pty.openpty()
        size = {"COLUMNS": str(columns), "LINES": "40"}
        with subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=plain_environment() | size | environment
        ) as running:
            os.close(slave)
            shown = b""
            while chunk := _read(master):
                shown += chunk
            running.wait(120)
        os.close(master)
        return running.returncode, shown.decode()

    return show


def plain_environment() -> dict[str, str]:
    """This process's, without what says how a terminal should look."""
    told = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS", "LINES", "TTY_COMPATIBLE")
    kept: Mapping[str, str] = {key: value for key, value in os.environ.items() if key not in told}
    return {**kept, "TERM": "xterm-256color", "PYTHONPATH": str(Path(__file__).parents[2])}


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other end of a pseudo-terminal is closed
        return b""
