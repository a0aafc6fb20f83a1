"""Speculation: propose tokens that followed in the text before, and check several of them in one run.

A run over the last token and the proposed ones gives the logits after each of them: what greedy generation would have
chosen there. Proposals are accepted as far as they agree, and the choice that first differs is a token too, so that
every run gives at least the one that plain generation would have given. What was not accepted is cut off the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from converter.runtime.batch import Batch
from converter.runtime.options import GenerationOptions
from converter.runtime.rows import Row

if TYPE_CHECKING:
    from converter.runtime.session import Model

NGRAMS = (3, 2, 1)  # lengths of what is looked up, the longest first


@dataclass(frozen=True)
class Speculation:
    """How many proposals were made, and how many were right.

    Attributes:
        runs: of the graph, after the prompt's.
        proposed: tokens.
        accepted: those of them that were right.
        tokens: that came of all runs.
    """

    runs: int
    proposed: int
    accepted: int
    tokens: int

    @property
    def acceptance(self) -> float:
        """Return the share of proposed tokens that were accepted."""
        return self.accepted / self.proposed if self.proposed else 0.0

    @property
    def tokens_per_run(self) -> float:
        """Return the tokens that a run gives on average; plain generation gives 1."""
        return self.tokens / self.runs if self.runs else 0.0


class Lookup:
    """Where each short sequence of tokens last stood in a text, without its very end."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list[int]()
        self._after: dict[tuple[int, ...], int] = {}  # n-gram → where what followed it stands
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """Take in the text's next token."""
        place = len(self.ids)
        for n in NGRAMS:
            if place >= n:
                self._after[tuple(self.ids[-n:])] = place
        self.ids.append(token)

    def propose(self, count: int) -> list[int]:
        """Return the tokens that followed the last ones earlier in the text; none if these never stood there.

        Where that runs into the end of the text it goes on with what it has proposed: a loop is taken for a loop.
        """
        tails = (tuple(self.ids[-n:]) for n in NGRAMS if len(self.ids) >= n)
        place = next((self._after[tail] for tail in tails if tail in self._after), None)
        if place is None:
            return []
        period = len(self.ids) - place
        return [self.ids[place + i % period] for i in range(count)]


def speculate(model: Model, row: Row, options: GenerationOptions) -> Iterator[Speculation]:
    """Run one row until it ends, and yield what came of each run. The tokens are those of plain generation."""
    bold = most = min(options.speculate, row.limit)
    batch = Batch(model, [row.prompt_ids], row.limit + most)
    lookup, runs, proposed, accepted = Lookup(row.prompt_ids), 0, 0, 0
    logits = batch.prefill()
    token = options.choose(logits, [row.history])[0]
    row.take(token, logits[0])
    yield Speculation(runs, proposed, accepted, 0)
    while not row.ended:
        lookup.add(token)
        proposals = lookup.propose(min(bold, row.limit - len(row.new_ids) - 1))
        logits = batch.run([token, *proposals])
        agreed = 0
        for agreed, scores in enumerate(logits):
            token = options.pick(scores, row.history)
            row.take(token, scores)
            if row.ended or agreed == len(proposals) or token != proposals[agreed]:
                break
            lookup.add(token)
        runs, proposed, accepted = runs + 1, proposed + len(proposals), accepted + agreed
        yield Speculation(runs, proposed, accepted, max(0, len(row.new_ids) - 1))
        batch.take_back(len(proposals) - agreed)
        bold = min(2 * bold, most) if agreed == len(proposals) else agreed + 1
