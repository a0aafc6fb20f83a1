"""The cache of rows side by side on a GPU."""

from __future__ import annotations

import numpy as np

from converter.runtime.cache import Cache
from converter.runtime.decoder import Decoder
from converter.runtime.gpu.buffers import Pool


class GpuCache(Cache):
    """Rows without padding, whatever the mask says: each row's tokens are behind one another, from its first slot on.

    What the mask says of a token when it is run holds for good.

    Args:
        model: what runs them.
        pool: where buffers are.
        batch: how many rows.

    Attributes:
        lengths: how many tokens each row has, ``[batch]``.
    """

    def __init__(self, model: Decoder, pool: Pool, batch: int) -> None:
        self.model, self.pool, self.batch = model, pool, batch
        self.buffers = pool.lend(model, batch)
        self._mask = np.zeros((batch, 0), bool)
        self.lengths = np.zeros(batch, np.int64)
        self._left: list[np.ndarray] = []  # what the last step left behind: tokens, positions, slots

    def __del__(self) -> None:
        if hasattr(self, "buffers"):
            self.pool.take_back(self.buffers)

    def step(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, keep: int) -> np.ndarray:
        new = ids.shape[1]
        real = mask[:, -new:] != 0
        if new == 1 and real.all():
            self._advance(ids, positions)
            logits = self.buffers.steps(self.batch).logits()[: self.batch, None]
        else:
            self._left = []
            run = self._run_rows if self.used else self._run_prompts
            logits = run(ids, positions, real, range(new)[-keep:])
            self._note(real)
        return logits

    def likeliest(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return self._advance(ids, positions)

    def _advance(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Run a token of each row, ``[batch, 1]``; return the likeliest next ones, ``[batch]``."""
        steps, wanted = self.buffers.steps(self.batch), [ids[:, 0], positions[:, 0], self.lengths]
        self.buffers.refuse_beyond(wanted[2])
        left, self._left = self._left, []  # a step that fails leaves nothing behind
        if not (left and all(map(np.array_equal, left, wanted))):
            rest = (0, steps.rows - self.batch)
            steps.feed(*(np.pad(each, rest) for each in wanted))
        tokens = steps.run()[: self.batch]
        self._left = [tokens, wanted[1] + 1, wanted[2] + 1]
        self._note(np.ones((self.batch, 1), bool))
        return tokens

    def _run_prompts(self, ids: np.ndarray, positions: np.ndarray, real: np.ndarray, columns: range) -> np.ndarray:
        """Run the first tokens of all rows at once; see ``step``."""
        places = np.maximum(real.cumsum(axis=1) - 1, 0)  # of each column, without padding
        lengths = np.maximum(real.sum(axis=1), 1)
        width = int(lengths.max())
        packed = np.zeros((2, self.batch, width), np.int64)
        rows, found = np.nonzero(real)
        packed[:, rows, places[rows, found]] = ids[rows, found], positions[rows, found]
        kept = places[:, columns] + width * np.arange(self.batch)[:, None]
        logits = self.buffers.run(0, packed[0], packed[1], lengths - 1, kept.ravel())
        return logits.reshape(self.batch, len(columns), -1)

    def _run_rows(self, ids: np.ndarray, positions: np.ndarray, real: np.ndarray, columns: range) -> np.ndarray:
        """Run more tokens, one row after the other, as the operator takes them; see ``step``."""
        logits = np.zeros((self.batch, len(columns), self.model.config.vocab_size), np.float32)
        for row, begin in enumerate(self.lengths):
            some = np.flatnonzero(real[row])
            kept = np.searchsorted(some, [column for column in columns if real[row, column]])
            if len(some):
                last = np.array([begin + len(some) - 1])
                found = self.buffers.run(row, ids[row : row + 1, some], positions[row : row + 1, some], last, kept)
                logits[row, real[row, columns]] = found
        return logits

    def _note(self, real: np.ndarray) -> None:
        """Note new tokens, ``[batch, new]``, and padding among them."""
        self._mask = np.concatenate((self._mask, real), axis=1)
        self.lengths = self.lengths + real.sum(axis=1)  # a new array: a step may remember the last one
        self.used = self._mask.shape[1]

    def keep_rows(self, rows: np.ndarray) -> None:
        before = self.buffers
        if len(rows) > before.rows:
            self.buffers = self.pool.lend(self.model, len(rows))
        if self.buffers is not before or (rows != np.arange(len(rows))).any():
            self.buffers.take(before, rows)
        if self.buffers is not before:
            self.pool.take_back(before)
        self._mask, self.lengths = self._mask[rows], self.lengths[rows]
        self.batch, self._left = len(rows), []

    def keep_slots(self, slots: np.ndarray) -> None:
        """Keep these slots. The others hold padding, or the last tokens of their rows."""
        self._mask = self._mask[:, slots]
        self.lengths = self._mask.sum(axis=1)
        self.used = len(slots)
        self._left = []

    def arrays(self) -> list[np.ndarray]:
        return [value.read()[: self.batch, :, : self.used] for value in self.buffers.values]
