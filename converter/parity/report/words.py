"""Write numbers and tokens as people read them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer


SMALLEST = float(np.finfo(np.float32).tiny)  # smaller errors count as 0

MINUS, NOT_A_NUMBER, INFINITE = "−", "–", "∞"


def error(value: float) -> str:
    """Format a share or a divergence: ``3.1e-07``."""
    return unless_special(value, lambda: "0" if abs(value) < SMALLEST else f"{value:.1e}")


def times(value: float) -> str:
    """Format a multiple: ``1.04``."""
    return unless_special(value, lambda: f"{value:,.2f}" if abs(value) < 1000 else f"{value:.1e}")


def with_error(value: float, deviation: float) -> str:
    """Format a number and its standard error: ``109.6 ± 27.1``."""
    return unless_special(value, lambda: f"{value:,.2f} ± {unless_special(deviation, lambda: f'{deviation:,.2f}')}")


def ratio(value: float, deviation: float) -> str:
    """Format a ratio near 1, and its standard error: ``1 + 2.4e-08 ± 1.0e-07``."""

    def near() -> str:
        if abs(value - 1) > 1e-3:
            return f"{value:.4f} ± {unless_special(deviation, lambda: f'{deviation:.4f}')}"
        away = f" {MINUS if value < 1 else '+'} {error(abs(value - 1))}" if value != 1 else ""
        return f"1{away} ± {error(deviation)}" if deviation != 0 else f"1{away}"

    return unless_special(value, near)


def share(value: float) -> str:
    """Format a share in percent: ``99.73 %``."""
    return unless_special(value, lambda: f"{100 * value:.4g} %")


def unless_special(value: float, text: Callable[[], str]) -> str:
    """Return ``text()``, or a sign if the value is not a finite number."""
    if math.isnan(value):
        return NOT_A_NUMBER
    return text() if math.isfinite(value) else INFINITE


def plain(value: Any) -> str:
    """Return a setting as text."""
    if value is None or value == {}:
        return NOT_A_NUMBER
    return json.dumps(value, default=str) if isinstance(value, dict | list | tuple) else str(value)


def text_of(ids: Sequence[int] | np.ndarray, read: Tokenizer | None, space: str = "·") -> str:
    """Return tokens as text with visible signs, or their ids if there is no tokenizer."""
    text = read.decode([int(i) for i in ids], skip_special_tokens=False) if read is not None and len(ids) else ""
    return visible(text, space) if text else " ".join(f"#{int(i)}" for i in ids)


def visible(text: str, space: str = "·") -> str:
    """Replace spaces, line ends and what does not print by visible signs."""
    signs = {" ": space, "\n": "↵" + space.strip("·"), "\t": "⇥"}
    return "".join(signs.get(c, c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)
