"""Stop strings: the text ends before the first of them, even if it begins in the middle of a token."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches one text as it grows, and holds back what may be the beginning of a stop string.

    Attributes:
        found: whether one has come.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = tuple(strings)
        self.held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """Take in the next piece of text; return what may be shown now."""
        if not self.strings or self.found:
            return "" if self.found else text
        self.held += text
        places = [(at + len(string), at) for string in self.strings if (at := self.held.find(string)) >= 0]
        self.found = bool(places)
        # Character by character it is the one that is complete first, and of those that end together the longest.
        return self._release(min(places)[1] if places else len(self.held) - self._undecided())

    def end(self) -> str:
        """Return what was held back: the text is over, and it was no stop string."""
        return "" if self.found else self._release(len(self.held))

    def _release(self, length: int) -> str:
        shown, self.held = self.held[:length], self.held[length:]
        return shown

    def _undecided(self) -> int:
        """Return how many of the last characters may be the beginning of a stop string."""
        longest = min(len(self.held), max(map(len, self.strings)) - 1)
        return next((n for n in range(longest, 0, -1) if self._begins(self.held[-n:])), 0)

    def _begins(self, tail: str) -> bool:
        return any(string.startswith(tail) for string in self.strings)
