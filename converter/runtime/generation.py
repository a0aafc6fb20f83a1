"""The generation loop: prompts of any lengths as one batch, padded on the left, with whatever ends and chooses them."""

from __future__ import annotations

import secrets
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from converter.errors import PromptError
from converter.runtime.batch import Batch
from converter.runtime.generation_config import NO_CONFIG, renamed
from converter.runtime.history import History
from converter.runtime.options import GenerationOptions
from converter.runtime.reader import Prompts
from converter.runtime.rows import Row, room
from converter.runtime.session import Model
from converter.runtime.speculation import Speculation, speculate
from converter.runtime.tokens import OnText, Token

SHOWN = 60  # characters of a text in a repr


class Clock:
    """The time until the first token of a generation, and the time after it."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.first = self.last = self.began

    def tick(self) -> None:
        """Note that a token has been chosen."""
        self.last = time.perf_counter()
        if self.first == self.began:
            self.first = self.last


@dataclass(frozen=True)
class Generation:
    """What was generated, row by row in the order of the prompts; the texts of one prompt follow one another.

    Attributes:
        prompt_ids: the tokens of each row's prompt.
        new_ids: the tokens that follow it, without the end-of-text token, but with those of a stop string.
        tokens: the same tokens and the end-of-text token, each with the text that it completed and, with ``logprobs``,
            how likely it was.
        texts: the new tokens as text, without a stop string; empty without a tokenizer.
        ended: why each row ended.
        prefill_seconds: until the first token.
        decode_seconds: for all others.
        best: how many rows each prompt has.
        scores: of beams, the log-probability of each row by its length to the power of the length penalty; else empty.
        speculation: what was proposed and accepted, if anything was.
    """

    prompt_ids: list[list[int]]
    new_ids: list[list[int]]
    texts: list[str]
    ended: list[str]
    prefill_seconds: float
    decode_seconds: float
    tokens: list[tuple[Token, ...]] = field(default_factory=list)
    best: int = 1
    scores: tuple[float, ...] = ()
    speculation: Speculation | None = None

    def __repr__(self) -> str:
        new, rows = sum(map(len, self.new_ids)), len(self.new_ids)
        begins = f": {shorten(self.texts[0])!r}" if any(self.texts) else ""
        return f"Generation({rows} {'text' if rows == 1 else 'texts'}, {new} new tokens{begins})"

    @property
    def tokens_per_second(self) -> float:
        """Return the new tokens of all rows per second, without the first of each; 0 if there were none."""
        later = sum(max(0, len(ids) - 1) for ids in self.new_ids)
        return later / self.decode_seconds if self.decode_seconds else 0.0


def generate(
    model: Model,
    prompts: Prompts,
    *,
    on_text: OnText | None = None,
    generation_config: bool = True,
    **given: Any,
) -> Generation:
    """Continue each of ``prompts``; see ``Model.generate``, which says what may be given."""
    asked = options_of(model, given, generation_config)
    return generate_together(model, model.encode(prompts), asked, on_text)


def generate_each(
    model: Model,
    prompts: Sequence[list[int]],
    asked: GenerationOptions,
    side_by_side: int,
    copies: Copies | None = None,
) -> Iterator[Generation]:
    """Continue many prompts; yield what comes of the next, one or several: what would come of all at once.

    Args:
        model: what runs them.
        prompts: token ids.
        asked: the options of all.
        side_by_side: how many texts run at once. One that has ended makes room for the next, where that can be; else
            so many prompts are a batch.
        copies: of the prompts that came before these; by default none did.

    Raises:
        PromptError: see ``Model.generate``.
    """
    copies = copies or Copies(asked.seed)
    if asked.beams == 1 and not asked.speculate and model.in_place:
        yield from _generate_continuously(model, prompts, asked, side_by_side, copies)
        return
    size = 1 if asked.speculate else side_by_side
    for at in range(0, len(prompts), size):
        yield generate_together(model, list(prompts[at : at + size]), asked, copies=copies)


def _generate_continuously(
    model: Model, prompts: Sequence[list[int]], asked: GenerationOptions, side_by_side: int, copies: Copies
) -> Iterator[Generation]:
    from converter.runtime.continuous import ContinuousBatch

    refuse_what_cannot_be(model, list(prompts[:1]), asked)
    most = max((len(ids) + room(model, ids, asked) for ids in prompts), default=1)
    batch = ContinuousBatch(model, side_by_side, slots=most)
    begun, clocks = deque[list[Row]](), dict[Row, Clock]()

    def coming() -> Iterator[Row]:
        for ids in prompts:
            rows = rows_of(model, [ids], asked, None, copies)
            begun.append(rows)
            clocks.update(dict.fromkeys(rows, Clock()))
            yield from rows

    rows = coming()
    batch.fill(rows, asked)
    while begun:
        for row, error in batch.advance():
            if error is not None:
                raise error
            clocks[row].tick()
        batch.fill(rows, asked)
        while begun and all(row.ended for row in begun[0]):
            done = begun.popleft()
            clock = [clocks.pop(row) for row in done][-1]
            yield _generation(done, clock, asked.best)


def stream(model: Model, prompt: Any, *, generation_config: bool = True, **given: Any) -> Iterator[Token]:
    """Continue one prompt, token by token; see ``Model.stream``."""
    asked = options_of(model, {"beams": 1, "best": 1} | renamed(given), generation_config)
    encoded = model.encode(prompt)
    if (asked.beams, asked.best, len(encoded)) != (1, 1, 1):
        raise PromptError("stream gives one text of one prompt: generate takes several prompts, best and beams")
    refuse_what_cannot_be(model, encoded, asked)
    rows = rows_of(model, encoded, asked, None, Copies(asked.seed))
    return _streamed(_steps(model, encoded, rows, asked), rows[0])


def _streamed(steps: Iterator[Any], row: Row) -> Iterator[Token]:
    shown = 0
    for _ in steps:
        yield from row.tokens[shown:]
        shown = len(row.tokens)


def options_of(model: Model, given: Mapping[str, Any], generation_config: bool = True) -> GenerationOptions:
    """Return the options that are given, with those of the folder's ``generation_config.json`` that go with them.

    What that file asks for in vain is said once for each model, as a warning.

    Raises:
        PromptError: an option is unknown or out of range, or does not go with the others.
        ConfigError: ``generation_config.json`` is damaged.
    """
    config = model.generation_config if generation_config else NO_CONFIG
    asked = config.with_given(renamed(given))
    sentence = config.left_aside(asked)
    if sentence and sentence not in model.said:
        model.said.add(sentence)
        warnings.warn(sentence, stacklevel=4)
    return asked


def generate_together(
    model: Model,
    encoded: list[list[int]],
    asked: GenerationOptions,
    on_text: OnText | None = None,
    copies: Copies | None = None,
) -> Generation:
    """Continue prompts, given as token ids, as one batch; see ``Model.generate``.

    Raises:
        PromptError: they cannot be continued.
    """
    refuse_what_cannot_be(model, encoded, asked)
    clock, scores, speculation = Clock(), list[float](), None
    if asked.beams > 1:
        from converter.runtime.beams import search

        rows, scores = search(model, encoded, asked, clock.tick, on_text)
    else:
        rows = rows_of(model, encoded, asked, on_text, copies or Copies(asked.seed))
        for speculation in _steps(model, encoded, rows, asked):  # noqa: B007 - the last is what came of it all
            clock.tick()
    return _generation(rows, clock, asked.best, scores, speculation)


def _generation(
    rows: list[Row], clock: Clock, best: int, scores: Sequence[float] = (), speculation: Speculation | None = None
) -> Generation:
    """Return what came of rows."""
    return Generation(
        prompt_ids=[row.prompt_ids for row in rows],
        new_ids=[row.new_ids for row in rows],
        texts=[row.text for row in rows],
        ended=[row.ended for row in rows],
        prefill_seconds=clock.first - clock.began,
        decode_seconds=clock.last - clock.first,
        tokens=[tuple(row.tokens) for row in rows],
        best=best,
        scores=tuple(scores),
        speculation=speculation,
    )


def refuse_what_cannot_be(model: Model, encoded: list[list[int]], options: GenerationOptions) -> None:
    """Refuse options that do not go with the prompts or the folder.

    Raises:
        PromptError: they do not.
    """
    if options.speculate and len(encoded) > 1:
        raise PromptError(f"speculate is for one prompt at a time, and these are {len(encoded)}")
    if options.stop and model.tokenizer is None:
        raise PromptError(f"{model.folder} has no tokenizer; stop strings need one: omit stop")


def shorten(text: str) -> str:
    """Return the beginning of a text, for a line about it."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


