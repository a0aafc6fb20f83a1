"""What goes together, and what is refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from converter.errors import PromptError
from converter.runtime.options import GenerationOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected 1 or more"),
        ({"best": 0}, "best is 0; expected 1 or more"),
        ({"beams": -1}, "beams is -1; expected 1 or more"),
        ({"beams": True}, "beams is True"),
        ({"speculate": -1}, "speculate is -1; expected 0 or more"),
        ({"stop": [""]}, r"stop is \[''\]; expected texts, none of them empty"),
        ({"stop": [5]}, r"stop is \[5\]; expected texts"),
        ({"length_penalty": float("nan")}, "length_penalty is nan; expected a number"),
        ({"beams": 2, "early_stopping": "no"}, "early_stopping is 'no'; expected True, False or 'never'"),
        ({"min_p": 2}, "min_p is 2; expected 0 to 1"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        GenerationOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 2, "temperature": 1.0}, "beams .* draw nothing: leave temperature at 0"),
        ({"beams": 2, "best": 3}, "best is 3, more than the 2 beams that there are"),
        ({"beams": 2, "speculate": 5}, "omit beams or speculate"),
        ({"best": 2}, "best needs texts that differ: give a temperature to draw with, or beams"),
        ({"length_penalty": 2.0}, "length_penalty and early_stopping are for beams"),
        ({"early_stopping": True}, "length_penalty and early_stopping are for beams"),
        ({"speculate": 5, "temperature": 1.0}, "speculate .* draws nothing: leave temperature at 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        GenerationOptions(**options)


def test_one_stop_string_is_not_a_stop_string_a_letter() -> None:
    assert GenerationOptions(stop="end").stop == ("end",)
