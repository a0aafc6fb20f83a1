"""No command opens a socket or asks a name server, except to download from the Hub."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import ROOT
from tests.cli.no_network import KILLED, SOCKET_CALL

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in SOCKET_CALL, reason="the filter is Linux's"
)

# One after the other in one process, which lives until ONNX Runtime would have sent what it records.
SENT_AFTER = 12  # seconds after its import; seen after ten
COMMANDS = """
import time
from click.testing import CliRunner
from converter.cli import cli
from tests.cli.no_network import forbid_sockets

forbid_sockets()
began = time.monotonic()
for line in {lines}:
    print(line, flush=True)
    result = CliRunner().invoke(cli, line.split())
    assert result.exit_code == 0, result.output
time.sleep(max(0, {seconds} - (time.monotonic() - began)))
"""
LINES = (
    "generate my-gpt2-onnx Once -n 2",  # first, as it imports ONNX Runtime
    "convert my-gpt2 out --precision fp32,int8",
    "convert my-gpt2 saved --to hf",
    "check my-gpt2 out",
    "verify out",
    "inspect my-gpt2",
    "inspect out",
    "score out my.txt",
    "run qa-onnx Once --question Who",
    "bench out --quick --precision fp32 --contexts 8 --prompt-lengths 8 --new-tokens 4",
)


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in ``folder`` without the variables that the tests set for themselves."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, cwd=folder, env=environment
    )


@pytest.fixture
def filters(tmp_path: Path) -> None:
    done = run("from tests.cli.no_network import forbid_sockets; forbid_sockets()", tmp_path)
    if done.returncode:
        pytest.skip(done.stderr)


@pytest.mark.usefixtures("filters")
def test_no_command_opens_a_socket(things: Path, tmp_path: Path) -> None:
    here = shutil.copytree(things, tmp_path / "here", symlinks=True)
    done = run(COMMANDS.format(lines=LINES, seconds=SENT_AFTER), here)
    assert done.returncode == 0, f"{done.returncode} after {done.stdout.splitlines()[-1:]}: {done.stderr}"


@pytest.mark.usefixtures("filters")
@pytest.mark.parametrize("call", ["socket()", "getaddrinfo('localhost.invalid', 443)"])
def test_a_process_that_opens_one_is_killed(tmp_path: Path, call: str) -> None:
    code = f"import socket; from tests.cli.no_network import forbid_sockets; forbid_sockets(); socket.{call}"
    assert run(code, tmp_path).returncode == KILLED
