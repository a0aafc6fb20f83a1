"""The grid on which every leg is run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.data import CHECKPOINT, HELD_OUT
from converter.errors import CheckError, GPT2Error, TextError
from converter.parity.legs.cases import (
    FULL_LENGTH_KEPT,
    FULL_WINDOWS,
    SHORT_TOKENS,
    Case,
    Level,
    grid,
    held_out_tokens,
    shapes,
    tokens_of,
)
from converter.tokenizer import load
from reference.config import GPT2Config

TOKENS = np.arange(5000) % 997


@pytest.mark.parametrize("n_positions", [1, 2, 3, 4, 48, 49, 200, 1024])
def test_every_case_fits_the_model_and_feeds_each_token_once(n_positions: int) -> None:
    for case in grid(GPT2Config(n_positions=n_positions), TOKENS):
        assert sum(case.chunks) == case.input_ids.shape[1] <= n_positions
        assert min(case.chunks) >= 1
        assert case.position_ids.max() < n_positions
        assert case.attention_mask[:, -1].all()  # padding is on the left
        assert (np.diff(case.attention_mask, axis=1) >= 0).all()


def test_the_grid_covers_the_ways_a_model_is_used() -> None:
    cases = {case.name: case for case in grid(GPT2Config(), TOKENS)}
    assert cases["prefill"].chunks == (48,)
    assert cases["decode"].chunks[1:] == (1,) * 8
    assert len(set(cases["chunked prefill"].chunks)) == 3
    assert sorted(cases["left-padded batch"].attention_mask.sum(axis=1)) == [16, 32, 48]
    assert cases["full length"].input_ids.shape == (1, 1024)
    rows = cases["left-padded batch"].input_ids[:, -16:]
    assert len({tuple(row) for row in rows}) == 3  # no row can stand in for another


def test_padding_does_not_count_as_a_position() -> None:
    batch = {case.name: case for case in grid(GPT2Config(), TOKENS)}["left-padded batch"]
    for mask, positions in zip(batch.attention_mask, batch.position_ids, strict=True):
        np.testing.assert_array_equal(positions[mask > 0], np.arange(mask.sum()))


def test_tokens_are_held_out_text_where_there_is_a_tokenizer() -> None:
    tokenizer = load(CHECKPOINT)
    assert tokenizer is not None
    tokens, origin = held_out_tokens(tokenizer, GPT2Config(vocab_size=2048))
    assert origin == "held-out English text"
    assert tokenizer.decode(tokens[:200]) == HELD_OUT.read_text(encoding="utf-8")[: len(tokenizer.decode(tokens[:200]))]


def test_tokens_are_random_and_said_to_be_where_there_is_none() -> None:
    tokens, origin = held_out_tokens(None, GPT2Config(vocab_size=7, n_positions=9))
    assert "random" in origin
    assert set(tokens) <= set(range(7))
    assert len(tokens) >= 9


def test_a_tokenizer_larger_than_the_model_gives_only_tokens_that_the_model_has() -> None:
    tokens, _ = held_out_tokens(load(CHECKPOINT), GPT2Config(vocab_size=300))
    assert tokens.max() < 300


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.txt", "The following is a sentence. " * 40),
        ("lines.jsonl", '{"text": "The following"}\n\n{"text": "is a sentence. ", "id": 7}\n' * 40),
    ],
)
def test_a_users_text_is_fed(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    tokenizer = load(CHECKPOINT)
    assert tokenizer is not None
    tokens, origin = tokens_of(tmp_path / name, tokenizer, GPT2Config(vocab_size=2048, n_positions=64))
    assert origin == str(tmp_path / name)
    assert tokenizer.decode(tokens).startswith("The following")
    assert "{" not in tokenizer.decode(tokens)


def test_a_short_text_is_repeated_and_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("The following is a sentence. " * 12)
    tokens, origin = tokens_of(tmp_path / "short.txt", load(CHECKPOINT), GPT2Config(vocab_size=2048))
    assert len(tokens) == 1024
    assert re.search(r"short\.txt, \d+ tokens repeated to fill 1024", origin)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("few.txt", b"The", CheckError, "is too short: it gives 1 tokens, a check needs at least 48"),
        ("bytes.txt", b"\xff\xfe", TextError, "cannot be read as UTF-8 text"),
        ("bad.jsonl", b"{", TextError, "cannot be read as JSONL"),
        ("other.jsonl", b'{"content": "x"}', TextError, "cannot be read as JSONL: line 1 has no text"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(
    tmp_path: Path, name: str, content: bytes, error: type[GPT2Error], message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        tokens_of(tmp_path / name, load(CHECKPOINT), GPT2Config(vocab_size=2048))
    with pytest.raises(TextError, match=r"nowhere\.txt cannot be read"):
        tokens_of(tmp_path / "nowhere.txt", load(CHECKPOINT), GPT2Config())
    with pytest.raises(CheckError, match="has no tokenizer"):
        tokens_of(tmp_path / name, None, GPT2Config())


# --- what is compared and scored --------------------------------------------------------------------------------------

lengths = st.one_of(st.integers(1, 260), st.sampled_from([47, 48, 49, 127, 128, 129, 175, 176, 177, 1024]))


@given(n_positions=lengths, level=st.sampled_from(Level), more=st.floats(1.0, 5.5))
@settings(max_examples=80, deadline=None)
def test_of_every_compared_position_the_token_and_the_one_after_it_are_known(
    n_positions: int, level: Level, more: float
) -> None:
    for case in grid(GPT2Config(n_positions=n_positions), np.arange(int(n_positions * more) + 48), level):
        kept = case.keep or case.input_ids.shape[1]
        for compared in (case.kept_ids, case.following, case.real):
            assert compared.shape == (len(case.input_ids), kept)
        np.testing.assert_array_equal(case.kept_ids, case.input_ids[:, case.input_ids.shape[1] - kept :])
        np.testing.assert_array_equal(case.following[:, :-1], case.kept_ids[:, 1:])
        assert (case.following[:, -1] == -1).all()
        np.testing.assert_array_equal(case.real, case.attention_mask[:, -kept:] == 1)
        assert case.real.any()


@given(n_positions=lengths, level=st.sampled_from(Level), size=st.integers(0, 5000))
@settings(max_examples=150, deadline=None)
def test_no_token_of_the_text_is_scored_twice(n_positions: int, level: Level, size: int) -> None:
    tokens = np.arange(max(n_positions, size, SHORT_TOKENS))  # each its own place in the text
    cases = [case for case in grid(GPT2Config(n_positions=n_positions), tokens, level) if case.scored]
    scored = np.concatenate([case.following[case.real] for case in cases])
    scored = scored[scored >= 0]
    assert len(set(scored)) == len(scored)
    assert len(scored) >= min(n_positions, SHORT_TOKENS) - 1


@given(n_positions=lengths, level=st.sampled_from(Level), size=st.integers(0, 5000))
@settings(max_examples=60, deadline=None)
def test_every_case_has_a_name_of_its_own(n_positions: int, level: Level, size: int) -> None:
    names = [case.name for case in grid(GPT2Config(n_positions=n_positions), np.arange(max(n_positions, size)), level)]
    assert len(set(names)) == len(names)


def test_the_full_level_reads_one_window_of_text_after_the_other() -> None:
    config = GPT2Config(n_positions=200)
    text = np.arange(200 * FULL_WINDOWS)
    quick, full = grid(config, text), grid(config, text, Level.FULL)
    assert [case.name for case in quick] == [case.name for case in full[: len(quick)]]
    windows = [case for case in full if case.long]
    assert len(windows) == FULL_WINDOWS
    assert len([case for case in quick if case.long]) == 1
    np.testing.assert_array_equal(np.concatenate([case.input_ids[0] for case in windows]), text)
    assert all(case.keep == FULL_LENGTH_KEPT and case.scored for case in windows)


@pytest.mark.parametrize("size", [200, 100])
def test_no_window_is_read_twice(size: int) -> None:
    """Random token ids fill one window, and so does a text that had to be repeated."""
    tokens = np.resize(np.arange(size), 200)
    windows = [case.input_ids.tobytes() for case in grid(GPT2Config(n_positions=200), tokens, Level.FULL) if case.long]
    assert len(set(windows)) == len(windows)


def test_there_are_as_many_windows_as_the_text_fills() -> None:
    windows = [case for case in grid(GPT2Config(n_positions=100), np.arange(250), Level.FULL) if case.long]
    assert [case.scored for case in windows] == [True, True]
    np.testing.assert_array_equal(windows[1].input_ids[0], np.arange(100, 200))


@pytest.mark.parametrize(("n_positions", "keep"), [(49, 0), (128, 0), (129, 128), (1024, 128)])
def test_of_a_long_case_only_the_last_positions_are_compared(n_positions: int, keep: int) -> None:
    (case,) = (case for case in grid(GPT2Config(n_positions=n_positions), TOKENS) if case.long)
    assert case.keep == keep
    assert case.input_ids.shape == (1, n_positions)


def test_a_model_no_longer_than_the_short_cases_has_no_long_one() -> None:
    for level in Level:
        assert not any(case.long for case in grid(GPT2Config(n_positions=SHORT_TOKENS), TOKENS, level))


def test_an_unknown_level_is_refused_by_name() -> None:
    assert Level.parse("full") is Level.FULL
    with pytest.raises(CheckError, match="there is no level 'slow'; expected one of quick, full"):
        Level.parse("slow")


@pytest.mark.parametrize("n_positions", [1, 2, 3, 7, 24, 33, 48, 49, 300])
@pytest.mark.parametrize("level", list(Level))
def test_a_part_of_a_case_has_the_same_tokens_after_the_same(n_positions: int, level: Level) -> None:
    config, tokens = GPT2Config(vocab_size=61, n_positions=n_positions), np.random.default_rng(1).integers(61, size=999)
    cases = {case.name: case for case in [*grid(config, tokens, level), *shapes(config, tokens, [60], level)]}

    def texts(case: Case) -> list[tuple[int, ...]]:
        """Each compared token with all before it, row by row."""
        found = []
        for ids, mask, real in zip(case.input_ids, case.attention_mask > 0, case.real, strict=True):
            compared = np.arange(len(ids))[-case.keep :][real]
            found += [tuple(ids[: end + 1][mask[: end + 1]]) for end in compared]
        return found

    parts = [case for case in cases.values() if case.part_of is not None]
    assert {case.name for case in parts} >= {"length 1", "batch of 1", "batch of 17"}
    for case in parts:
        whole, at = case.part_of
        assert texts(case) == [texts(cases[whole])[each] for each in at]
