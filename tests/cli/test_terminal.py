"""Who looks decides what it looks like: terminals of several kinds, and pipes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.data import CHECKPOINT
from tests.cli.conftest import plain_environment

Watch = Callable[..., tuple[int, str]]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals")

STYLE = re.compile(r"\x1b\[[\d;]*m")


def piped(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "converter.cli", *map(str, arguments)]
    return subprocess.run(
        command,
        env=plain_environment() | environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.mark.parametrize(
    ("environment", "styled"),
    [
        ({}, True),
        ({"NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({"NO_COLOR": ""}, True),  # no-color.org: set, and not empty
    ],
    ids=str,
)
def test_a_terminal_is_sent_styles_unless_it_should_not(
    watch: Watch, environment: dict[str, str], styled: bool
) -> None:
    code, shown = watch("inspect", CHECKPOINT, **environment)
    assert code == 0
    assert bool(STYLE.search(shown)) == styled
    assert "\x1b" not in STYLE.sub("", shown)  # nothing moves


@pytest.mark.parametrize("environment", [{}, {"TERM": "dumb"}, {"COLUMNS": "40"}], ids=str)
def test_a_pipe_is_sent_plain_text_that_nobody_wrapped(environment: dict[str, str]) -> None:
    done = piped("inspect", CHECKPOINT, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    row = next(line for line in done.stdout.splitlines() if "transformer.h.2.mlp.c_fc.weight" in line)
    assert row.split()[-1] == "model.safetensors"


def test_a_pipe_is_sent_colour_where_that_is_asked_for() -> None:
    assert STYLE.search(piped("inspect", CHECKPOINT, FORCE_COLOR="1").stdout)
    assert not STYLE.search(piped("inspect", CHECKPOINT, FORCE_COLOR="1", NO_COLOR="1").stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("check", "--help"),
        ("generate", "nowhere", "x"),
        ("convrt",),
        ("convert", "nowhere", "OUT"),
    ],
    ids=" ".join,
)
def test_help_errors_and_text_are_plain_in_a_pipe(arguments: tuple[str, ...]) -> None:
    done = piped(*arguments)
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr


def test_a_conversion_shows_no_line_where_it_is_done_in_less_than_two_seconds(watch: Watch, tmp_path: Path) -> None:
    code, shown = watch("convert", CHECKPOINT, tmp_path / "out")
    assert code == 0
    assert shown.count("\n") == 1
    assert "parameters" in shown


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_table_fits_the_terminal_with_what_matters_most(watch: Watch, columns: int) -> None:
    _, shown = watch("inspect", CHECKPOINT, columns=columns, NO_COLOR="1")
    lines = shown.splitlines()
    heading = next(line for line in lines if "source name" in line)
    rows = lines[lines.index(heading) :]
    assert max(len(line) for line in rows) <= columns
    row = next(line for line in rows if "transformer.h.2.mlp.c_fc.weight " in line)
    for part, needed in {"float16": 60, "192 × 768": 60, "used": 80, "294,912": 120}.items():
        assert (part in row) == (columns >= needed)


def test_the_end_of_a_reader_is_the_end_of_the_help_too() -> None:
    script = f"{sys.executable} -m converter.cli --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode in (0, 141)
    assert done.stderr == ""
