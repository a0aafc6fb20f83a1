"""Asks the engine, which has a thread of its own, on behalf of a request, which lives in the server's event loop."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from converter.runtime.generation import Copies, options_of
from converter.runtime.options import GenerationOptions
from converter.runtime.rows import END_OF_TEXT, STOP_STRING
from converter.runtime.session import Model
from converter.runtime.tokens import Token
from converter.serving.calls import Call
from converter.serving.engine import Engine, Ticket
from converter.serving.openai import Asked, FinishReason, Usage
from converter.serving.refusals import TOO_LONG, Refusal
from converter.serving.served import Served

Came = tuple[int, Token]  # the number of a text, and its next token

FINISHED: dict[str, FinishReason] = {END_OF_TEXT: "stop", STOP_STRING: "stop"}  # all else is "length"
SEEDS = 1 << 64  # OpenAI's seeds may be negative; ours are not

# The fields that mean the same as an option of ``generate``, and the option.
OPTIONS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repetition_penalty",
    "min_tokens": "min_new_tokens",
    "stop": "stop",
}


@dataclass
class Job:
    """Texts that are asked for.

    Attributes:
        prompts: of each request, in order.
        copies: texts for each prompt.
        options: of one text.
    """

    prompts: Sequence[list[int]]
    copies: int
    options: GenerationOptions
    counted: int = field(default=0, init=False)  # tokens that came

    @property
    def texts(self) -> list[list[int]]:
        """Return the prompt of each text."""
        return [ids for ids in self.prompts for _ in range(self.copies)]

    @property
    def usage(self) -> Usage:
        """Return how many tokens were read and have come."""
        read = sum(map(len, self.prompts))
        return Usage(prompt_tokens=read, completion_tokens=self.counted, total_tokens=read + self.counted)


def engine_of(served: Served) -> tuple[Engine, Model]:
    """Return what continues texts.

    Raises:
        Refusal: the model does not.
    """
    if served.engine is None:
        raise Refusal(400, f"{served.name} has the head {served.head} and continues no text", code="wrong_head")
    return served.engine, served.engine.model


def refuse_long(served: Served, prompts: Sequence[list[int]], param: str) -> None:
    """Refuse prompts that are longer than the server reads.

    Raises:
        Refusal: one is.
    """
    longest = max(map(len, prompts))
    if longest > served.prompt_tokens:
        raise Refusal(
            400,
            f"a prompt has {longest} tokens; this server reads at most {served.prompt_tokens}: shorten it",
            code=TOO_LONG,
            param=param,
        )


def refuse_many(served: Served, texts: int, param: str) -> None:
    """Refuse a request for more texts than one may ask for.

    Raises:
        Refusal: it does.
    """
    engine = served.engine
    most = min(served.limits.texts, engine.rows + engine.queue) if engine else served.limits.texts
    if texts > most:
        raise Refusal(400, f"the request asks for {texts} texts; this server gives at most {most} at once", param=param)


def job_of(
    served: Served,
    asked: Asked,
    prompts: Sequence[list[int]],
    copies: int,
    new_tokens: int | None,
    logprobs: int | None,
) -> Job:
    """Return what a request asks of the engine.

    What it leaves out is as the folder's ``generation_config.json`` says, and else as OpenAI says: temperature 1.

    Raises:
        Refusal: it asks for more than a server gives, or fields do not go together.
        PromptError: values are out of range.
    """
    _, model = engine_of(served)
    if asked.stream_options is not None and not asked.stream:
        raise Refusal(400, "stream_options are for streams: add stream, or omit them", param="stream_options")
    if new_tokens is not None and new_tokens > served.new_tokens:
        sentence = f"max_tokens is {new_tokens}; this server gives at most {served.new_tokens}"
        raise Refusal(400, sentence, param="max_tokens")
    given: dict[str, Any] = {ours: getattr(asked, name) for name, ours in OPTIONS.items()}
    if given["temperature"] is None:
        given["temperature"] = model.generation_config.options.get("temperature", 1.0)
    if given["top_p"] == 0:
        given["top_p"] = sys.float_info.min  # OpenAI's way to ask for the likeliest token
    if given["top_k"] == -1:
        given["top_k"] = 0
    seed = None if asked.seed is None else asked.seed % SEEDS
    given |= {"beams": 1, "best": 1, "speculate": 0, "seed": seed, "logprobs": logprobs}
    options = options_of(model, {**given, "max_new_tokens": new_tokens or served.new_tokens})
    return Job(prompts, copies, options)


@asynccontextmanager
async def asked_of(call: Call, job: Job) -> AsyncIterator[AsyncIterator[Came]]:
    """Submit texts; give their tokens as they come. Whatever ends the block ends the texts and frees their places.

    Raises:
        EngineFull, EngineClosed, PromptError: see ``Engine.submit``.
    """
    engine, _ = engine_of(call.served)
    loop, came = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Token | Exception]]()
    tickets, copies, begun = list[Ticket](), Copies(job.options.seed), time.perf_counter()

    def deliver(text: int, _: int, what: Token | Exception) -> None:
        loop.call_soon_threadsafe(came.put_nowait, (text, what))

    try:
        for text, ids in enumerate(job.texts):
            tickets += engine.submit(ids, job.options, partial(deliver, text), copies)
        yield _received(came, len(tickets), job, call.meter.watch(begun))
    finally:
        for ticket in tickets:
            if not ticket.row.ended:
                ticket.cancel()
        call.facts.update(msgspec.to_builtins(job.usage))


async def _received(
    came: asyncio.Queue[tuple[int, Token | Exception]], left: int, job: Job, watch: Any
) -> AsyncIterator[Came]:
    """Yield tokens until ``left`` texts have ended.

    Raises:
        Exception: what ended a text before its end.
    """
    while left:
        text, what = await came.get()
        if isinstance(what, Exception):
            raise what
        watch.tick(text)
        job.counted += 1
        left -= bool(what.ended)
        yield text, what


def finish_reason(token: Token) -> FinishReason | None:
    """Return why a text has ended, if it has."""
    return FINISHED.get(token.ended, "length") if token.ended else None
