"""Standard output and standard error that take nothing: full disks, closed streams, readers that left."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import ROOT

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no disk that is always full")

PRINTS = ("--help", "inspect {source}", "generate {out} 1 --ids -n 1", "inspect {out} --json")
REFUSES = ("--nonsense", "inspect nowhere", "generate")
CLOSED = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-"}


@pytest.fixture(scope="module")
def names(things: Path) -> dict[str, str]:
    return {"source": str(things / "my-gpt2"), "out": str(things / "my-gpt2-onnx")}


def shell(line: str, redirected: str) -> subprocess.CompletedProcess[str]:
    """Run a command line of ours with redirections of a shell."""
    command = ["bash", "-c", f'"$0" -m converter {line} {redirected}', sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=environment
    )


@pytest.mark.parametrize("line", PRINTS)
def test_a_full_disk_is_bad_output_and_no_fault_of_ours(line: str, names: dict[str, str]) -> None:
    done = shell(line.format(**names), ">/dev/full")
    assert done.returncode == 2
    assert done.stderr.endswith(f"gpt2onnx: the output cannot be written: {os.strerror(errno.ENOSPC)}\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("line", PRINTS)
def test_what_standard_error_does_not_take_changes_no_exit_code(line: str, names: dict[str, str]) -> None:
    done = shell(line.format(**names), "2>/dev/full")
    assert (done.returncode, bool(done.stdout)) == (0, True)


@pytest.mark.parametrize("line", REFUSES)
def test_a_refusal_that_nobody_can_read_is_still_a_refusal(line: str) -> None:
    for redirected in ("2>/dev/full", "2>&-", ">&- 2>&-", "2>&1 >&- | true; exit ${PIPESTATUS[0]}"):
        assert shell(line, redirected).returncode == 2, redirected


@pytest.mark.parametrize("line", PRINTS)
def test_whoever_reads_may_leave(line: str, names: dict[str, str]) -> None:
    assert shell(line.format(**names), "| true; exit ${PIPESTATUS[0]}").returncode == 141


def test_closed_streams_are_taken_for_ones_that_nobody_reads(names: dict[str, str], tmp_path: Path) -> None:
    for number, redirected in enumerate((*CLOSED.values(), " ".join(CLOSED.values()))):
        done = shell(f"convert {names['source']} {tmp_path / str(number)}", redirected)
        assert done.returncode == 0, redirected


FILLED = """
import os, sys
from converter.cli.group import fill_closed_streams
fill_closed_streams()
sys.exit(any(os.fstat(number).st_rdev != os.stat(os.devnull).st_rdev for number in range(3)))
"""


def test_no_file_takes_the_place_of_a_closed_stream() -> None:
    """Libraries in C write to standard error by its number, whatever was opened under that number since."""
    command = ["bash", "-c", '"$0" -c "$1" ' + " ".join(CLOSED.values()), sys.executable, FILLED]
    assert subprocess.run(command, check=False, cwd=ROOT).returncode == 0
