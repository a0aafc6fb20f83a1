"""Stop strings: where a text ends, and what of it may be shown before that is known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from converter.runtime.stopping import StopStrings


def feed(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    """What is shown after each piece, and after the last at the end; whether a stop string came."""
    watch = StopStrings(stops)
    shown = [watch.feed(piece) for piece in pieces]
    return [*shown, watch.end()], watch.found


def test_the_text_ends_before_the_stop_string() -> None:
    assert feed(["STOP"], ["go on STOP no more"]) == (["go on ", ""], True)


def test_a_stop_string_is_found_across_pieces_and_nothing_of_it_is_shown() -> None:
    assert feed(["\n\nQ:"], ["answer\n", "\n", "Q", ": what"]) == (["answer", "", "", "", ""], True)


def test_what_only_began_like_a_stop_string_is_shown_once_that_is_known() -> None:
    assert feed(["abc"], ["xab", "d"]) == (["x", "abd", ""], False)
    assert feed(["abc"], ["xab"]) == (["x", "ab"], False)
    assert feed(["aab"], ["aa", "a", "b"]) == (["", "a", "", ""], True)


def test_of_several_stop_strings_the_one_that_is_complete_first_counts() -> None:
    assert feed(["bcd", "c"], ["abcd"]) == (["ab", ""], True)
    assert feed(["c", "abc"], ["xabc"]) == (["x", ""], True)


def test_without_stop_strings_every_piece_is_shown_at_once() -> None:
    assert feed([], ["a", "", "b"]) == (["a", "", "b", ""], False)


letters = st.text("ab", max_size=12)


@given(pieces=st.lists(letters, max_size=8), stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_the_borders_of_the_pieces_change_nothing(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    shown, found = feed(stops, pieces)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert found == bool(ends)
    if ends:
        text = min(text[: text.find(stop)] for stop in stops if text[: min(ends)].endswith(stop))
    assert "".join(shown) == text
    assert ("".join(shown), found) == ("".join(feed(stops, list("".join(pieces)))[0]), found)
