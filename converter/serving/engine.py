"""The engine of a server: requests of many, side by side over one session, on a thread of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from converter.errors import EngineClosed, EngineFull, PromptError
from converter.runtime.cache import CHUNK
from converter.runtime.continuous import ContinuousBatch
from converter.runtime.generation import Copies, refuse_what_cannot_be, rows_of
from converter.runtime.options import GenerationOptions
from converter.runtime.rows import Row
from converter.runtime.session import Model
from converter.runtime.tokens import Token
from converter.serving.limits import QUEUE, ROWS

Deliver = Callable[[int, Token | Exception], None]  # the number of a request's text, and what came of it


@dataclass(frozen=True)
class EngineStats:
    """What an engine is doing, and what it has done.

    Attributes:
        rows: texts that may run side by side.
        running: those that do.
        queue: texts that may wait.
        waiting: those that do.
        generated_tokens: that were chosen.
        prompt_tokens: that were computed.
        shared_tokens: of prompts, that were there already and were not computed again.
        cache_bytes: of the cache, if every row were full.
    """

    rows: int
    running: int
    queue: int
    waiting: int
    generated_tokens: int
    prompt_tokens: int
    shared_tokens: int
    cache_bytes: int


class Ticket:
    """One text of a request.

    Attributes:
        row: the text as it grows. It belongs to the engine's thread until it has ended.
        number: of the text among those of its request.
        error: what ended it, if it did not end by itself; None until then.
    """

    def __init__(self, engine: Engine, row: Row, options: GenerationOptions, deliver: Deliver) -> None:
        self.row, self.number = row, row.number
        self._engine, self._options, self._deliver = engine, options, deliver
        self._shown, self._cancelled = 0, False
        self.error: Exception | None = None

    def cancel(self) -> None:
        """End the text and free its place. At most a token that is under way is delivered after this."""
        self._engine._cancel(self)

    def _hand_out(self) -> None:
        """Deliver the tokens that have come."""
        for token in self.row.tokens[self._shown :]:
            self._shown += 1
            self._deliver(self.number, token)


class Engine:
    """Runs the requests of many side by side over one session, on a thread of its own.

    The tokens of a request are those of ``model.generate`` with the same options and seed, whatever runs beside it.
    Requests are served in the order in which they come.

    Args:
        model: what runs them.
        rows: texts that run side by side. Each has room for as many tokens as the model has positions.
        queue: texts that may wait for a place.
        chunk: tokens of prompts that run between two steps of the others.
    """

    def __init__(self, model: Model, *, rows: int = ROWS, queue: int = QUEUE, chunk: int = CHUNK) -> None:
        self.model, self.rows, self.queue = model, rows, queue
        self._batch = ContinuousBatch(model, rows, chunk=chunk)
        self._waiting, self._seated = deque[Ticket](), dict[Row, Ticket]()
        self._changed = threading.Condition()
        self._draining = self._closing = False
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Tell whether the thread runs."""
        return self._thread.is_alive()

    def submit(
        self, prompt_ids: Sequence[int], options: GenerationOptions, deliver: Deliver, copies: Copies | None = None
    ) -> list[Ticket]:
        """Ask for the continuation of a prompt. The call does not wait.

        Args:
            prompt_ids: the prompt, as ``model.encode`` gives it.
            options: see ``converter.runtime.generation.options_of``. ``best`` texts are computed from one run of the
                prompt.
            deliver: called on the engine's thread with the number of a text (0 to ``best`` - 1) and each of its tokens
                as it comes. The last one has ``ended``. An exception in place of a token ends the text. What
                ``deliver`` itself raises ends it too.
            copies: tells texts of one prompt and seed apart that come from several calls; by default each call begins
                anew, as ``model.generate`` does.

        Returns:
            A ticket for each text.

        Raises:
            PromptError: ``generate`` would refuse it; or it asks for beams or speculation, which do not run beside
                others.
            EngineFull: no more texts may wait.
            EngineClosed: the engine takes no more requests.
        """
        (ids,) = self.model.encode([prompt_ids])
        refuse_what_cannot_be(self.model, [ids], options)
        self._refuse_what_runs_alone(options)
        rows = rows_of(self.model, [ids], options, None, copies or Copies(options.seed))
        tickets = [Ticket(self, row, options, deliver) for row in rows]
        with self._changed:
            if self._draining:
                raise EngineClosed("the server is being shut down and takes no more requests")
            if len(self._seated) + len(self._waiting) + len(tickets) > self.rows + self.queue:
                raise EngineFull(
                    f"{len(self._seated)} texts run and {len(self._waiting)} wait, of {self.rows} and {self.queue} "
                    f"that may; try again later"
                )
            self._waiting.extend(tickets)
            self._changed.notify_all()
        return tickets

    def _refuse_what_runs_alone(self, options: GenerationOptions) -> None:
        name = "beams" if options.beams > 1 else "speculate" if options.speculate else None
        if name:
            raise PromptError(f"{name} is for one request at a time and is not served: omit it, or use generate")
        if options.best > self.rows + self.queue:
            raise PromptError(f"best is {options.best}; this server gives at most {self.rows + self.queue} texts")

    def drain(self, seconds: float) -> bool:
        """Take no more requests and wait until those that are there have ended.

        Args:
            seconds: to wait at most.

        Returns:
            Whether all have ended.
        """
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not self._waiting and not self._seated, seconds)

    def close(self) -> None:
        """Take no more requests, end those that are there with ``EngineClosed``, and stop the thread."""
        with self._changed:
            self._draining = self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        else:
            self._end_all()

    @property
    def stats(self) -> EngineStats:
        """Return what the engine is doing, and what it has done."""
        batch = self._batch
        return EngineStats(
            rows=self.rows,
            running=len(self._seated),
            queue=self.queue,
            waiting=len(self._waiting),
            generated_tokens=batch.generated,
            prompt_tokens=batch.computed,
            shared_tokens=batch.shared,
            cache_bytes=batch.slots.nbytes,
        )

    def _cancel(self, ticket: Ticket) -> None:
        with self._changed:
            ticket._cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            self._changed.notify_all()

    def _serve(self) -> None:
        while self._admit():
            for row, error in self._batch.advance():
                self._advanced(self._seated[row], error)
        self._end_all()

    def _admit(self) -> bool:
        """Free the places of those that have ended, give them to those that wait, wait if there is nothing to do.

        Returns:
            Whether there is something to run; not once the engine is closed.
        """
        with self._changed:
            while True:
                for row in [row for row, ticket in self._seated.items() if ticket._cancelled or ticket.error]:
                    self._seated.pop(row)
                    self._batch.leave(row)
                while self._waiting and not self._batch.is_full:
                    ticket = self._waiting.popleft()
                    self._seated[ticket.row] = ticket
                    self._batch.join(ticket.row, ticket._options)
                self._changed.notify_all()
                if self._seated or self._closing:
                    return not self._closing
                self._changed.wait()

    def _advanced(self, ticket: Ticket, error: Exception | None) -> None:
        """Hand out what came of a step."""
        if ticket._cancelled:
            self._batch.leave(ticket.row)
            return
        try:
            if error is None:
                ticket._hand_out()
            else:
                ticket._deliver(ticket.number, error)
        except Exception as own:  # deliver is the caller's, and may not end the requests of others
            error = own
        if error is not None:
            ticket.error = error
            self._batch.leave(ticket.row)
        elif ticket.row.ended:
            with self._changed:
                del self._seated[ticket.row]

    def _end_all(self) -> None:
        """End all requests."""
        with self._changed:
            left = [*self._seated.values(), *self._waiting]
            self._seated.clear()
            self._waiting.clear()
            self._changed.notify_all()
        for ticket in left:
            self._advanced(ticket, EngineClosed("the server was shut down before the text had ended"))
