"""Define the cases that every leg runs: the ways in which a language model is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from converter.data import HELD_OUT
from converter.errors import CheckError
from converter.texts import read_texts
from reference.config import GPT2Config
from reference.head import LM

# Enough tokens for statistics over thousands of logits, and few enough to decode one by one.
SHORT_TOKENS = 48

DECODE_STEPS = 8  # in a case; a fault in the cache shows at the first

# At full length only the logits of this many last positions are compared. They depend on all positions before. Logits
# at every position would cost more than the rest of the model, in time and above all in memory.
FULL_LENGTH_KEPT = 128

# At the level ``full`` this many windows of text are read at full length, so that perplexities mean something.
FULL_WINDOWS = 4

HEAD_ROWS = 16  # in a batch for a head, which may give only one number a row

RANDOM_SEED = 0  # for random token ids


class Level(StrEnum):
    """How much a check runs."""

    QUICK = "quick"  # every kind of leg and case, but not every leg on long cases
    FULL = "full"  # every leg on every case, half precisions, more text

    @classmethod
    def parse(cls, name: str) -> Level:
        """Return the level with this name.

        Raises:
            CheckError: there is no such level.
        """
        if name not in list(cls):
            raise CheckError(f"there is no level {name!r}; expected one of {', '.join(cls)}")
        return cls(name)


@dataclass(frozen=True)
class Case:
    """Token ids and how they are fed.

    Attributes:
        name: the name in the report.
        input_ids: ``[batch, tokens]`` int64.
        attention_mask: ``[batch, tokens]`` int64, 0 for padding.
        chunks: the number of tokens in each step; the cache carries the tokens before.
        keep: the number of last positions in each chunk whose logits are compared; 0 for all.
        long: whether it costs more than all short cases together: the full length, or a part of the vocabulary.
        scored: whether perplexity is measured on it; no token of a long enough text counts twice.
        predicts: whether each position predicts the next token, which only the language model's head does.
        shape: whether it is there for its shape, which only a graph can get wrong.
        last: for a head that pools, the position that answers in each row, ``[batch]``.
        positions: ``[batch, tokens]``, the position of each token, if padding counts too.
        part_of: a case that has the same tokens, and which of its compared positions they are. Rounding is measured
            there; None if it is measured on this case.
    """

    name: str
    input_ids: np.ndarray
    attention_mask: np.ndarray
    chunks: tuple[int, ...]
    keep: int = 0
    long: bool = False
    scored: bool = False
    predicts: bool = True
    shape: bool = False
    last: np.ndarray | None = None
    positions: np.ndarray | None = None
    part_of: tuple[str, np.ndarray] | None = None

    @cached_property
    def position_ids(self) -> np.ndarray:
        """Return the position of each token, counted without padding."""
        if self.positions is not None:
            return self.positions
        return np.maximum(self.attention_mask.cumsum(axis=1) - 1, 0)

    @property
    def real(self) -> np.ndarray:
        """Return the mask of the real tokens among the compared positions."""
        return self.real_of(self.keep if self.last is None else 1)

    def real_of(self, positions: int) -> np.ndarray:
        """Return the mask of the real tokens for an array with ``positions`` columns; 0 stands for all tokens."""
        if self.last is not None and positions == 1:
            return np.ones((len(self.last), 1), bool)
        return self.attention_mask[:, -positions:].astype(bool)

    def kept(self, positions: Any) -> Any:
        """Return the compared positions of an array or tensor ``[batch, tokens, …]``: the last ``keep``, or all."""
        return positions[:, -self.keep :]  # -0 is 0

    @property
    def kept_ids(self) -> np.ndarray:
        """Return the token at each compared position."""
        return self.kept(self.input_ids)

    @property
    def following(self) -> np.ndarray:
        """Return the token after each compared position; -1 if there is none."""
        if not self.predicts:
            return np.full(self.real.shape, -1)
        return self.kept(np.pad(self.input_ids[:, 1:], ((0, 0), (0, 1)), constant_values=-1))


PREFILL = "prefill"  # of the first tokens of the text, all of which are compared


def grid(config: GPT2Config, tokens: np.ndarray, level: Level = Level.QUICK) -> list[Case]:
    """Return the cases of a language model: prefill, decode steps, chunked prefill, a left-padded batch, full length.

    The truth of each row is computed without cache or padding. So the batch also proves batch invariance.

    Args:
        tokens: at least ``n_positions`` token ids.
        level: ``full`` reads several windows of text at full length.
    """
    if config.head != LM:
        return _head_grid(config, tokens)
    length = min(config.n_positions, SHORT_TOKENS)
    short = tokens[None, :length]
    ones = np.ones_like(short)
    # The long case scores its last positions only. The first tokens are scored here, if they are not among those.
    alone = config.n_positions <= length or config.n_positions - FULL_LENGTH_KEPT >= length
    cases = [Case(PREFILL, short, ones, (length,), scored=alone)]
    if length > 1:
        steps = min(DECODE_STEPS, length - 1)
        cases.append(Case("decode", short, ones, (length - steps, *[1] * steps)))
    if length > 2:
        first = max(1, length // 3)
        second = max(1, (length - first) // 3)
        cases.append(Case("chunked prefill", short, ones, (first, second, length - first - second)))
    cases.append(_padded(tokens, length))
    if config.n_positions > length:
        windows = min(FULL_WINDOWS, len(tokens) // config.n_positions) if level is Level.FULL else 1
        cases += [_full_length(config.n_positions, tokens, window) for window in range(windows)]
    return cases


# Sizes of the batches of short rows. The largest does not fit a kernel's block of 32.
BATCHES = (1, 2, 3, 5, 8, 17, 33)
ROW_TOKENS = 3  # at most in a row of such a batch, because the logits take most of the time

# Lengths around these powers of two are fed, because kernels and caches work in blocks of such sizes.
POWERS, FULL_POWERS = range(6), range(15)

KEPT = (1, 2)  # numbers of logits to ask for; ``generate`` asks for one
# Of every token of the vocabulary all logits are compared, if these are no more bytes than this; else the logits at the
# end of each row.
VOCABULARY_BYTES = 2**26

SPECIAL_TOKENS = 24  # at most in a case, in turn with tokens of the text


def shapes(config: GPT2Config, tokens: np.ndarray, special: Sequence[int], level: Level = Level.QUICK) -> list[Case]:
    """Return cases that differ in shape: few logits kept, batches and lengths of many sizes, special tokens.

    A graph that branches on shapes can be wrong for some of them only. At the level ``full`` every token of the
    vocabulary is fed once.

    Args:
        special: the ids of special tokens.
    """
    if config.head != LM:
        return []
    length = min(config.n_positions, SHORT_TOKENS)
    cases = [_beginning(f"last {kept} logits", config, tokens, min(length, 5), kept) for kept in KEPT]
    known = [token for token in dict.fromkeys(special) if token < config.vocab_size][:SPECIAL_TOKENS]
    between = np.array([[token, tokens[at]] for at, token in enumerate(known)], np.int64).reshape(-1)[:length]
    cases += [_row("special tokens", between)] if len(between) else []
    cases += [_short_rows(config, tokens, rows) for rows in BATCHES]
    powers = FULL_POWERS if level is Level.FULL else POWERS
    lengths = sorted({2**power + off for power in powers for off in (-1, 0, 1)})
    sizes = [size for size in lengths if 0 < size <= config.n_positions]
    cases += [_beginning(f"length {size}", config, tokens, size, 1) for size in sizes]
    return [*cases, *(vocabulary(config) if level is Level.FULL else ())]


def vocabulary(config: GPT2Config) -> list[Case]:
    """Return cases that feed every token of the vocabulary once."""
    length = min(config.n_positions, SHORT_TOKENS)
    rows = np.resize(np.arange(config.vocab_size), (-(-config.vocab_size // length), length))
    pieces = np.array_split(rows, -(-len(rows) // max(BATCHES)))
    keep = 0 if 8 * config.vocab_size**2 <= VOCABULARY_BYTES else 1
    return [
        Case(f"vocabulary, part {part}", ids, np.ones_like(ids), (length,), keep, long=True, shape=True)
        for part, ids in enumerate(pieces, 1)
    ]


def _row(name: str, tokens: np.ndarray, keep: int = 0) -> Case:
    """Return a case that feeds one row at once."""
    ids, size = tokens[None], len(tokens)
    return Case(name, ids, np.ones_like(ids), (size,), min(keep, size), shape=True)


def _beginning(name: str, config: GPT2Config, tokens: np.ndarray, size: int, keep: int) -> Case:
    """Return a case that feeds the beginning of the text at once, and keeps the last logits."""
    case = _row(name, tokens[:size], keep)
    inside = size <= min(config.n_positions, SHORT_TOKENS)
    return replace(case, part_of=(PREFILL, np.arange(size - case.keep, size)) if inside else None)


def _short_rows(config: GPT2Config, tokens: np.ndarray, rows: int) -> Case:
    """Return a batch of rows with one to ``ROW_TOKENS`` tokens, padded on the left with token 0. The last column is a
    decode step, if the rows are wider than one token.
    """
    width = min(ROW_TOKENS, config.n_positions)
    ids = np.zeros((rows, width), np.int64)
    mask = np.zeros_like(ids)
    for row in range(rows):
        size = width - row % width
        ids[row, width - size :] = np.roll(tokens, -7 * row)[:size]
        mask[row, width - size :] = 1
    chunks, most = (width - 1, 1) if width > 1 else (1,), max(BATCHES)
    part_of = (f"batch of {most}", np.arange(mask.sum())) if rows < most else None  # whose first rows are the same
    return Case(f"batch of {rows}", ids, mask, chunks, shape=True, part_of=part_of)


def _head_grid(config: GPT2Config, tokens: np.ndarray) -> list[Case]:
    """Return the cases of another head: one text, batches padded on either side, full length. There is no cache."""
    length = min(config.n_positions, SHORT_TOKENS)
    cases = [_at_once("one text", tokens[None, :length], config)]
    cases += [_padded_for_head(f"{side}-padded batch", config, tokens, length, side) for side in ("right", "left")]
    if config.n_positions > length:
        cases.append(replace(_at_once("full length", tokens[None, : config.n_positions], config), long=True))
    return cases


def _padded_for_head(name: str, config: GPT2Config, tokens: np.ndarray, length: int, side: str) -> Case:
    """Return a batch of rows of every length with different texts. The rows are enough to be a sample, even with few
    numbers a row.
    """
    filler = config.pad_token_id if config.pad_token_id in range(config.vocab_size) else tokens[0]
    ids = np.full((HEAD_ROWS, length), filler)
    mask = np.zeros_like(ids)
    for row in range(HEAD_ROWS):
        size = 1 + row * (length - 1) // (HEAD_ROWS - 1)
        where = slice(0, size) if side == "right" else slice(length - size, length)
        ids[row, where] = np.roll(tokens, -7 * row)[:size]
        mask[row, where] = 1
    return _at_once(name, ids, config, mask)


def _at_once(name: str, ids: np.ndarray, config: GPT2Config, mask: np.ndarray | None = None) -> Case:
    mask = np.ones_like(ids) if mask is None else mask
    last = None
    if config.head_spec.pools:
        token = mask > 0 if config.pad_token_id is None else (mask > 0) & (ids != config.pad_token_id)
        last = (np.arange(ids.shape[1]) * token).argmax(axis=1)
    return Case(name, ids, mask, (ids.shape[1],), predicts=False, last=last)


def _full_length(size: int, tokens: np.ndarray, window: int) -> Case:
    """Return a case that feeds all positions at once: one window of the text."""
    ids = tokens[None, size * window : size * (window + 1)]
    name = f"full length, window {window + 1}" if window else "full length"
    kept = FULL_LENGTH_KEPT if size > FULL_LENGTH_KEPT else 0
    return Case(name, ids, np.ones_like(ids), (size,), kept, long=True, scored=True)


def _padded(tokens: np.ndarray, length: int) -> Case:
    """Return three rows of different length and text, padded on the left. The last tokens are decode steps."""
    lengths = (max(1, length // 3), length, max(1, 2 * length // 3))
    ids = np.full((len(lengths), length), tokens[0])
    mask = np.zeros_like(ids)
    for row, size in enumerate(lengths):
        text = np.roll(tokens, -7 * row)  # another text in every row, so that swapped rows show
        ids[row, length - size :] = text[:size]
        mask[row, length - size :] = 1
    steps = min(4, length - 1)
    return Case("left-padded batch", ids, mask, (length - steps, *[1] * steps) if steps else (length,))


def tokens_of(file: Path, tokenizer: Tokenizer | None, config: GPT2Config) -> tuple[np.ndarray, str]:
    """Return token ids of a user's text, ``n_positions`` or more, and a description of it.

    Args:
        file: plain text, or JSONL with the text of each object under ``text``.

    Raises:
        TextError: the file cannot be read.
        CheckError: the text is too short, or there is no tokenizer.
    """
    if tokenizer is None:
        raise CheckError(f"{file} cannot be used: the model folder has no tokenizer to turn text into tokens")
    text = "\n\n".join(read_texts(file))
    ids = [i for i in tokenizer.encode(text, add_special_tokens=False).ids if i < config.vocab_size]
    needed = min(config.n_positions, SHORT_TOKENS)
    if len(ids) < needed:
        raise CheckError(f"{file} is too short: it gives {len(ids)} tokens, a check needs at least {needed}")
    repeated = f", {len(ids)} tokens repeated to fill {config.n_positions}" if len(ids) < config.n_positions else ""
    return np.resize(np.array(ids), max(config.n_positions, len(ids))), f"{file}{repeated}"


def special_ids(tokenizer: Tokenizer | None, values: Mapping[str, Any]) -> list[int]:
    """Return the ids of special tokens: those in ``config.json``, and those that the tokenizer added."""
    named = [values.get(f"{name}_token_id") for name in ("bos", "eos", "pad")]
    flat = [one for value in named for one in (value if isinstance(value, list) else [value])]
    added = sorted(tokenizer.get_added_tokens_decoder()) if tokenizer is not None else []
    return [token for token in (*flat, *added) if type(token) is int and token >= 0]


def held_out_tokens(tokenizer: Tokenizer | None, config: GPT2Config) -> tuple[np.ndarray, str]:
    """Return token ids, ``n_positions`` or more, and a description of them.

    They are the held-out text, or random if there is no tokenizer or it gives too few tokens.
    """
    ids = tokenizer.encode(HELD_OUT.read_text(encoding="utf-8"), add_special_tokens=False).ids if tokenizer else []
    ids = [i for i in ids if i < config.vocab_size]
    if len(ids) < SHORT_TOKENS:
        drawn = np.random.default_rng(RANDOM_SEED).integers(
            config.vocab_size, size=max(config.n_positions, SHORT_TOKENS)
        )
        return drawn, "random token ids, as the source has no tokenizer" if tokenizer is None else "random token ids"
    return np.resize(np.array(ids), max(config.n_positions, len(ids))), "held-out English text"
