"""The server's ASGI application: lets requests in, hands them to their routes, answers, and tells the log."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from converter.serving.answers import Raw, Receive, Send, json_of, send_events, send_whole, unless_gone
from converter.serving.calls import Call, read_as, read_body, refuse_another_model
from converter.serving.metrics import Meter
from converter.serving.refusals import Refusal, of_status, refusal_of
from converter.serving.route import Route
from converter.serving.routes import find
from converter.serving.served import Served

LOG = logging.getLogger("converter.serving")

ID = re.compile(r"[\w.-]{1,64}", re.ASCII)  # of a request that its sender has named; no other may reach the log
GONE = 499  # as nginx calls a request whose client has gone; nobody sees it but the log
LOOPBACK = ("localhost", "127.0.0.1", "::1")
PREFLIGHT = {
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": "authorization, content-type, x-request-id",
    "access-control-max-age": "600",
}


@dataclass
class Exchange:
    """A request and its answer, as the log tells them."""

    id: str
    method: str
    route: Route | None = None
    status: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


class App:
    """Answers requests about one model folder.

    Args:
        served: what is served.
        key: the API key that requests need; None for none.
        origins: of pages elsewhere that may ask, such as ``https://example.org``.
        hidden: addresses that are not answered here, and why.
    """

    def __init__(
        self,
        served: Served,
        key: str | None = None,
        origins: tuple[str, ...] = (),
        hidden: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.served, self.meter = served, Meter(served)
        self._key, self._origins, self._hidden = key, origins, hidden

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = dict(scope["headers"])
        told = headers.get(b"x-request-id", b"").decode("latin-1")
        exchange = Exchange(told if ID.fullmatch(told) else secrets.token_hex(8), scope["method"])
        begun = time.perf_counter()

        async def noting(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
            await send(message)

        try:
            await self._answer(exchange, scope, headers, receive, noting)
        except ConnectionError:
            exchange.status = GONE
        finally:
            self._tell(exchange, time.perf_counter() - begun)

    async def _answer(
        self, exchange: Exchange, scope: Mapping[str, Any], headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        told = {"x-request-id": exchange.id, **self._cross_origin(headers)}

        def refused(error: Exception) -> Refusal:
            refusal = refusal_of(error, exchange.id)
            if refusal.status == 500:
                LOG.error("failure", exc_info=error, extra={"facts": {"id": exchange.id}})
            refusal.sentence = self.served.without_path(refusal.sentence)
            return refusal

        try:
            exchange.route, path, methods = find(scope["method"], scope["path"])
            self._refuse_origin(headers)
            if exchange.route is None:
                if scope["method"] == "OPTIONS" and methods and "access-control-allow-origin" in told:
                    await send_whole(send, 204, Raw(b"", "text/plain", PREFLIGHT), told)
                    return
                raise of_status(405 if methods else 404, {"Allow": ", ".join(sorted(methods))} if methods else None)
            if (why := self._hidden.get(exchange.route.path)) is not None:
                raise Refusal(404, why)
            self._refuse_without_key(exchange.route, headers)
            call = await self._call(exchange, path, headers, receive)
            await unless_gone(receive, self._handle(exchange, call, told, send, refused))
        except ConnectionError:
            raise
        except Exception as error:  # whatever it is, it becomes an answer; ours are logged
            if exchange.status:  # the answer has begun, and its reader does not take the rest
                return
            refusal = refused(error)
            await send_whole(send, refusal.status, json_of(refusal.content), {**told, **refusal.headers})

    async def _call(
        self, exchange: Exchange, path: dict[str, str], headers: dict[bytes, bytes], receive: Receive
    ) -> Call:
        """Read a request."""
        route, asked = exchange.route, None
        if route is not None and route.takes is not None:
            body = await read_body(receive, headers, self.served.limits)
            asked = read_as(route.takes, body)
            refuse_another_model(self.served, getattr(asked, "model", None))
        return Call(self.served, self.meter, exchange.id, asked, path, exchange.facts)

    async def _handle(self, exchange: Exchange, call: Call, headers: dict[str, str], send: Send, refused: Any) -> None:
        """Let a route answer, within the time that there is."""
        assert exchange.route is not None
        deadline = asyncio.get_running_loop().time() + self.served.limits.seconds
        async with asyncio.timeout_at(deadline):
            answer = await exchange.route.handler(call)
        if hasattr(answer, "__anext__"):
            await send_events(send, answer, headers, deadline, refused)
            return
        await send_whole(send, 200, answer if isinstance(answer, Raw) else json_of(answer), headers)

    def _refuse_without_key(self, route: Route, headers: Mapping[bytes, bytes]) -> None:
        """Refuse a request without the API key.

        Raises:
            Refusal: it has none, or another.
        """
        if self._key is None or route.is_open:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._key.encode()):
            raise Refusal(
                401,
                "this server needs its API key: send Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _refuse_origin(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuse what another site's page sends from a browser, which may be that of this machine's user.

        A page of our own has our host's name. Without a key that must be a name of this machine: any other may be
        given by another site to our address.

        Raises:
            Refusal: it is from elsewhere.
        """
        origin = headers.get(b"origin", b"").decode("latin-1")
        if not origin or origin in self._origins:
            return
        host = headers.get(b"host", b"").decode("latin-1")
        ours = urlsplit(origin).netloc == host
        if not ours or (self._key is None and urlsplit(f"//{host}").hostname not in LOOPBACK):
            raise Refusal(403, f"pages of this origin may not ask: start the server with --allow-origin {origin[:200]}")

    def _cross_origin(self, headers: Mapping[bytes, bytes]) -> dict[str, str]:
        origin = headers.get(b"origin", b"").decode("latin-1")
        return {"access-control-allow-origin": origin, "vary": "Origin"} if origin in self._origins else {}

    def _tell(self, exchange: Exchange, seconds: float) -> None:
        """Count an exchange, and write its line. No text of anybody is in it."""
        route, status = exchange.route, exchange.status or 500
        name = route.path if route else "other"
        self.meter.answered(name, status, seconds)
        facts = {
            "id": exchange.id,
            "method": exchange.method,
            "route": name,
            "status": status,
            "seconds": round(seconds, 4),
        }
        level = logging.INFO if route is None or route.is_logged else logging.DEBUG
        LOG.log(level, "request", extra={"facts": facts | exchange.facts})
