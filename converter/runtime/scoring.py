"""Score texts: log-probabilities of their tokens, in windows that overlap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from converter.errors import PromptError
from converter.runtime.reader import Prompts
from converter.runtime.session import Model

# Tokens that go through the graph at a time, the cache carrying what came before: their logits are what takes memory.
CHUNK_TOKENS = 128

DEFAULT_BATCH = 8

# Batches of windows that are sorted by length together. The texts of so many are done before the next ones begin: their
# scores can be written, and what was interrupted can go on there.
BATCHES = 32

Batch = list[list[int]]  # the tokens of windows that are read at once
ReadAll = Callable[[Iterable[Batch]], Iterator[list[list[float | None]]]]  # gives what log_probs gives for each batch
Progress = Callable[[int, int], None]


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

    @property
    def length(self) -> int:
        """Return how many tokens it has."""
        return self.end - self.begin


@dataclass
class Group:
    """Texts that are scored together.

    Attributes:
        batch_size: windows that are read at once.
        ids: the tokens of each text.
        windows: of all texts, the shortest first.
    """

    batch_size: int
    ids: list[list[int]] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)

    @property
    def batches(self) -> Iterator[Batch]:
        """Return the tokens of the windows that are read at once, batch after batch."""
        rows = [self.ids[window.text][window.begin : window.end] for window in self.windows]
        return (rows[at : at + self.batch_size] for at in range(0, len(rows), self.batch_size))


def score(
    model: Model,
    texts: Prompts,
    *,
    stride: int | None = None,
    batch_size: int = DEFAULT_BATCH,
    progress: Progress | None = None,
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
    groups = groups_of(model, model.encode(texts), stride, batch_size)
    return [one for part in score_each(model, groups, progress=progress) for one in part]


def score_each(
    model: Model, groups: Sequence[Group], *, read_all: ReadAll | None = None, progress: Progress | None = None
) -> Iterator[list[Score]]:
    """Score groups of texts one after another; yield the scores of each.

    Args:
        read_all: reads batches of windows; by default the model does, here.
        progress: told how many tokens have been read, of how many.
    """
    read, total = 0, sum(window.length for group in groups for window in group.windows)
    found = (read_all or partial(map, partial(log_probs, model)))(rows for group in groups for rows in group.batches)
    for group in groups:
        scores: list[list[float | None]] = [[None] * len(row) for row in group.ids]
        for at in range(0, len(group.windows), group.batch_size):
            batch = group.windows[at : at + group.batch_size]
            for window, values in zip(batch, next(found), strict=True):
                scores[window.text][window.first : window.end] = values[window.first - window.begin :]
            read += sum(window.length for window in batch)
            if progress is not None:
                progress(read, total)
        yield [Score(row, values) for row, values in zip(group.ids, scores, strict=True)]


def groups_of(model: Model, ids: list[list[int]], stride: int | None, batch_size: int) -> list[Group]:
    """Return texts in groups, whose windows are read in batches of their own.

    Raises:
        PromptError: see ``score``.
    """
    size = model.config.n_positions
    stride = max(1, size // 2) if stride is None else stride
    if not 1 <= stride <= size:
        raise PromptError(f"stride is {stride}; expected 1 to the model's {size} positions")
    if batch_size < 1:
        raise PromptError(f"batch_size is {batch_size}; expected 1 or more")
    if size == 1 and any(len(row) > 1 for row in ids):
        raise PromptError("a model of one position has nothing before any token to score it by")
    groups = [Group(batch_size)]
    for row in ids:
        if len(groups[-1].windows) >= BATCHES * batch_size:
            groups.append(Group(batch_size))
        groups[-1].windows += windows(len(groups[-1].ids), len(row), size, stride)
        groups[-1].ids.append(row)
    for group in groups:
        group.windows.sort(key=lambda window: window.length)  # of like length, so that little is padded
    return groups


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
