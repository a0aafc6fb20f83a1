"""Choose tokens from logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converter.runtime.bans import completing, repeating
from converter.runtime.history import History
from converter.runtime.values import IDS, NONE_OR_MORE, NUMBER, WORDS, number_where, refuse_unsound

CHECKS = {
    "temperature": number_where(lambda value: value >= 0, "0 or more"),
    "top_k": NONE_OR_MORE,
    "top_p": number_where(lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "min_p": number_where(lambda value: 0 <= value <= 1, "0 to 1"),
    "repetition_penalty": number_where(lambda value: value > 0, "above 0"),
    "frequency_penalty": NUMBER,
    "presence_penalty": NUMBER,
    "no_repeat_ngram_size": NONE_OR_MORE,
    "bad_words_ids": WORDS,
    "suppress_tokens": IDS,
    "min_new_tokens": NONE_OR_MORE,
    "min_length": NONE_OR_MORE,
}

SOME_PROBABILITIES = (1e-3, 1e-5)  # tokens as likely as this are looked at first
ROUNDING = 1e-9  # far above that of a sum of probabilities, far below any p that matters


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
        no_repeat_ngram_size: no run of so many tokens comes twice in prompt and text; 0 allows all.
        bad_words_ids: runs of tokens of which the last may not come after the others.
        suppress_tokens: tokens that may not come.
        min_new_tokens: the text does not end before it has so many tokens.
        min_length: nor before prompt and text together have so many.

    Raises:
        PromptError: a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] = ()
    suppress_tokens: Sequence[int] = ()
    min_new_tokens: int = 0
    min_length: int = 0

    def __post_init__(self) -> None:
        refuse_unsound(self, CHECKS)

    @property
    def penalises(self) -> bool:
        """Tell whether the tokens so far change the next logits, or rule tokens out."""
        penalties = (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)
        return penalties or self._bans

    @property
    def takes_likeliest(self) -> bool:
        """Tell whether the likeliest token is taken, whatever came before."""
        return self.temperature == 0 and not self.penalises

    @property
    def _bans(self) -> bool:
        lists = len(self.bad_words_ids) or len(self.suppress_tokens)
        return bool(lists or self.no_repeat_ngram_size or self.min_new_tokens or self.min_length)

    def choose(self, logits: np.ndarray, histories: Sequence[History]) -> list[int]:
        """Choose a token for each row of logits ``[batch, vocab_size]``. Each row draws its own random numbers."""
        if self.takes_likeliest:
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
        """Return the logits ``[vocab_size]``, float64, with penalties for tokens that are there already, and minus
        infinity for those that may not come.
        """
        scores = logits.astype(np.float64)
        tokens, counts = history.tokens, history.counts
        seen = scores[tokens]
        with np.errstate(over="ignore"):  # minus infinity is what an absurd penalty asks for
            seen = np.where(seen < 0, seen * self.repetition_penalty, seen / self.repetition_penalty)
        scores[tokens] = seen - self.frequency_penalty * counts - self.presence_penalty * (counts > 0)
        if self._bans:
            scores[self._banned(history, len(scores))] = -np.inf
        return scores

    def _banned(self, history: History, vocab_size: int) -> np.ndarray:
        """Return the tokens that may not come next."""
        banned = [np.asarray(self.suppress_tokens, np.int64)]
        banned.append(np.array(completing(history.ids, self.bad_words_ids, history.end_ids), np.int64))
        if self.no_repeat_ngram_size:
            banned.append(repeating(history.ids, self.no_repeat_ngram_size))
        if len(history.ids) < self.min_length or history.new < self.min_new_tokens:
            banned.append(np.array(sorted(history.end_ids), np.int64))
        tokens = np.concatenate(banned)
        return tokens[(tokens >= 0) & (tokens < vocab_size)]

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


def _top_p(probabilities: np.ndarray, p: float) -> np.ndarray:
    """Return the places, ascending, of the fewest likeliest tokens whose probabilities reach p, with the one that
    crosses it.
    """
    # Most of the time is sorting, and few tokens make up most of the probability: the rest needs no place in the order.
    # Tokens rarer than the last of these add up to less than 1 - p, whatever their number.
    for least in (*SOME_PROBABILITIES, (1 - p) / len(probabilities)):
        some = np.flatnonzero(probabilities >= least)
        if probabilities[some].sum() > p + ROUNDING:
            break
    order = some[np.argsort(-probabilities[some], kind="stable")]
    ordered = probabilities[order]
    return np.sort(order[ordered.cumsum() - ordered < p])


def _shares(values: np.ndarray) -> np.ndarray:
    """Normalize in place, so that the numbers sum to 1."""
    values /= values.sum()
    return values
