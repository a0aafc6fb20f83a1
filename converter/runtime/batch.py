"""Rows side by side on their way through the graph; nothing here grows with the text but what the graph is fed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from converter.runtime.session import Model


class Batch:
    """The cache of several rows, padded on the left, and the slots of it that count.

    Args:
        model: what runs them.
        prompts: token ids, of any lengths.
        room: how many tokens may follow the longest of them.

    """

    def __init__(self, model: Model, prompts: Sequence[Sequence[int]], room: int) -> None:
        lengths = np.array([len(prompt) for prompt in prompts])
        self.model = model
        self._prompts = prompts
        self._mask = np.ones((len(prompts), int(lengths.max()) + room), np.int64)
        self._next = lengths[:, None]  # the position of each row's next token
        self._cache = model.empty_cache(len(prompts), grows=True)

    def prefill(self) -> np.ndarray:
        """Run the prompts; return the logits after each, ``[rows, vocab_size]`` float32."""
        longest = int(self._next.max())
        ids = np.full((len(self._prompts), longest), self.model.pad_id, np.int64)
        for i, prompt in enumerate(self._prompts):
            ids[i, longest - len(prompt) :] = prompt
            self._mask[i, : longest - len(prompt)] = 0
        positions = np.maximum(self._mask[:, :longest].cumsum(axis=1) - 1, 0)
        return self._run(ids, positions, keep=1)[:, -1]

    def step(self, tokens: Sequence[int]) -> np.ndarray:
        """Run one more token of each row; return the logits after it, ``[rows, vocab_size]`` float32."""
        logits = self._run(np.array(tokens, np.int64)[:, None], self._next, keep=1)
        self._next += 1
        return logits[:, -1]

    def likeliest(self, tokens: Sequence[int]) -> list[int] | None:
        """Run one more token of each row; return the likeliest next ones, or None if only logits can be had."""
        chosen = self._cache.likeliest(np.array(tokens, np.int64)[:, None], self._next)
        if chosen is None:
            return None
        self._next += 1
        return chosen.tolist()

    def run(self, tokens: Sequence[int]) -> np.ndarray:
        """Run several more tokens of the only row; return the logits after each, ``[tokens, vocab_size]`` float32."""
        logits = self._run(np.array([tokens], np.int64), self._next + np.arange(len(tokens)), keep=0)
        self._next += len(tokens)
        return logits[0]

    def take_back(self, count: int) -> None:
        """Remove the last tokens of the only row."""
        self._cache.cut(self._cache.used - count)
        self._next -= count

    def keep(self, rows: Sequence[int] | np.ndarray) -> None:
        """Keep these rows, in this order; a row may be kept several times."""
        rows = np.asarray(rows)
        self._mask, self._next = self._mask[rows], self._next[rows]
        self._cache.keep_rows(rows)

    def close_up(self) -> None:
        """Remove the slots that are padding in every row."""
        used = self._cache.used
        slots = np.flatnonzero(self._mask[:, :used].any(axis=0))
        if len(slots) < used:
            self._mask[:, : len(slots)] = self._mask[:, slots]
            self._mask[:, len(slots) :] = 1
            self._cache.keep_slots(slots)

    def _run(self, ids: np.ndarray, positions: np.ndarray, keep: int) -> np.ndarray:
        total = self._cache.used + ids.shape[1]
        return self.model.step(ids, self._mask[:, :total], positions, self._cache, keep)
