"""Score texts: log-probabilities of their tokens, in windows that overlap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from converter.errors import PromptError
from converter.runtime.reader import Prompts
from converter.runtime.session import Model

# Tokens that go through the graph at a time, the cache carrying what came before: their logits are what takes memory.
CHUNK_TOKENS = 128

DEFAULT_BATCH = 8


@dataclass(frozen=True)
class Score:
    """The score of one text.

    Attributes:
        token_ids: its tokens.
        log_probs: the natural logarithm of each token's probability after those before it; None for the first, before
            which there is nothing.
    """

    token_ids: list[int]
    log_probs: list[float | None]

    def __repr__(self) -> str:
        return f"Score({len(self.token_ids)} tokens, perplexity {self.perplexity:.4f})"

    @property
    def total(self) -> float:
        """Return the log-probability of all tokens but the first."""
        return math.fsum(value for value in self.log_probs if value is not None)

    @property
    def perplexity(self) -> float:
        """Return exp of the mean surprise; NaN for a single token."""
        return perplexity([self])


def perplexity(scores: Sequence[Score]) -> float:
    """Of several texts together, each token counting once."""
    count = sum(len(score.log_probs) - 1 for score in scores)
    return math.exp(-math.fsum(score.total for score in scores) / count) if count else math.nan


@dataclass(frozen=True)
class Window:
    """A part of a text that is run at once.

    Attributes:
        text: which.
        begin, end: its tokens.
        first: the first of them that is scored here; those before it are context.
    """

    text: int
    begin: int
    end: int
    first: int


def score(
    model: Model,
    texts: Prompts,
    *,
    stride: int | None = None,
    batch_size: int = DEFAULT_BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> list[Score]:
    """Score each of ``texts``.

    A text longer than the model's positions is read in windows that begin ``stride`` tokens apart; each token is scored
    once, in the first window that holds it, with ``n_positions - stride`` tokens or more before it from the second
    window on, and never without one.

    Args:
        texts: a text, the token ids of one, or several of either.
        stride: 1 to ``n_positions``; half of them by default. Shorter is more exact, and slower.
        batch_size: windows that are read together; it changes nothing else.
        progress: told how many tokens have been read, of how many.

    Raises:
        PromptError: a text is empty or holds ids that the model does not have, there is no tokenizer, or an option is
            out of range.
    """
    size = model.config.n_positions
    stride = max(1, size // 2) if stride is None else stride
    if not 1 <= stride <= size:
        raise PromptError(f"stride is {stride}; expected 1 to the model's {size} positions")
    if batch_size < 1:
        raise PromptError(f"batch_size is {batch_size}; expected 1 or more")
    ids = model.encode(texts)
    if size == 1 and any(len(row) > 1 for row in ids):
        raise PromptError("a model of one position has nothing before any token to score it by")
    scores: list[list[float | None]] = [[None] * len(row) for row in ids]
    every = [window for text, row in enumerate(ids) for window in windows(text, len(row), size, stride)]
    every.sort(key=lambda window: window.end - window.begin)  # of like length, so that little is padded
    read, total = 0, sum(window.end - window.begin for window in every)
    for at in range(0, len(every), batch_size):
        batch = every[at : at + batch_size]
        rows = [ids[window.text][window.begin : window.end] for window in batch]
        for window, found in zip(batch, log_probs(model, rows), strict=True):
            scores[window.text][window.first : window.end] = found[window.first - window.begin :]
        read += sum(map(len, rows))
        if progress is not None:
            progress(read, total)
    return [Score(row, found) for row, found in zip(ids, scores, strict=True)]


def windows(text: int, length: int, size: int, stride: int) -> Iterator[Window]:
    """Return the windows of a text. Each token but the first is scored in exactly one of them."""
    begin, scored = 0, 1
    while True:
        end = min(begin + size, length)
        yield Window(text, begin, end, scored)
        if end == length:
            return
        # The next begins a stride further, but not so far that its first unscored token has nothing before it.
        begin, scored = min(begin + stride, end - 1), end


def log_probs(model: Model, rows: Sequence[Sequence[int]]) -> list[list[float | None]]:
    """Return the log-probability of each token of each row, run as one batch; None for the first token."""
    longest = max(map(len, rows))
    ids, mask = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    positions = np.broadcast_to(np.arange(longest), ids.shape)
    following = np.concatenate((ids[:, 1:], np.zeros((len(rows), 1), np.int64)), axis=1)
    found, cache = np.empty(ids.shape), model.empty_cache(len(rows))
    for begin in range(0, longest - 1, CHUNK_TOKENS):
        chunk = slice(begin, begin + CHUNK_TOKENS)
        logits = model.step(ids[:, chunk], mask[:, : chunk.stop], positions[:, chunk], cache)
        found[:, chunk] = _of_tokens(logits, following[:, chunk])
    return [[None, *found[i, : len(row) - 1].tolist()] for i, row in enumerate(rows)]


def _of_tokens(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return the log-probability of one token at each position, float64 ``[batch, tokens]``."""
    highest = logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, tokens[..., None], axis=-1) - highest
    sums = np.exp(logits - highest).sum(axis=-1, keepdims=True, dtype=np.float64)
    return (chosen - np.log(sums))[..., 0]
