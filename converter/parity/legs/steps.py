"""Tell how far a check has come: step by step, and within a long step part by part."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float, int], None]  # see ``converter.parity.check``


class Steps:
    """The steps of a check, counted.

    Args:
        progress: what is told of them.
        total: how many there are.
    """

    def __init__(self, progress: Progress = lambda step, done, total: None, total: int = 1) -> None:
        self.progress, self.total = progress, total
        self.name, self.done = "", -1

    def __call__(self, name: str) -> None:
        """Begin a step."""
        self.name, self.done = name, self.done + 1
        self.progress(name, self.done, self.total)

    def within(self, done: int, total: int) -> None:
        """Note how many parts of the step are done. After the last part the next step begins, which says so itself."""
        if done < total:
            self.progress(self.name, self.done + done / total, self.total)
