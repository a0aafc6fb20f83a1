"""The grid on which every leg is run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from converter.data import CHECKPOINT, HELD_OUT
from converter.errors import CheckError
from converter.parity.cases import grid, held_out_tokens, tokens_of
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
    assert cases["decode"].chunks[1:] == (1,) * 12
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
    ("name", "content", "message"),
    [
        ("few.txt", b"The", "is too short: it gives 1 tokens, a check needs at least 48"),
        ("bytes.txt", b"\xff\xfe", "cannot be read as UTF-8 text"),
        ("bad.jsonl", b"{", "cannot be read as JSONL"),
        ("other.jsonl", b'{"content": "x"}', "JSONL with a text in every line"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckError, match=message):
        tokens_of(tmp_path / name, load(CHECKPOINT), GPT2Config(vocab_size=2048))
    with pytest.raises(CheckError, match=r"nowhere\.txt cannot be read"):
        tokens_of(tmp_path / "nowhere.txt", load(CHECKPOINT), GPT2Config())
    with pytest.raises(CheckError, match="has no tokenizer"):
        tokens_of(tmp_path / name, None, GPT2Config())
