"""A request as its handler gets it: read, checked, and with what is there to answer it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from converter.errors import PromptError
from converter.serving.limits import BODY_SECONDS, Limits
from converter.serving.metrics import Meter
from converter.serving.refusals import Refusal
from converter.serving.served import Served

Read = TypeVar("Read", bound=msgspec.Struct)

# Fields of OpenAI's that change nothing about a text.
WITHOUT_EFFECT = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})

# Fields of OpenAI's that a server without them may only be given as they are by default.
NOT_DONE: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}

PLACE = re.compile(r" - at `\$\.?(?P<place>[^`]*)`$")


@dataclass(frozen=True)
class Call:
    """A request.

    Attributes:
        served: what is served.
        meter: what counts and times.
        id: of the request.
        asked: its body; None if it has none.
        path: what the route names in its path.
        facts: what the log tells of it beside time and status.
    """

    served: Served
    meter: Meter
    id: str
    asked: Any
    path: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)


async def read_body(receive: Any, headers: dict[bytes, bytes], limits: Limits) -> bytes:
    """Return a request's body.

    Raises:
        Refusal: it is too long, comes too slowly, or is no JSON by its own account.
        ConnectionError: the client has gone.
    """
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        raise Refusal(415, "the body is no JSON by its header; send Content-Type: application/json")
    too_long = Refusal(413, f"the body is longer than the {limits.body_bytes} bytes that this server reads")
    told = headers.get(b"content-length", b"")
    if told.isdigit() and int(told) > limits.body_bytes:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError
                body += message.get("body", b"")
                if len(body) > limits.body_bytes:
                    raise too_long
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise Refusal(408, f"the body did not come within {BODY_SECONDS:.0f} seconds") from error


def read_as(kind: type[Read], body: bytes) -> Read:
    """Return a body as what a route takes.

    Raises:
        Refusal: it is no JSON object, or its fields are not those that the route takes.
    """
    try:
        values = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Refusal(400, f"the body is no sound JSON: {error}", code="invalid_json") from error
    if not isinstance(values, dict):
        raise Refusal(400, "the body is no JSON object; expected {…}", code="invalid_json")
    _refuse_fields(kind, values)
    kept = {key: value for key, value in values.items() if key in kind.__struct_fields__}
    try:
        return msgspec.convert(kept, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        found = PLACE.search(str(error))
        place = found["place"] if found else None
        said = PLACE.sub("", str(error)).rstrip(".")
        raise Refusal(400, f"{place}: {said}" if place else said, code="invalid_value", param=place) from error


def _refuse_fields(kind: type[msgspec.Struct], values: dict[str, Any]) -> None:
    """Refuse fields that are unknown, as OpenAI does, or ask for what is not done.

    Raises:
        Refusal: there is one.
    """
    for name, value in values.items():
        if name in kind.__struct_fields__ or name in WITHOUT_EFFECT:
            continue
        if name not in NOT_DONE:
            shown = msgspec.json.encode(name[:80]).decode()
            raise Refusal(400, f"there is no field {shown}; omit it", code="unknown_field", param=name[:80])
        if value is not None and value not in NOT_DONE[name]:
            raise Refusal(400, f"{name} is not supported: omit it", code="unsupported_field", param=name)


def refuse_another_model(served: Served, name: str | None) -> None:
    """Refuse a request for a model that is not the one that is served.

    Raises:
        Refusal: it is.
    """
    if name is not None and name != served.name:
        sentence = f"this model is not served; {served.name} is"
        raise Refusal(404, sentence, code="model_not_found", param="model")


def several(prompt: str | Sequence[Any], param: str) -> list[Any]:
    """Return a list of texts, or of lists of token ids; one becomes a list of one.

    Raises:
        Refusal: it is empty or mixed.
    """
    kinds = {type(part) for part in prompt}
    if isinstance(prompt, str) or kinds == {int}:
        return [prompt]
    if kinds == {str} or (kinds == {list} and all(prompt)):
        return list(prompt)
    raise Refusal(400, f"{param} is empty or mixed; expected a text, token ids, or a list of one of these", param=param)


async def encoded(call: Call, texts: Any) -> list[list[int]]:
    """Return texts as token ids. It is done on another thread: a long text takes a while.

    Raises:
        PromptError: one cannot be read.
    """
    try:
        return await asyncio.to_thread(call.served.model.encode, texts)
    except (OverflowError, UnicodeError) as error:
        raise PromptError(f"a text or a token id cannot be read ({error})") from error
