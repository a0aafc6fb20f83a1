"""Beam search as transformers does it: several texts of one prompt at once, of which the likeliest go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from converter.runtime.batch import Batch
from converter.runtime.history import History
from converter.runtime.likelihood import log_softmax
from converter.runtime.options import GenerationOptions
from converter.runtime.rows import Row, room
from converter.runtime.tokens import OnText

if TYPE_CHECKING:
    from converter.runtime.session import Model

IMPOSSIBLE = -1e9  # the score of a beam that there is not; transformers' number


def search(
    model: Model, prompts: list[list[int]], options: GenerationOptions, tick: Callable[[], None], on_text: OnText | None
) -> tuple[list[Row], list[float]]:
    """Return the best texts of each prompt, the best first, and their scores.

    Args:
        model: what runs them.
        prompts: token ids; the searches of several run side by side and do not know of each other.
        options: all are used but those that draw. Penalties change log-probabilities here, as in transformers.
        tick: called once a token.
        on_text: called with each row's text, when all searches are over.
    """
    limits = [room(model, prompt, options) for prompt in prompts]
    searches = [Search(model, options, prompt, limit) for prompt, limit in zip(prompts, limits, strict=True)]
    _run(Batch(model, prompts, max(limits)), searches, options.beams, tick)
    rows, scores = list[Row](), list[float]()
    for prompt, found in zip(prompts, searches, strict=True):
        for score, ids in found.finished[: options.best]:
            row = Row(model, prompt, options, number=len(rows), on_text=on_text)
            for token in ids:
                row.take(token)
            rows.append(row)
            scores.append(score)
    return rows, scores


def _run(batch: Batch, searches: list[Search], beams: int, tick: Callable[[], None]) -> None:
    """Run the searches side by side until the last ends. A search that has ended leaves the batch."""
    logits = batch.prefill()
    order = np.repeat(np.arange(len(searches)), beams)  # the beams of a prompt begin as one
    batch.keep(order)
    logits = logits[order]
    while True:
        for found, scores in zip(searches, np.split(log_softmax(logits), len(searches)), strict=True):
            found.advance(scores)
        tick()
        live = [i for i, found in enumerate(searches) if not found.over]
        if not live:
            return
        order = np.concatenate([i * beams + searches[i].origins for i in live])
        searches = [searches[i] for i in live]
        if len(order) < len(logits) or (order != np.arange(len(order))).any():
            batch.keep(order)
        logits = batch.step(np.concatenate([found.tokens for found in searches]).tolist())


class Search:
    """The search for one prompt.

    Args:
        model: whose tokens they are.
        options: how many beams, what they are worth, and what ends a text.
        prompt: its token ids.
        limit: how many tokens a text may have.

    Attributes:
        origins: for each beam, which beam of the step before it continues; ``[beams]``.
        tokens: with what token; ``[beams]``.
        finished: score and tokens of each text that has ended, the best first.
        over: whether nothing better can come.
    """

    def __init__(self, model: Model, options: GenerationOptions, prompt: list[int], limit: int) -> None:
        self.options, self.prompt, self.limit = options, prompt, limit
        self.end_ids, self.tokenizer = np.array(sorted(model.end_ids), np.int64), model.tokenizer
        self.origins = self.tokens = np.zeros(options.beams, np.int64)
        self.finished, self.over = list[tuple[float, list[int]]](), False
        # So many that as many as there are beams go on even if every beam has met every end.
        most = options.beams * model.config.vocab_size
        self._candidates = min(max(2, 1 + len(self.end_ids)) * options.beams, most)
        self._ids = np.zeros((options.beams, limit), np.int64)
        self._scores = np.full(options.beams, IMPOSSIBLE)
        self._scores[0] = 0  # they begin alike: one of them only may be continued
        self._length = 0
        ends = model.end_ids
        self._histories = [
            History(prompt, limit, end_ids=ends) for _ in range(options.beams if options.penalises else 0)
        ]

    def advance(self, scores: np.ndarray) -> None:
        """Take one more token; ``scores`` are log-probabilities, ``[beams, vocab_size]`` float64."""
        if self._histories:
            scores = np.stack([self.options.penalise(*given) for given in zip(scores, self._histories, strict=True)])
        totals, origins, tokens = self._best(scores)
        stopped = self._stopped(origins, tokens)
        self._length += 1
        ends = np.isin(tokens, self.end_ids) | stopped | (self._length >= self.limit)
        self._finish(totals, origins, tokens, ends)
        totals = totals + ends * IMPOSSIBLE
        running = np.argsort(-totals, kind="stable")[: self.options.beams]
        self.origins, self.tokens, self._scores = origins[running], tokens[running], totals[running]
        self._ids = self._ids[self.origins]
        self._ids[:, self._length - 1] = self.tokens
        self._histories = [self._histories[origin].fork() for origin in self.origins if self._histories]
        for history, token in zip(self._histories, self.tokens, strict=False):
            history.add(int(token))
        self.over = bool(ends.all()) or self._settled()

    def _best(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return scores, beams and tokens of the likeliest continuations of all beams, the likeliest first."""
        totals = (scores + self._scores[:, None]).ravel()
        some = np.argpartition(totals, -self._candidates)[-self._candidates :]
        some = some[np.lexsort((some, -totals[some]))]
        return totals[some], *np.divmod(some, scores.shape[1])

    def _stopped(self, origins: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Tell which continuations complete a stop string; bool ``[candidates]``."""
        if not self.options.stop or self.tokenizer is None:
            return np.zeros(len(tokens), bool)
        # A token is a byte or more: a stop string that ends with the newest lies in so many; the one before is context.
        longest = max(len(string.encode()) for string in self.options.stop)
        begin = max(0, self._length - longest)
        context = self._ids[:, begin - 1 : begin] if begin else np.tile(self.prompt[-1:], (len(self._ids), 1))
        stopped = []
        for origin, token in zip(origins, tokens, strict=True):
            before = context[origin].tolist()
            window = [*before, *self._ids[origin, begin : self._length].tolist(), int(token)]
            text = self.tokenizer.decode(window).removeprefix(self.tokenizer.decode(before))
            stopped.append(any(string in text for string in self.options.stop))
        return np.array(stopped)

    def _finish(self, totals: np.ndarray, origins: np.ndarray, tokens: np.ndarray, ends: np.ndarray) -> None:
        """Take in the first candidates that have ended, as many as there are beams, and keep the best."""
        for i in np.flatnonzero(ends[: self.options.beams]):
            ids = [*self._ids[origins[i], : self._length - 1].tolist(), int(tokens[i])]
            self.finished.append((float(totals[i]) / self._length**self.options.length_penalty, ids))
        self.finished.sort(key=lambda found: -found[0])
        del self.finished[self.options.beams :]

    @property
    def _full(self) -> bool:
        return len(self.finished) == self.options.beams

    def _settled(self) -> bool:
        """Tell whether as many texts have ended as there are beams, and no running text can be better."""
        if not self._full or self.options.early_stopping is True:
            return self._full
        never = self.options.early_stopping == "never" and self.options.length_penalty > 0
        length = self.limit if never else self._length
        return float(self._scores[0]) / length**self.options.length_penalty <= self.finished[-1][0]
