"""Show long work in one line on standard error: what is being done, the share that is done, and the time left.

In a terminal only, and only once two seconds have passed: what takes less shows nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from converter.cli.terminal import color_system, is_terminal

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

PATIENCE = 2.0  # seconds before the line appears
BAR_WIDTH = 20  # characters
REFRESHED = 4  # times a second

Clock = Callable[[], float]


class Timer(Protocol):
    """The methods of ``threading.Timer`` that are used."""

    def start(self) -> None:
        """Begin to wait."""

    def cancel(self) -> None:
        """Stop waiting."""


class Line:
    """The progress of some work. Any thread may report it; rich draws it.

    Args:
        title: what is being done.
        clock: seconds.
        at_once: appear when it is time; otherwise not before something is counted.
    """

    def __init__(self, title: str, clock: Clock = time.monotonic, at_once: bool = True) -> None:
        self.title, self.clock, self.at_once = title, clock, at_once
        self.done, self.total = 0.0, 0
        self.began = self.counted = clock()
        self.first = True
        self.due = self.over = False
        self.live: Live | None = None
        self.lock = threading.RLock()

    def count(self, done: float, total: int) -> None:
        """Note that ``done`` of ``total`` is done."""
        with self.lock:
            self.done, self.total, self.counted = done, total, self.clock()
            if self.first:  # what came before, such as imports, says nothing about what is to come
                self.began, self.first = self.counted, False
            self.at_once = True
            self._appear()

    def step(self, title: str, done: float, total: int) -> None:
        """Note that ``title`` is next, after ``done`` of ``total`` steps."""
        self.title = title
        self.count(done, total)

    def fall_due(self) -> None:
        """Note that the work takes long enough to be shown."""
        with self.lock:
            self.due = True
            self._appear()

    def end(self) -> None:
        """Remove the line; nothing is left behind."""
        with self.lock:
            self.over = True
        if self.live is not None:
            self.live.stop()

    def _appear(self) -> None:
        if not self.due or not self.at_once or self.over or self.live is not None:
            return
        from rich.console import Console
        from rich.live import Live

        screen = Console(stderr=True, color_system=color_system())
        self.live = Live(
            self, console=screen, transient=True, refresh_per_second=REFRESHED, redirect_stdout=False
        )  # fmt: skip
        self.live.start(refresh=True)

    @property
    def seconds_left(self) -> float | None:
        """Estimate the time left from the speed until the last count; None as long as nothing is done."""
        if not self.done:
            return None
        whole = (self.counted - self.began) * self.total / self.done
        return max(0.0, whole - (self.clock() - self.began))

    @property
    def words(self) -> str:
        """Return the text beside the bar: the share that is done, and the time."""
        left = self.seconds_left
        if left is None:
            return f"{minutes(self.clock() - self.began)} so far"
        return f"{self.done / self.total:4.0%}, {minutes(left)} left"

    def __rich__(self) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        words, line = self.words, Table.grid(padding=(0, 1, 0, 0))
        for width in (BAR_WIDTH, len(words)):
            line.add_column(min_width=width, no_wrap=True)
        line.add_column(no_wrap=True, overflow="ellipsis")  # which gives way in a narrow terminal
        bar = ProgressBar(total=self.total or None, completed=self.done, pulse=not self.done, width=BAR_WIDTH)
        line.add_row(bar, words, self.title)
        return line


def seen() -> bool:
    """Tell whether somebody looks at standard error, in a terminal that can redraw a line."""
    return is_terminal(stderr=True) and os.environ.get("TERM") not in ("dumb", "unknown")


def minutes(seconds: float) -> str:
    """Format seconds as ``1:05``, or ``1:01:05`` with hours."""
    whole = round(seconds)
    hours = f"{whole // 3600}:" if whole >= 3600 else ""
    return f"{hours}{whole // 60 % 60:0{2 if hours else 1}}:{whole % 60:02}"


@contextmanager
def line(
    title: str,
    show: bool = True,
    at_once: bool = True,
    clock: Clock = time.monotonic,
    timer: Callable[[float, Callable[[], None]], Timer] = threading.Timer,
) -> Iterator[Line | None]:
    """Show a ``Line`` while the block runs; None where nobody would see it.

    Args:
        title, clock, at_once: the line's.
        show: whether it is wanted.
        timer: calls a function after so many seconds.
    """
    if not show or not seen():
        yield None
        return
    shown = Line(title, clock, at_once)
    waiting = timer(PATIENCE, shown.fall_due)
    if isinstance(waiting, threading.Thread):
        waiting.daemon = True
    waiting.start()
    try:
        yield shown
    finally:
        waiting.cancel()
        shown.end()


@contextmanager
def steps(title: str = "starting", show: bool = True) -> Iterator[Callable[[str, float, int], None]]:
    """Yield a function that is told the next step, how many steps are done, and how many there are."""
    with line(title, show) as shown:
        yield shown.step if shown is not None else lambda step, done, total: None


@contextmanager
def amounts(title: str, show: bool = True, at_once: bool = True) -> Iterator[Callable[[int, int], None] | None]:
    """Yield a function that is told amounts, such as bytes: how many are done, of how many; None where nobody would see
    it.
    """
    with line(title, show, at_once) as shown:
        yield shown.count if shown is not None else None
