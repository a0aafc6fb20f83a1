"""What is seen of work that takes long. No test waits: the clock and the timer are told what time it is."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from rich.console import Console

from converter.cli import progress
from converter.cli.progress import PATIENCE, Line, minutes


class Time:
    """A clock, and a timer that goes off when it is told to."""

    def __init__(self) -> None:
        self.now, self.running = 100.0, False

    def clock(self) -> float:
        return self.now

    def timer(self, seconds: float, call: Callable[[], None]) -> Time:
        self.asked, self.call = seconds, call
        return self

    def start(self) -> None:
        self.running = True

    def cancel(self) -> None:
        self.running = False


@pytest.fixture
def time() -> Time:
    return Time()


@contextmanager
def terminal(**environment: str) -> Iterator[io.StringIO]:
    """What a terminal on standard error is sent."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", shown)
        patch.delenv("NO_COLOR", raising=False)
        for name, value in ({"TERM": "xterm", "COLUMNS": "80", "LINES": "30"} | environment).items():
            patch.setenv(name, value)
        yield shown


def drawn(line: Line, columns: int = 80) -> str:
    screen = Console(file=io.StringIO(), width=columns, force_terminal=True, color_system=None)
    with screen.capture() as captured:
        screen.print(line)
    return captured.get()


def test_what_takes_less_than_two_seconds_shows_nothing(time: Time) -> None:
    with terminal() as shown:
        with progress.line("writing", clock=time.clock, timer=time.timer) as line:
            assert line is not None
            assert (time.asked, time.running) == (PATIENCE, True) == (2.0, True)
            line.count(1, 2)
        assert not time.running
    assert shown.getvalue() == ""


def test_what_takes_longer_shows_a_line_that_vanishes(time: Time) -> None:
    with terminal() as shown, progress.line("writing gpt2-onnx", clock=time.clock, timer=time.timer) as line:
        assert line is not None
        line.count(0, 4)
        time.now += 3
        line.count(1, 4)
        time.call()
        assert "25%, 0:09 left writing gpt2-onnx" in shown.getvalue()
    assert shown.getvalue().endswith("\x1b[2K")  # the line is erased


def test_what_may_not_show_before_it_counts_waits_for_it(time: Time) -> None:
    with terminal() as shown, progress.line("writing", at_once=False, clock=time.clock, timer=time.timer) as line:
        assert line is not None
        time.call()
        assert shown.getvalue() == ""  # a download may have bars of its own
        line.count(0, 4)
        assert "writing" in shown.getvalue()


@pytest.mark.parametrize("kind", ["dumb", "unknown"])
def test_a_terminal_that_cannot_redraw_a_line_is_spared(time: Time, kind: str) -> None:
    with terminal(TERM=kind) as shown, progress.line("writing", clock=time.clock, timer=time.timer) as line:
        assert line is None
    assert shown.getvalue() == ""


def test_who_does_not_want_it_is_spared(time: Time) -> None:
    with terminal(), progress.line("writing", show=False, clock=time.clock, timer=time.timer) as line:
        assert line is None


@pytest.mark.parametrize("variable", ["TERM", "FORCE_COLOR", "CLICOLOR_FORCE"])
def test_a_pipe_is_spared_whatever_it_is_to_look_like(
    time: Time, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with progress.line("writing", clock=time.clock, timer=time.timer) as line:
        assert line is None
    with progress.amounts("writing") as count:
        assert count is None
    with progress.steps() as step:
        step("nobody sees it", 0, 1)


def test_no_color_leaves_the_line_without_colour(time: Time) -> None:
    for setting, coloured in (({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({}, True)):
        with terminal(**setting) as shown, progress.line("writing", clock=time.clock, timer=time.timer) as line:
            assert line is not None
            time.call()
        assert "writing" in shown.getvalue()
        assert bool(re.search(r"\x1b\[[\d;]*m", shown.getvalue())) == coloured


def test_the_time_that_is_left_follows_from_what_is_done(time: Time) -> None:
    line = Line("truth", time.clock)
    time.now += 30  # imports say nothing about the steps
    assert line.seconds_left is None
    line.step("one", 0, 4)
    time.now += 5
    assert line.words == "0:05 so far"
    line.step("two", 1, 4)
    assert line.seconds_left == 15
    time.now += 4  # within a step it goes down with the clock
    assert line.seconds_left == 11
    time.now += 40
    assert line.seconds_left == 0  # and never below
    line.step("three", 2, 4)
    assert line.seconds_left == 49
    assert line.words == " 50%, 0:49 left"


def test_a_line_stays_one_line_however_narrow(time: Time) -> None:
    line = Line("Hugging Face float32 eager, 1 thread, of the second head", time.clock)
    line.count(0, 9)
    time.now += 5
    line.count(3, 9)
    for columns in (80, 60, 40):
        shown = drawn(line, columns)
        assert shown.count("\n") == 1
        assert len(shown.rstrip("\n")) <= columns
        assert "33%, 0:10 left" in shown


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0, "0:00"), (59.6, "1:00"), (65, "1:05"), (3599, "59:59"), (3665, "1:01:05")]
)
def test_times_are_read_as_a_clock_is(seconds: float, expected: str) -> None:
    assert minutes(seconds) == expected
