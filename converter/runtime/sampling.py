"""Choose tokens from logits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converter.errors import PromptError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The steps and their order are those of transformers' ``generate``.

    Attributes:
        repetition_penalty: logits of tokens of the prompt and the text are divided by it where positive and multiplied
            by it where negative (Keskar et al., arXiv:1909.05858).
        frequency_penalty: taken off a token's logit for every time the text, without the prompt, has it (OpenAI's).
        presence_penalty: taken off once if the text has it at all (OpenAI's).
        temperature: 0 takes the likeliest token; above it logits are divided by it and a token is drawn.
        top_k: draw among the k likeliest (0: among all).
        top_p: draw among the fewest likeliest tokens whose probabilities reach p (Holtzman et al., arXiv:1904.09751).
        min_p: draw among the tokens that are at least this times as probable as the likeliest (arXiv:2407.01082).

    Raises:
        PromptError: a number is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        finite = np.inf
        for name, sound, expected in (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", isinstance(self.top_k, int | np.integer) and self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < finite, "above 0"),
            ("frequency_penalty", abs(self.frequency_penalty) < finite, "a number"),
            ("presence_penalty", abs(self.presence_penalty) < finite, "a number"),
        ):
            if not sound:
                raise PromptError(f"{name} is {getattr(self, name)}; expected {expected}")

    @property
    def penalises(self) -> bool:
        """Tell whether the tokens so far change the next logits."""
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)

    def choose(self, logits: np.ndarray, histories: Sequence[History]) -> list[int]:
        """Choose a token for each row of logits ``[batch, vocab_size]``. Each row draws its own random numbers."""
        if self.temperature == 0 and not self.penalises:
            return logits.argmax(axis=-1).tolist()
        return [self.pick(scores, history) for scores, history in zip(logits, histories, strict=True)]

    def pick(self, logits: np.ndarray, history: History) -> int:
        """Choose a token from the logits ``[vocab_size]`` of one row."""
        scores = self.penalise(logits, history) if self.penalises else logits
        if self.temperature == 0:
            return int(scores.argmax())
        tokens, probabilities = self.candidates(scores)
        reached = probabilities.cumsum()
        drawn = int(np.searchsorted(reached, history.random() * reached[-1], side="right"))
        return int(tokens[min(drawn, len(tokens) - 1)])

    def penalise(self, logits: np.ndarray, history: History) -> np.ndarray:
        """Return the logits ``[vocab_size]``, float64, with penalties for tokens that are there already."""
        scores = logits.astype(np.float64)
        tokens, counts = history.tokens, history.counts
        seen = scores[tokens]
        seen = np.where(seen < 0, seen * self.repetition_penalty, seen / self.repetition_penalty)
        scores[tokens] = seen - self.frequency_penalty * counts - self.presence_penalty * (counts > 0)
        return scores

    def candidates(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens that may be drawn, ascending, and their probabilities, float64, which sum to 1."""
        if 0 < self.top_k < len(logits):
            tokens = np.flatnonzero(logits >= np.partition(logits, -self.top_k)[-self.top_k])  # those as likely too
            scores = logits[tokens].astype(np.float64)
        else:
            tokens, scores = np.arange(len(logits)), logits.astype(np.float64)
        scores -= scores.max()
        with np.errstate(over="ignore"):  # the likeliest token is at 0 however small the temperature
            scores /= self.temperature
        probabilities = _shares(np.exp(scores, out=scores))
        if self.top_p < 1:
            kept = _top_p(probabilities, self.top_p)
            tokens, probabilities = tokens[kept], _shares(probabilities[kept])
        if self.min_p > 0:
            likely = probabilities >= self.min_p * probabilities.max()
            tokens, probabilities = tokens[likely], _shares(probabilities[likely])
        return tokens, probabilities

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the probabilities ``[batch, vocab_size]``, float64, without penalties; 0 for tokens that cannot be
        drawn.
        """
        whole = np.zeros(logits.shape)
        for row, scores in zip(whole, logits, strict=True):
            tokens, probabilities = self.candidates(scores)
            row[tokens] = probabilities
        return whole


class History:
    """The tokens of one row so far, and the random numbers that it draws.

    Args:
        prompt_ids: the tokens of the prompt.
        room: how many tokens may come.
        seed: the same one and the same prompt draw the same tokens, whatever stands in the batch beside them.
        number: tells rows of one prompt apart.
    """

    def __init__(self, prompt_ids: Sequence[int], room: int, seed: int = 0, number: int = 0) -> None:
        self._slots = {token: slot for slot, token in enumerate(dict.fromkeys(prompt_ids))}
        self._tokens = np.zeros(len(self._slots) + room, np.int64)
        self._tokens[: len(self._slots)] = list(self._slots)
        self._counts = np.zeros(len(self._tokens), np.int64)
        self._entropy = [seed, number, *prompt_ids]
        self._stream: np.random.Generator | None = None

    @property
    def tokens(self) -> np.ndarray:
        """Return the tokens of prompt and text, each once."""
        return self._tokens[: len(self._slots)]

    @property
    def counts(self) -> np.ndarray:
        """Return how often each of these tokens is in the text, without the prompt."""
        return self._counts[: len(self._slots)]

    def add(self, token: int) -> None:
        """Take in the text's next token."""
        slot = self._slots.setdefault(token, len(self._slots))
        self._tokens[slot] = token
        self._counts[slot] += 1

    def fork(self) -> History:
        """Return a copy, for another continuation of the same text."""
        twin = copy.copy(self)
        twin._slots, twin._tokens, twin._counts = self._slots.copy(), self._tokens.copy(), self._counts.copy()
        return twin

    def random(self) -> float:
        """Return the row's next random number, in [0, 1)."""
        if self._stream is None:
            self._stream = np.random.default_rng(self._entropy)
        return self._stream.random()


def _top_p(probabilities: np.ndarray, p: float) -> np.ndarray:
    """Return the places, ascending, of the fewest likeliest tokens whose probabilities reach p, with the one that
    crosses it.
    """
    # Tokens this rare add up to less than 1 - p whatever their number: they need no place in the order.
    some = np.flatnonzero(probabilities >= (1 - p) / len(probabilities))
    order = some[np.argsort(-probabilities[some], kind="stable")]
    ordered = probabilities[order]
    return np.sort(order[ordered.cumsum() - ordered < p])


def _shares(values: np.ndarray) -> np.ndarray:
    """Normalize in place, so that the numbers sum to 1."""
    values /= values.sum()
    return values