class Copies:
    """The seed of a generation, and how often each prompt has come: copies of a prompt draw other tokens."""

    def __init__(self, seed: int | None) -> None:
        self.seed = secrets.randbits(64) if seed is None else seed
        self._counts = dict[tuple[int, ...], int]()

    def number(self, ids: list[int]) -> int:
        """Return how many of the same prompt came before."""
        self._counts[tuple(ids)] = self._counts.get(tuple(ids), -1) + 1
        return self._counts[tuple(ids)]

    def of(self, prompts: Sequence[list[int]]) -> Copies:
        """Return the same for these prompts alone, as another process may need it."""
        part = Copies(self.seed)
        part._counts = {tuple(ids): self._counts[tuple(ids)] for ids in prompts if tuple(ids) in self._counts}
        return part

    def skip(self, ids: list[int], texts: int) -> None:
        """Note texts of a prompt that are not generated here."""
        self._counts[tuple(ids)] = self._counts.get(tuple(ids), -1) + texts


def rows_of(
    model: Model, encoded: list[list[int]], options: GenerationOptions, on_text: OnText | None, copies: Copies
) -> list[Row]:
    """Return a row for each text that is wanted.

    Raises:
        PromptError: a prompt leaves no room for a new token.
    """
    rows = list[Row]()
    for ids in [ids for ids in encoded for _ in range(options.best)]:
        history = History(ids, room(model, ids, options), copies.seed, copies.number(ids), model.end_ids)
        rows.append(Row(model, ids, options, number=len(rows), history=history, on_text=on_text))
    return rows


