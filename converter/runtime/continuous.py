"""Continuous batching: texts join and leave at any step, and what is computed for one does not depend on the others.

Each row has a place in ``Slots``. A step runs one more token of every row whose prompt has been run. Prompts are run
between steps in chunks, so that the others wait for a chunk and not for a long prompt. Rows are served in the order in
which they join. What a row needs of its prompt and another place holds is copied, not computed: that is how the texts
of one prompt, and prompts with the same beginning, share the work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from converter.runtime.cache import CHUNK
from converter.runtime.options import GenerationOptions
from converter.runtime.rows import Row
from converter.runtime.slots import slots_of

if TYPE_CHECKING:
    from converter.runtime.session import Model

Advanced = tuple[Row, Exception | None]  # a row that has a new token, or what ended it without one


@dataclass(eq=False)
class Seat:
    """A row and its place.

    Attributes:
        pending: what is to be run next: of the prompt what is left, later the newest token.
        begun: whether its prompt has been looked up and its run has begun.
    """

    row: Row
    options: GenerationOptions
    place: int
    pending: list[int]
    begun: bool = False


class ContinuousBatch:
    """Rows that run side by side over one cache.

    Args:
        model: what runs them.
        rows: how many there may be.
        slots: how many tokens a row may have, its prompt included; by default as many as the model has positions.
        chunk: how many tokens of a prompt run at once. Longer ones are no faster, and the others wait for them.

    Attributes:
        generated: tokens that were chosen so far.
        computed: tokens of prompts that were run.
        shared: tokens of prompts that were copied from another place, or were there already.
    """

    def __init__(self, model: Model, rows: int, *, slots: int | None = None, chunk: int = CHUNK) -> None:
        self.slots = slots_of(model, rows, slots or model.config.n_positions)
        self.chunk = chunk
        self.generated = self.computed = self.shared = 0
        self._places: list[Seat | None] = [None] * rows
        self._prompts = deque[Seat]()  # those whose prompts are not done, in the order in which they joined

    @property
    def running(self) -> int:
        """Return how many rows there are."""
        return sum(seat is not None for seat in self._places)

    @property
    def is_full(self) -> bool:
        """Tell whether no place is free."""
        return None not in self._places

    def join(self, row: Row, options: GenerationOptions) -> None:
        """Give a row a place, of which one must be free. Nothing is computed yet."""
        place = self._places.index(None)
        seat = Seat(row, options, place, list(row.prompt_ids))
        self._places[place] = seat
        self._prompts.append(seat)

    def fill(self, rows: Iterator[Row], options: GenerationOptions) -> None:
        """Give free places to the next rows, as long as there are both."""
        while not self.is_full and (row := next(rows, None)) is not None:
            self.join(row, options)

    def leave(self, row: Row) -> None:
        """Free the place of a row, whether it has ended or not; nothing happens if it has none."""
        for seat in self._places:
            if seat is not None and seat.row is row:
                self._places[seat.place] = None
                if seat in self._prompts:
                    self._prompts.remove(seat)

    def advance(self) -> Iterator[Advanced]:
        """Run chunks of prompts and then one step; yield each row as it gets a token.

        A failure ends the rows that it concerns and leaves the others alone. A row that has ended has left.
        """
        begun = self.computed
        while self._prompts and self.computed - begun < self.chunk:
            yield from self._run_chunk(self._prompts[0])
        yield from self._step()

    def _run_chunk(self, seat: Seat) -> Iterator[Advanced]:
        """Run a chunk of a prompt. Its last token goes with the next step if there are others: that is one run less of
        the head, which has a third of the weights.
        """
        try:
            self._begin(seat)
            end = len(seat.pending) - 1 if self._ready() else len(seat.pending)
            part, logits = seat.pending[: min(end, self.chunk)], None
            if len(seat.pending) > 1:
                logits = self.slots.run(seat.place, part, wanted=len(part) == len(seat.pending))
                del seat.pending[: len(part)]
                self.computed += len(part)
        except Exception as error:  # whatever it is, it is handed to the one whom it concerns
            yield from self._fail([seat], error)
            return
        if len(seat.pending) <= 1:
            self._prompts.popleft()
            self.computed += len(seat.pending)
        if logits is not None and not seat.pending:
            yield self._take(seat, logits)

    def _begin(self, seat: Seat) -> None:
        """Look for the beginning of a prompt in all places, and copy it. The last token is run for its logits."""
        if seat.begun:
            return
        seat.begun = True
        source, count = self.slots.longest_prefix(seat.pending[:-1])
        self.slots.copy(source, seat.place, count)
        self.shared += count
        del seat.pending[:count]

    def _step(self) -> Iterator[Advanced]:
        self._close_up()
        seats = self._ready()
        if not seats:
            return
        asked = {seat.place: seat.pending[0] for seat in seats}
        needed = any(not seat.options.needs_no_logits for seat in seats)
        try:
            chosen = None if needed else self.slots.likeliest(asked)
            found = self.slots.step(asked) if chosen is None else chosen
        except Exception as error:  # see above
            yield from self._fail(seats, error)
            return
        for seat in seats:
            if self._places[seat.place] is seat:  # whoever is given a row may take others out
                yield self._take(seat, found[seat.place])

    def _fail(self, seats: Sequence[Seat], error: Exception) -> list[Advanced]:
        """Let rows leave that cannot go on."""
        for seat in seats:
            self.leave(seat.row)
        return [(seat.row, error) for seat in seats]

    def _ready(self) -> list[Seat]:
        """Return the seats whose prompts have been run, but for the last token at most."""
        return [seat for seat in self._places if seat is not None and seat not in self._prompts]

    def _close_up(self) -> None:
        """Move the last rows into free places before them: a step runs over all places up to the last."""
        for seat in reversed(self._ready()):
            free = next((place for place in range(seat.place) if self._places[place] is None), None)
            if free is None:
                return
            self.slots.copy(seat.place, free, int(self.slots.used[seat.place]))
            self._places[seat.place], self._places[free] = None, seat
            seat.place = free

    def _take(self, seat: Seat, found: np.ndarray | int) -> Advanced:
        """Take the next token of a row, or choose it from logits."""
        row = seat.row
        try:
            if isinstance(found, int):
                token, logits = found, None
            else:
                token, logits = seat.options.pick(found, row.history), found
            row.take(token, logits)
        except Exception as error:  # see above
            return self._fail([seat], error)[0]
        self.generated += 1
        seat.pending = [token]
        if row.ended:
            self.leave(row)
        return row, None
