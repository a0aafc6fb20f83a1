"""What values of options must be, and the refusal of those that are not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from converter.errors import PromptError

Check = tuple[Callable[[Any], bool], str]  # whether a value is sound, and what is expected


def refuse_unsound(options: Any, checks: Mapping[str, Check]) -> None:
    """Refuse the first attribute that is not sound.

    Raises:
        PromptError: one is not.
    """
    for name, (sound, expected) in checks.items():
        if not sound(getattr(options, name)):
            raise PromptError(f"{name} is {getattr(options, name)!r}; expected {expected}")


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number."""
    try:
        return type(value) is not bool and isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def is_count(value: Any, least: int = 0) -> bool:
    """Tell whether a value is a whole number of ``least`` or more."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= least


def are_ids(values: Any) -> bool:
    """Tell whether these are whole numbers, as token ids are."""
    return isinstance(values, Sequence) and all(map(is_count, values))


NUMBER: Check = (is_number, "a number")
NONE_OR_MORE: Check = (is_count, "0 or more")
ONE_OR_MORE: Check = (lambda value: is_count(value, 1), "1 or more")
IDS: Check = (are_ids, "token ids")
TEXTS: Check = (
    lambda values: isinstance(values, Sequence) and all(isinstance(text, str) and text for text in values),
    "texts, none of them empty",
)
WORDS: Check = (
    lambda values: isinstance(values, Sequence) and all(are_ids(word) and len(word) for word in values),
    "lists of token ids, none of them empty",
)


def optional(check: Check) -> Check:
    """Return a check that also takes None."""
    sound, expected = check
    return lambda value: value is None or sound(value), expected


def number_where(holds: Callable[[float], bool], expected: str) -> Check:
    """Return a check for a number that ``holds`` is true of."""
    return lambda value: is_number(value) and holds(value), expected
