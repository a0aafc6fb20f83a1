"""What every leg is run on: a grid of ways in which a language model is used."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tokenizers import Tokenizer

from converter.data import HELD_OUT
from reference.config import GPT2Config

# Enough tokens for statistics over thousands of logits, few enough for a decode step each.
SHORT_TOKENS = 48

DECODE_STEPS = 12  # single tokens in a case; a fault in the cache shows at the first
# At full length the logits of this many last positions are compared: they depend on all others, and a wide vocabulary
# at every position would cost more than the rest of the model, in time and above all in memory.
FULL_LENGTH_KEPT = 128

RANDOM_SEED = 0  # for token ids where there is no tokenizer


@dataclass(frozen=True)
class Case:
    """Token ids and how they are fed.

    Attributes:
        name: as it stands in the report.
        input_ids: ``[batch, tokens]`` int64.
        attention_mask: likewise, 0 for padding on the left.
        chunks: how many tokens go in at a time, the cache carrying what came before.
        keep: of how many last positions of each chunk logits are compared; 0 for all.
    """

    name: str
    input_ids: np.ndarray
    attention_mask: np.ndarray
    chunks: tuple[int, ...]
    keep: int = 0

    @cached_property
    def position_ids(self) -> np.ndarray:
        """Counted over the tokens that are not padding."""
        return np.maximum(self.attention_mask.cumsum(axis=1) - 1, 0)

    @property
    def real(self) -> np.ndarray:
        """Which of the compared positions hold a token: what padding predicts is nobody's concern."""
        return self.attention_mask[:, -self.keep :].astype(bool)


def grid(config: GPT2Config, tokens: np.ndarray) -> list[Case]:
    """Prefill, decode with the cache, chunked prefill, a left-padded batch, and all positions at once.

    Args:
        tokens: at least ``n_positions`` of them.
    """
    length = min(config.n_positions, SHORT_TOKENS)
    short = tokens[None, :length]
    ones = np.ones_like(short)
    cases = [Case("prefill", short, ones, (length,))]
    if length > 1:
        steps = min(DECODE_STEPS, length - 1)
        cases.append(Case("decode", short, ones, (length - steps, *[1] * steps)))
    if length > 2:
        first = max(1, length // 3)
        second = max(1, (length - first) // 3)
        cases.append(Case("chunked prefill", short, ones, (first, second, length - first - second)))
    cases.append(_padded(tokens, length))
    if config.n_positions > length:
        whole = tokens[None, : config.n_positions]
        kept = FULL_LENGTH_KEPT if config.n_positions > FULL_LENGTH_KEPT else 0
        cases.append(Case("full length", whole, np.ones_like(whole), (config.n_positions,), kept))
    return cases


def _padded(tokens: np.ndarray, length: int) -> Case:
    """Three rows of unequal length and different text, padded on the left, the last tokens one by one."""
    lengths = (max(1, length // 3), length, max(1, 2 * length // 3))
    ids = np.full((len(lengths), length), tokens[0])
    mask = np.zeros_like(ids)
    for row, size in enumerate(lengths):
        text = np.roll(tokens, -7 * row)  # other text in every row, so that rows cannot stand in for each other
        ids[row, length - size :] = text[:size]
        mask[row, length - size :] = 1
    steps = min(4, length - 1)
    return Case("left-padded batch", ids, mask, (length - steps, *[1] * steps) if steps else (length,))


def held_out_tokens(tokenizer: Tokenizer | None, config: GPT2Config) -> tuple[np.ndarray, str]:
    """``n_positions`` token ids or more, and where they are from: the held-out text, or without a tokenizer chance."""
    ids = tokenizer.encode(HELD_OUT.read_text(encoding="utf-8"), add_special_tokens=False).ids if tokenizer else []
    ids = [i for i in ids if i < config.vocab_size]
    if len(ids) < SHORT_TOKENS:
        drawn = np.random.default_rng(RANDOM_SEED).integers(
            config.vocab_size, size=max(config.n_positions, SHORT_TOKENS)
        )
        return drawn, "random token ids, as the source has no tokenizer" if tokenizer is None else "random token ids"
    return np.resize(np.array(ids), max(config.n_positions, len(ids))), "held-out English text"
