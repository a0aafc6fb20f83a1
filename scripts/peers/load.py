"""Load a server of OpenAI's API with streams, and time every token as it comes."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peers.errors import PeerError
from peers.prompts import VOCABULARY

SHORTEST, LONGEST = 16, 512  # tokens of a prompt
NEW_TOKENS = 64
LEVELS = (1, 8, 32, 64)  # streams at once
LIMIT_SECONDS = 600  # for all streams of a level


@dataclass
class Stream:
    """One request: when it was sent, and when its tokens came, in seconds."""

    sent: float
    came: list[float] = field(default_factory=list)

    @property
    def first(self) -> float:
        return self.came[0] - self.sent

    @property
    def between(self) -> float:
        """Return the mean time from one token to the next."""
        return (self.came[-1] - self.came[0]) / (NEW_TOKENS - 1)

    @property
    def longest(self) -> float:
        """Return the longest silence after the first token."""
        return max((b - a for a, b in itertools.pairwise(self.came)), default=0.0)


@dataclass(frozen=True)
class Level:
    """What a server gave to so many streams at once."""

    streams: int
    seconds: float
    done: Sequence[Stream]

    @property
    def tokens_per_second(self) -> float:
        """Return the new tokens of all streams a second, prompts included in the time."""
        return len(self.done) * NEW_TOKENS / self.seconds

    def as_json(self) -> dict[str, float]:
        return {
            "streams": self.streams,
            "tokens_per_second": self.tokens_per_second,
            "first_token_median": statistics.median(stream.first for stream in self.done),
            "first_token_longest": max(stream.first for stream in self.done),
            "between_tokens_median": statistics.median(stream.between for stream in self.done),
            "longest_silence": max(stream.longest for stream in self.done),
        }


def prompts(count: int, seed: int) -> list[list[int]]:
    """Return random prompts of 16 to 512 tokens, short ones as often as long ones by the logarithm of their length."""
    rng = random.Random(f"load {count} {seed}")
    lengths = [round(SHORTEST * (LONGEST / SHORTEST) ** rng.random()) for _ in range(count)]
    return [[rng.randrange(VOCABULARY - 1) for _ in range(length)] for length in lengths]  # no end of text


def load(port: int, body: Mapping[str, Any], streams: int, given: Sequence[list[int] | str]) -> Level:
    """Send the prompts over so many streams; each sends its next one as soon as it has its answer.

    Raises:
        PeerError: an answer is an error, is cut off, or takes too long.
    """

    async def all_of_them() -> Level:
        waiting, done = list(given), list[Stream]()

        async def one_after_another() -> None:
            while waiting:
                done.append(await ask(port, {**body, "prompt": waiting.pop(0)}))

        began = time.perf_counter()
        async with asyncio.timeout(LIMIT_SECONDS), asyncio.TaskGroup() as group:
            for _ in range(streams):
                group.create_task(one_after_another())
        return Level(streams, time.perf_counter() - began, done)

    try:
        return asyncio.run(all_of_them())
    except TimeoutError as error:
        raise PeerError(f"{streams} streams took more than {LIMIT_SECONDS} s") from error
    except ExceptionGroup as group:  # a task's
        raise PeerError(str(group.exceptions[0])) from group


async def ask(port: int, body: Mapping[str, Any]) -> Stream:
    """Send one request; read its events to the end. A library would cost the processor that the server needs."""
    content = json.dumps({**body, "stream": True, "temperature": 0, "max_tokens": NEW_TOKENS}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    stream, said = Stream(time.perf_counter()), b""
    writer.write(head.encode() + content)
    try:
        status = await reader.readline()
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                stream.came.append(time.perf_counter())
            said = line.strip() or said
            if line.startswith(b"data: [DONE]"):
                break
    finally:
        writer.close()
    if b" 200 " not in status or len(stream.came) < NEW_TOKENS / 2:
        raise PeerError(f"it answered {status.decode(errors='replace').strip()} {said[:200].decode(errors='replace')}")
    return stream
