"""Show long work in a notebook: a bar below the cell, once two seconds have passed."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

PATIENCE = 2.0  # seconds before the bar appears; what takes less shows nothing
INTERVAL = 0.25  # between two drawings: a notebook sends each to a browser

Function = TypeVar("Function", bound=Callable[..., Any])


def is_running() -> bool:
    """Tell whether this process serves a notebook. IPython is asked only if it is there already."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return getattr(shell, "kernel", None) is not None


def shows_progress(function: Function) -> Function:
    """Return a function that shows its progress, unless it is given a ``progress`` to tell it."""

    @wraps(function)
    def shown(*args: Any, **options: Any) -> Any:
        if options.get("progress") is not None:
            return function(*args, **options)
        bar = Bar(function.__name__)
        try:
            return function(*args, **options | {"progress": bar})
        finally:
            bar.end()

    return cast(Function, shown)


class Bar:
    """A bar that is told of progress: ``bar(done, total)``, or ``bar(title, done, total)``. Any thread may.

    Args:
        title: what is being done.
        clock: seconds.
    """

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.title, self.clock = title, clock
        self.due = clock() + PATIENCE
        self.handle: Any = None

    def __call__(self, *told: Any) -> None:
        """Note what is done, of how much."""
        *title, done, total = told
        if self.clock() < self.due:
            return
        self.due = self.clock() + INTERVAL
        share = done / total if total else 0.0
        words = html.escape(" ".join(map(str, title)) or self.title)
        self._show(f'<progress max="1" value="{share:.3f}"></progress> {share:.0%} {words}')

    def end(self) -> None:
        """Remove the bar."""
        if self.handle is not None:
            self._show("")

    def _show(self, drawn: str) -> None:
        from IPython.display import HTML, display

        if self.handle is None:
            self.handle = display(HTML(drawn), display_id=True)
        else:
            self.handle.update(HTML(drawn))
