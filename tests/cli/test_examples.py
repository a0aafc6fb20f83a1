"""Every example that --help shows is run as it stands, those of a command one after the other in one folder."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from converter.cli import cli
from converter.cli.group import Command
from converter.parity.seeded import mutations
from tests.workplace import CONVERTED

Run = Callable[..., Result]

IN_A_SHELL = "|<>$"  # what only a shell understands


@pytest.fixture
def workplace(things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with copies of everything; the home folder, too."""
    here = tmp_path / "here"
    shutil.copytree(things, here, symlinks=True)
    (here / ".config" / "fish" / "completions").mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as conftest.py has it in this process
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return here


async def stop(_: Any) -> None:
    """Stop a server."""


@pytest.mark.parametrize("command", [cli, *cli.commands.values()], ids=lambda command: command.name)
def test_the_examples_of_the_help_work(
    run: Run, workplace: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "convert" in (command.name, *(line.split()[1] for line in command.examples)):
        for out in CONVERTED.values():  # which they are about to write
            shutil.rmtree(out)
    if command.name == "check":  # --prove tries two defects in a small model: tests/parity tries them all
        monkeypatch.setattr("converter.data.CHECKPOINT", workplace / "my-gpt2")
        monkeypatch.setattr("converter.parity.seeded.prove.defects", lambda config: mutations.MUTATIONS[:2])
    if command.name == "serve":  # which ends as soon as it has begun, on a port that is free
        pytest.importorskip("ray.serve", reason="the extra ray is not installed")
        from converter.serving import ray, server

        monkeypatch.setattr(ray, "told_to_end", lambda: nullcontext(SimpleNamespace(wait=lambda: None)))

        monkeypatch.setattr(server.Server, "main_loop", stop)
        monkeypatch.setattr(server, "listen", lambda host, port, listen=server.listen: listen(host, 0))
    for line in command.examples:
        if set(line) & set(IN_A_SHELL):
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}: {done.stderr}"
        else:
            program, *arguments = shlex.split(line, comments=True)
            assert program == "gpt2onnx"
            result = run(*arguments)
            assert result.exit_code == 0, f"{line}: {result.output}"
