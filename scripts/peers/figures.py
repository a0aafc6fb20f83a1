"""Compute the figures of a row, and write them as cells of a table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from peers.plan import Shape
from peers.results import Row

NOTHING = "–"
Figure = Callable[[Row], float | None]  # higher is better


def decode(batch: int, context: int) -> Figure:
    return lambda row: middle(row.decode.get(Shape(batch, context), []))


def prefill(context: int) -> Figure:
    """Return a figure: the prompt tokens a second."""

    def of(row: Row) -> float | None:
        seconds = middle(row.prefill.get(Shape(1, context), []))
        return context / seconds if seconds else None

    return of


def load(row: Row) -> float | None:
    """Return how many times the model opens in a second."""
    seconds = middle(row.load_seconds)
    return 1 / seconds if seconds else None


def middle(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def spread(values: Sequence[float], scale: float = 1.0) -> str:
    """Return ``median (smallest–largest)``; a single value stands alone."""
    if not values:
        return NOTHING
    scaled = [value * scale for value in values]
    digits = 0 if statistics.median(scaled) >= 100 else 1 if statistics.median(scaled) >= 10 else 2
    text = f"{statistics.median(scaled):.{digits}f}"
    return f"{text} ({min(scaled):.{digits}f}–{max(scaled):.{digits}f})" if len(values) > 1 else text
