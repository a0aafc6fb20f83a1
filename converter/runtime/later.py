"""A session that is opened when it is first asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable

from converter.runtime.ort import InferenceSession


class Later:
    """A session that is opened when it is first asked for, from whatever thread.

    Args:
        open_session: opens it; None if it cannot be had here.
    """

    def __init__(self, open_session: Callable[[], InferenceSession | None]) -> None:
        self._open_session, self._lock = open_session, threading.Lock()
        self._opened: list[InferenceSession | None] = []

    @property
    def session(self) -> InferenceSession | None:
        """Return the session; None if it cannot be had."""
        with self._lock:
            if not self._opened:
                self._opened.append(self._open_session())
            return self._opened[0]
