"""``/v1/completions``: prompts are continued."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from converter.runtime.session import Model
from converter.runtime.tokens import Token
from converter.serving.asking import Job, asked_of, engine_of, finish_reason, job_of, refuse_long, refuse_many
from converter.serving.calls import Call, encoded, several
from converter.serving.openai import Choice, Completion, CompletionRequest, Logprobs, Usage
from converter.serving.pieces import Likely, likely_of, name_of, prompt_likelihoods
from converter.serving.refusals import Refusal

MAX_TOKENS = 16  # OpenAI's default


@dataclass(frozen=True)
class Opening:
    """What ``echo`` puts before a text: the prompt and, with ``logprobs``, how likely it was."""

    text: str = ""
    likely: tuple[Likely, ...] = ()


class Written:
    """One text as it is written: what of it is shown, and how far.

    Args:
        call: the request.
        index: of the text.
        opening: what stands before it.
    """

    def __init__(self, call: Call, index: int, opening: Opening) -> None:
        self._served, self._asked = call.served, call.asked
        self.index, self._opening, self._offset = index, opening, 0

    def take(self, tokens: Sequence[Token]) -> Choice:
        """Return the piece that is made of the next tokens."""
        opening, self._opening = self._opening, Opening()
        likely = [*opening.likely, *map(likely_of, tokens)] if self._asked.logprobs is not None else []
        return Choice(
            index=self.index,
            text=opening.text + "".join(token.text for token in tokens),
            logprobs=self._logprobs(likely) if self._asked.logprobs is not None else None,
            finish_reason=finish_reason(tokens[-1]) if tokens else "length",
            token_ids=[token.id for token in tokens] if self._asked.return_token_ids else UNSET,
        )

    def _logprobs(self, likely: Sequence[Likely]) -> Logprobs:
        _, model = engine_of(self._served)
        offsets = list[int]()
        for each in likely:
            piece = model.piece(each.id)
            text = piece if each.text is None else each.text
            # Before a token's own text may stand what is left of a character that lacks bytes.
            offsets.append(self._offset + (len(text) - len(piece) if text.endswith(piece) else 0))
            self._offset += len(text)
        return Logprobs(
            tokens=[name_of(model, each.id) for each in likely],
            token_logprobs=[each.log_prob for each in likely],
            top_logprobs=[None if each.log_prob is None else by_name(model, each.best) for each in likely],
            text_offset=offsets,
        )


def by_name(model: Model, best: Sequence[tuple[int, float]]) -> dict[str, float]:
    """Return tokens by their names, the likeliest first; of several with one name the likeliest."""
    found = dict[str, float]()
    for token, value in best:
        found.setdefault(name_of(model, token), value)
    return found


async def completions(call: Call) -> Completion | AsyncIterator[Struct]:
    """Continue prompts."""
    asked: CompletionRequest = call.asked
    engine_of(call.served)
    given = several(asked.prompt, "prompt")
    copies = asked.n or 1
    computed = asked.best_of or copies
    _refuse_contradictions(asked, copies, computed)
    refuse_many(call.served, len(given) * computed, "n")
    prompts = await encoded(call, given)
    refuse_long(call.served, prompts, "prompt")
    new_tokens = MAX_TOKENS if asked.max_tokens is None else asked.max_tokens
    logprobs = 0 if asked.logprobs is None and computed > copies else asked.logprobs
    job = job_of(call.served, asked, prompts, computed, new_tokens or 1, logprobs)
    openings = [await _opening(call, text, ids) for text, ids in zip(given, prompts, strict=True)]
    written = [Written(call, i, openings[i // copies]) for i in range(len(prompts) * copies)]
    if not new_tokens:
        return _completion(call, [each.take(()) for each in written], job.usage)
    if asked.stream:
        return _streamed(call, job, written)
    rows: list[list[Token]] = [[] for _ in job.texts]
    async with asked_of(call, job) as tokens:
        async for text, token in tokens:
            rows[text].append(token)
    groups = (rows[at : at + computed] for at in range(0, len(rows), computed))
    chosen = [row for group in groups for row in likeliest(group, copies)]
    return _completion(call, [each.take(row) for each, row in zip(written, chosen, strict=True)], job.usage)


async def _streamed(call: Call, job: Job, written: Sequence[Written]) -> AsyncIterator[Struct]:
    created, counts = int(time.time()), bool(call.asked.stream_options and call.asked.stream_options.include_usage)
    async with asked_of(call, job) as tokens:
        async for text, token in tokens:
            yield _completion(call, [written[text].take([token])], None if counts else UNSET, created)
    if counts:
        yield _completion(call, [], job.usage, created)


def _completion(
    call: Call, choices: list[Choice], usage: Usage | UnsetType | None, created: int | None = None
) -> Completion:
    now = int(time.time()) if created is None else created
    return Completion(id=f"cmpl-{call.id}", created=now, model=call.served.name, choices=choices, usage=usage)


def _refuse_contradictions(asked: CompletionRequest, copies: int, computed: int) -> None:
    """Refuse fields that do not go together.

    Raises:
        Refusal: there are such.
    """
    if computed < copies:
        raise Refusal(400, f"best_of is {computed}, less than n, {copies}", param="best_of")
    if asked.stream and computed > copies:
        raise Refusal(400, "best_of chooses among whole texts, which cannot be streamed: omit one", param="best_of")
    if asked.max_tokens == 0 and not asked.echo:
        raise Refusal(400, "max_tokens is 0, which leaves nothing to answer: give more, or echo", param="max_tokens")
    if asked.max_tokens == 0 and asked.stream:
        raise Refusal(400, "max_tokens is 0, which leaves nothing to stream: omit stream", param="stream")


def likeliest(texts: Sequence[list[Token]], count: int) -> list[list[Token]]:
    """Return the texts whose tokens are the likeliest on average, the likeliest first; all of them as they are."""
    if count == len(texts):
        return list(texts)

    def mean(tokens: list[Token]) -> float:
        return math.fsum(token.log_prob or 0.0 for token in tokens) / len(tokens)

    return sorted(texts, key=mean, reverse=True)[:count]


async def _opening(call: Call, given: Any, ids: list[int]) -> Opening:
    """Return what ``echo`` puts before the texts of a prompt."""
    if not call.asked.echo:
        return Opening()
    _, model = engine_of(call.served)
    text = given if isinstance(given, str) else model.tokenizer.decode(ids) if model.tokenizer else ""
    if call.asked.logprobs is None:
        return Opening(text)
    likely = await call.served.aside.run(prompt_likelihoods, model, ids, call.asked.logprobs)
    return Opening(text, tuple(likely))
