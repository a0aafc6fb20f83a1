"""Sends answers: JSON, files, and server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec

from converter.serving.refusals import Refusal

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]

JSON = "application/json"
DONE = b"data: [DONE]\n\n"
LAST_WORD_SECONDS = 1.0  # for the error at the end of a stream, whose reader may be the reason for it

# Of every answer: none is stored, guessed at, or shown inside another page.
HEADERS = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True)
class Raw:
    """An answer that is ready.

    Attributes:
        body: its bytes.
        kind: the media type.
        headers: beside those of every answer.
    """

    body: bytes
    kind: str
    headers: Mapping[str, str]


def json_of(content: Any) -> Raw:
    """Return an answer of JSON."""
    return Raw(msgspec.json.encode(content), JSON, {})


async def send_whole(send: Send, status: int, answer: Raw, headers: Mapping[str, str]) -> None:
    """Send an answer at once."""
    told = {"content-type": answer.kind, "content-length": str(len(answer.body)), **answer.headers}
    await _start(send, status, {**told, **headers})
    await send({"type": "http.response.body", "body": answer.body})


async def send_events(
    send: Send,
    events: AsyncIterator[msgspec.Struct],
    headers: Mapping[str, str],
    deadline: float,
    refusal: Callable[[Exception], Refusal],
) -> None:
    """Send a stream of server-sent events, which ends in ``[DONE]``.

    Nothing is sent before there is a first event, so that what fails until then is an answer of its own.

    Args:
        send: of ASGI.
        events: what is sent.
        headers: of the answer.
        deadline: by the loop's clock, when the stream must have ended.
        refusal: turns what fails later into the last event.

    Raises:
        Exception: what failed before the first event.
    """
    async with aclosing(events):  # type: ignore[type-var] # these are generators
        async with asyncio.timeout_at(deadline):
            first = await anext(events)
        await _start(
            send, 200, {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no", **headers}
        )
        try:
            async with asyncio.timeout_at(deadline):
                await _event(send, first)
                async for event in events:
                    await _event(send, event)
        except Exception as error:  # the answer has begun: whatever it is, it becomes the last event
            async with asyncio.timeout(LAST_WORD_SECONDS):
                await _event(send, refusal(error).content)
        async with asyncio.timeout(LAST_WORD_SECONDS):
            await send({"type": "http.response.body", "body": DONE})


async def _event(send: Send, content: Any) -> None:
    body = b"data: %b\n\n" % msgspec.json.encode(content)
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    pairs = [(name.lower().encode(), value.encode()) for name, value in {**HEADERS, **headers}.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do ``work`` for a client whose request has been read, unless it goes away before.

    Raises:
        ConnectionError: the client has gone; the work was cancelled.
    """
    job, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((job, gone), return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise ConnectionError
        await job
    finally:
        job.cancel()
        gone.cancel()
        await asyncio.gather(job, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