def _steps(
    model: Model, prompts: list[list[int]], rows: list[Row], options: GenerationOptions
) -> Iterator[Speculation | None]:
    """Run rows until every one has ended; yield each time that tokens have come."""
    if options.speculate:
        return speculate(model, rows[0], options)
    if model.steady and len(rows) > 1:  # padding would change how sums are rounded, and 8 bits enlarge that
        return _run_side_by_side(model, rows, options)
    return _run(model, prompts, rows, options)


def _run_side_by_side(model: Model, rows: list[Row], options: GenerationOptions) -> Iterator[None]:
    """Run rows of lengths of their own until every one has ended."""
    from converter.runtime.continuous import ContinuousBatch

    slots = max(len(row.prompt_ids) + row.limit for row in rows)
    batch = ContinuousBatch(model, len(rows), slots=slots)
    batch.fill(iter(rows), options)
    while batch.running:
        for _, error in batch.advance():
            if error is not None:
                raise error
        yield


def _run(model: Model, prompts: list[list[int]], rows: list[Row], options: GenerationOptions) -> Iterator[None]:
    """Run the batch until every row has ended. A row that has ended leaves the batch."""
    batch = Batch(model, prompts, max(row.limit for row in rows))
    logits = batch.prefill()
    if options.best > 1:
        copies = np.repeat(np.arange(len(prompts)), options.best)
        batch.keep(copies)
        logits = logits[copies]
    tokens = options.choose(logits, [row.history for row in rows])
    scores: Sequence[np.ndarray | None] = list(logits)
    while True:
        for row, token, found in zip(rows, tokens, scores, strict=True):
            row.take(token, found)
        yield
        live = [i for i, row in enumerate(rows) if not row.ended]
        if not live:
            return
        if len(live) < len(rows):
            batch.keep(live)
            batch.close_up()
            rows, tokens = [rows[i] for i in live], [tokens[i] for i in live]
        tokens, scores = _next(batch, tokens, rows, options)


def _next(
    batch: Batch, tokens: list[int], rows: Sequence[Row], options: GenerationOptions
) -> tuple[list[int], Sequence[np.ndarray | None]]:
    """Run a step; return the next token of each row, and the logits it was chosen from where the processor chose."""
    chosen = batch.likeliest(tokens) if options.needs_no_logits else None
    if chosen is not None:
        return chosen, [None] * len(rows)
    logits = batch.step(tokens)
    return options.choose(logits, [row.history for row in rows]), list(logits)
