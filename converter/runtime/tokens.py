"""Tokens as they come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

OnText = Callable[[int, str], None]  # the row, and the text that its newest token completes


@dataclass(frozen=True)
class Token:
    """A token as it came.

    Attributes:
        id: its number.
        text: what may be shown now that it is there: empty while a character lacks bytes or a stop string may follow.
        ended: why it is the last; empty if it is not.
        log_prob: the natural logarithm of its probability, before options change anything; if it was asked for.
        best: the likeliest tokens in its place and their log-probabilities, the likeliest first; likewise.
    """

    id: int
    text: str
    ended: str = ""
    log_prob: float | None = None
    best: tuple[tuple[int, float], ...] = ()

    def __str__(self) -> str:
        return self.text
