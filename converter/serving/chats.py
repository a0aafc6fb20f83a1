"""``/v1/chat/completions``: conversations are answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from converter.runtime.chat import conversation_ids
from converter.runtime.session import Model
from converter.runtime.tokens import Token
from converter.serving.asking import Job, asked_of, engine_of, finish_reason, job_of, refuse_long, refuse_many
from converter.serving.calls import Call
from converter.serving.openai import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprob,
    ChatLogprobs,
    ChatRequest,
    Delta,
    Message,
    Said,
    TopLogprob,
    Usage,
)
from converter.serving.pieces import bytes_of, name_of
from converter.serving.refusals import Refusal


async def chat_completions(call: Call) -> ChatCompletion | AsyncIterator[Struct]:
    """Answer a conversation."""
    asked: ChatRequest = call.asked
    _, model = engine_of(call.served)
    if not call.served.chats:
        sentence = f"{call.served.name} has no chat template, and so no conversations: use /v1/completions"
        raise Refusal(400, sentence, code="no_chat_template")
    logprobs = _logprobs_of(asked)
    copies = asked.n or 1
    refuse_many(call.served, copies, "n")
    ids = await asyncio.to_thread(conversation_ids, model, [_plain(message) for message in asked.messages])
    refuse_long(call.served, [ids], "messages")
    new_tokens = asked.max_completion_tokens or asked.max_tokens
    job = job_of(call.served, asked, [ids], copies, new_tokens, logprobs)
    if asked.stream:
        return _streamed(call, job)
    rows: list[list[Token]] = [[] for _ in range(copies)]
    async with asked_of(call, job) as tokens:
        async for text, token in tokens:
            rows[text].append(token)
    return ChatCompletion(
        id=f"chatcmpl-{call.id}",
        created=int(time.time()),
        model=call.served.name,
        choices=[_choice(model, asked, index, row) for index, row in enumerate(rows)],
        usage=job.usage,
    )


def _logprobs_of(asked: ChatRequest) -> int | None:
    """Return how many likeliest tokens are wanted beside each; None for no log-probabilities.

    Raises:
        Refusal: fields do not go together.
    """
    if asked.top_logprobs and not asked.logprobs:
        raise Refusal(400, "top_logprobs are given beside logprobs: set logprobs to true", param="top_logprobs")
    return asked.top_logprobs or 0 if asked.logprobs else None


def _plain(message: Message) -> dict[str, Any]:
    """Return a message as templates read it: its content is one text."""
    content = message.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    return {"role": message.role, "content": text} | ({} if message.name is UNSET else {"name": message.name})


def _choice(model: Model, asked: ChatRequest, index: int, tokens: Sequence[Token]) -> ChatChoice:
    return ChatChoice(
        index=index,
        message=Said(content="".join(token.text for token in tokens)),
        logprobs=_logprobs(model, asked, tokens),
        finish_reason=finish_reason(tokens[-1]) or "length",
        token_ids=[token.id for token in tokens] if asked.return_token_ids else UNSET,
    )


def _logprobs(model: Model, asked: ChatRequest, tokens: Sequence[Token]) -> ChatLogprobs | None:
    if not asked.logprobs:
        return None

    def facts(token: int, log_prob: float) -> dict[str, Any]:
        return {"token": name_of(model, token), "logprob": log_prob, "bytes": list(bytes_of(model, token))}

    return ChatLogprobs(
        content=[
            ChatLogprob(
                **facts(token.id, token.log_prob or 0.0),
                top_logprobs=[TopLogprob(**facts(*each)) for each in token.best],
            )
            for token in tokens
        ]
    )


async def _streamed(call: Call, job: Job) -> AsyncIterator[Struct]:
    asked, created = call.asked, int(time.time())
    _, model = engine_of(call.served)
    counts = bool(asked.stream_options and asked.stream_options.include_usage)
    begun = set[int]()

    def chunk(choices: list[ChatChunkChoice], usage: Usage | UnsetType | None) -> ChatChunk:
        return ChatChunk(
            id=f"chatcmpl-{call.id}", created=created, model=call.served.name, choices=choices, usage=usage
        )

    async with asked_of(call, job) as tokens:
        async for text, token in tokens:
            piece = ChatChunkChoice(
                index=text,
                delta=Delta(role=UNSET if text in begun else "assistant", content=token.text),
                logprobs=_logprobs(model, asked, [token]),
                finish_reason=finish_reason(token),
                token_ids=[token.id] if asked.return_token_ids else UNSET,
            )
            begun.add(text)
            yield chunk([piece], None if counts else UNSET)
    if counts:
        yield chunk([], job.usage)
