"""What one row remembers: its tokens so far, and the random numbers that it draws."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np


class History:
    """The tokens of one row so far, and the random numbers that it draws.

    Args:
        prompt_ids: the tokens of the prompt.
        room: how many tokens may come.
        seed: the same one and the same prompt draw the same tokens, whatever stands in the batch beside them.
        number: tells rows of one prompt apart.
        end_ids: tokens that end the text.

    Attributes:
        new: how many tokens the text has.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        room: int,
        seed: int = 0,
        number: int = 0,
        end_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._slots = {token: slot for slot, token in enumerate(dict.fromkeys(prompt_ids))}
        self._tokens = np.zeros(len(self._slots) + room, np.int64)
        self._tokens[: len(self._slots)] = list(self._slots)
        self._counts = np.zeros(len(self._tokens), np.int64)
        self._ids = np.concatenate((np.asarray(prompt_ids, np.int64), np.zeros(room, np.int64)))
        self._prompt, self.new, self.end_ids = len(prompt_ids), 0, end_ids
        self._entropy = [seed, number, *prompt_ids]
        self._stream: np.random.Generator | None = None

    @property
    def tokens(self) -> np.ndarray:
        """Return the tokens of prompt and text, each once."""
        return self._tokens[: len(self._slots)]

    @property
    def ids(self) -> np.ndarray:
        """Return the tokens of prompt and text, in their order."""
        return self._ids[: self._prompt + self.new]

    @property
    def counts(self) -> np.ndarray:
        """Return how often each of these tokens is in the text, without the prompt."""
        return self._counts[: len(self._slots)]

    def add(self, token: int) -> None:
        """Take in the text's next token."""
        slot = self._slots.setdefault(token, len(self._slots))
        self._tokens[slot] = token
        self._counts[slot] += 1
        self._ids[self._prompt + self.new] = token
        self.new += 1

    def fork(self) -> History:
        """Return a copy, for another continuation of the same text."""
        twin = copy.copy(self)
        twin._slots, twin._tokens, twin._counts = self._slots.copy(), self._tokens.copy(), self._counts.copy()
        twin._ids = self._ids.copy()
        return twin

    def random(self) -> float:
        """Return the row's next random number, in [0, 1)."""
        if self._stream is None:
            self._stream = np.random.default_rng(self._entropy)
        return self._stream.random()
