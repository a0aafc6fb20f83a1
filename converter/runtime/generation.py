"""The generation loop: prompts of any lengths as one batch, padded on the left, with whatever ends and chooses them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter import tokenizer
from converter.errors import PromptError
from converter.runtime.batch import Batch
from converter.runtime.options import GenerationOptions
from converter.runtime.rows import OnText, Row, room
from converter.runtime.sampling import History
from converter.runtime.session import Model, refuse_ids
from converter.runtime.speculation import Speculation, speculate


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
    best: int = 1
    scores: tuple[float, ...] = ()
    speculation: Speculation | None = None

    @property
    def tokens_per_second(self) -> float:
        """Return the new tokens of all rows per second, without the first of each; 0 if there were none."""
        later = sum(max(0, len(ids) - 1) for ids in self.new_ids)
        return later / self.decode_seconds if self.decode_seconds else 0.0


def generate(
    model: Model,
    prompts: str | Sequence[str] | Sequence[Sequence[int]],
    *,
    on_text: OnText | None = None,
    **options: Any,
) -> Generation:
    """Continue each of ``prompts`` until the end of text, ``max_new_tokens``, or the model's last position.

    Args:
        prompts: a text, several texts, or lists of token ids.
        on_text: called with the number of a row and each piece of its text, once it is decided.
        options: those of ``GenerationOptions``; greedy by default.

    Raises:
        PromptError: a prompt is empty, leaves no room for a new token, or holds ids that the model does not have; or
            it is a text, or stop strings are given, and the folder has no tokenizer; or an option is out of range.
        TokenizerError: the folder's tokenizer is damaged.
    """
    asked = GenerationOptions(**options)
    encoded = encode(model, prompts)
    _refuse_what_cannot_be(model, encoded, asked)
    clock, scores, speculation = Clock(), list[float](), None
    if asked.beams > 1:
        from converter.runtime.beams import search

        rows, scores = search(model, encoded, asked, clock.tick, on_text)
    else:
        rows = _rows(model, encoded, asked, on_text)
        if asked.speculate:
            speculation = speculate(model, rows[0], asked, clock.tick)
        else:
            _run(model, encoded, rows, asked, clock)
    return Generation(
        prompt_ids=[row.prompt_ids for row in rows],
        new_ids=[row.new_ids for row in rows],
        texts=[row.text for row in rows],
        ended=[row.ended for row in rows],
        prefill_seconds=clock.first - clock.began,
        decode_seconds=clock.last - clock.first,
        best=asked.best,
        scores=tuple(scores),
        speculation=speculation,
    )


def _refuse_what_cannot_be(model: Model, encoded: list[list[int]], options: GenerationOptions) -> None:
    if options.speculate and len(encoded) > 1:
        raise PromptError(f"speculate is for one prompt at a time, and these are {len(encoded)}")
    if options.stop and model.tokenizer is None:
        raise PromptError(f"{model.folder} has no tokenizer; stop strings need one: omit stop")


def _rows(model: Model, encoded: list[list[int]], options: GenerationOptions, on_text: OnText | None) -> list[Row]:
    """Return a row for each text that is wanted."""
    seed = secrets.randbits(64) if options.seed is None else options.seed
    rows, copies = list[Row](), dict[tuple[int, ...], int]()
    for ids in [ids for ids in encoded for _ in range(options.best)]:
        copy = copies[tuple(ids)] = copies.get(tuple(ids), -1) + 1
        history = History(ids, room(model, ids, options), seed, copy)
        rows.append(Row(model, ids, options, number=len(rows), history=history, on_text=on_text))
    return rows


def _run(model: Model, prompts: list[list[int]], rows: list[Row], options: GenerationOptions, clock: Clock) -> None:
    """Run the batch until every row has ended. A row that has ended leaves the batch."""
    batch = Batch(model, prompts, max(row.limit for row in rows))
    logits = batch.prefill()
    if options.best > 1:
        copies = np.repeat(np.arange(len(prompts)), options.best)
        batch.keep(copies)
        logits = logits[copies]
    while True:
        tokens = options.choose(logits, [row.history for row in rows])
        clock.tick()
        for row, token in zip(rows, tokens, strict=True):
            row.take(token)
        live = [i for i, row in enumerate(rows) if not row.ended]
        if not live:
            return
        if len(live) < len(rows):
            batch.keep(live)
            batch.close_up()
            rows, tokens = [rows[i] for i in live], [tokens[i] for i in live]
        logits = batch.step(tokens)


def encode(model: Model, prompts: str | Sequence[str] | Sequence[Sequence[int]]) -> list[list[int]]:
    """Return prompts as lists of token ids. An empty text becomes the beginning-of-text token.

    Raises:
        PromptError, TokenizerError: see ``generate``.
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not prompts:
        raise PromptError("there is no prompt; give one or more texts")
    encoded = []
    for prompt in prompts:
        if not isinstance(prompt, Sequence | np.ndarray):
            raise PromptError(f"a prompt is {prompt!r}; expected a text, or a list of token ids")
        ids = encode_text(model, prompt) if isinstance(prompt, str) else [int(i) for i in prompt]
        if not ids:
            raise PromptError("a prompt is empty; give at least one token to start from")
        refuse_ids(np.asarray(ids), model)
        encoded.append(ids)
    return encoded


def encode_text(model: Model, text: str) -> list[int]:
    """Return a text's token ids, without the special tokens that end a text.

    Raises:
        PromptError: the folder has no tokenizer, or the text is not Unicode.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:  # what was no UTF-8 on the command line or in a pipe
        raise PromptError(f"a prompt is not UTF-8 text ({error.reason} at character {error.start})") from error
    if model.tokenizer is None:
        why = tokenizer.unavailable(model.folder)
        raise PromptError(
            f"{model.folder} has no tokenizer{f', as {why}' if why else ''}; give the prompt as token ids (--ids)"
        )
    start = model.token_ids.get("bos_token_id")
    start = start if isinstance(start, int) else None
    return tokenizer.prompt_ids(model.tokenizer, text, start) or ([] if start is None else [start])
