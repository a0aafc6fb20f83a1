"""How much a server takes on, and how much one request may ask of it."""

from __future__ import annotations

from dataclasses import dataclass

ROWS = 16  # at 1024 positions 1.2 GB of cache for 124 million parameters, if every row is full
QUEUE = 128  # requests that wait: at 16 rows, the last of them for eight others to end

BODY_BYTES = 1 << 20  # a prompt of 1024 tokens has some 5 kB; the rest is room for many of them
SECONDS = 600.0  # the time that OpenAI's client waits by default
DRAIN_SECONDS = 30.0  # what container runtimes give a process between SIGTERM and SIGKILL
BODY_SECONDS = 20.0  # to send a request; a body of 1 MiB takes that long over 0.4 Mbit/s
TEXTS = 64  # of one request: prompts times the texts of each


@dataclass(frozen=True)
class Limits:
    """How much one request may ask.

    Attributes:
        prompt_tokens: of each prompt; None for as many as the model has positions.
        new_tokens: of each text; likewise.
        texts: that one request may ask for, or give.
        body_bytes: of a request's body.
        seconds: from a request's arrival to the end of its answer.
        drain_seconds: that requests have to end after SIGTERM.
    """

    prompt_tokens: int | None = None
    new_tokens: int | None = None
    texts: int = TEXTS
    body_bytes: int = BODY_BYTES
    seconds: float = SECONDS
    drain_seconds: float = DRAIN_SECONDS
