"""Runs the command line, in this process or in another, and looks at what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from converter.cli import cli

ROOT = Path(__file__).parents[2]


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)


def succeed(*arguments: object, stdin: str | None = None) -> Result:
    """Run a command that must end with exit code 0."""
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result


def process(*arguments: object, code: str = "from converter.cli import cli; cli()") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


def assert_one_sentence(result: Result, *parts: str) -> None:
    """Exit code 2, one line on standard error, no traceback, and all of ``parts`` in it."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("gpt2onnx: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr
