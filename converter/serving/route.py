"""One address of a server, as a row of the table of all."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from converter.serving.calls import Call

Handler = Callable[[Call], Awaitable[Any]]
NAMED = re.compile(r"\{(\w+)\}")  # a part of a path


@dataclass(frozen=True)
class Route:
    """An address.

    Attributes:
        method: of HTTP.
        path: with ``{name}`` for what a call gets as ``call.path["name"]``.
        handler: what answers: with a Struct, a stream of such, or an answer that is ready.
        takes: the body, if there is one.
        gives: the answer; a media type if it is no JSON.
        streams: the events of a stream, where one can be asked for.
        is_open: needs no API key.
        is_logged: each request has a line in the log.
    """

    method: str
    path: str
    handler: Handler
    takes: type[msgspec.Struct] | None = None
    gives: type[msgspec.Struct] | str = "text/plain"
    streams: type[msgspec.Struct] | None = None
    is_open: bool = False
    is_logged: bool = True

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Return what its paths look like."""
        *parts, last = NAMED.split(self.path)
        pairs = zip(parts[::2], parts[1::2], strict=True)
        return re.compile("".join(f"{re.escape(text)}(?P<{name}>.+)" for text, name in pairs) + re.escape(last))
