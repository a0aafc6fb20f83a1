"""Runs the application on a socket until it is told to stop, and then lets requests end."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from converter.errors import ServeError
from converter.files import reason
from converter.serving.app import App
from converter.serving.served import Served

HEAD_SECONDS = 20.0  # for the first line and the headers of a connection's first request
KEEP_ALIVE_SECONDS = 30  # that a connection may idle between requests
LAST_WORDS_SECONDS = 5.0  # for answers to requests that were ended when the time to drain was over


class Protocol(H11Protocol):
    """HTTP that does not wait for ever for a request to begin."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self.loop.call_later(HEAD_SECONDS, self._end_unless_begun)

    def _end_unless_begun(self) -> None:
        if not (self.cycle or self.transport.is_closing()):
            self.transport.close()


class Server(uvicorn.Server):
    """Serves a model folder.

    Args:
        served: what is served.
        key, origins: see ``App``.
        on_start: called once requests are taken.
    """

    def __init__(
        self,
        served: Served,
        key: str | None = None,
        origins: tuple[str, ...] = (),
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        self.served, self.app, self._on_start = served, App(served, key, origins), on_start
        super().__init__(
            uvicorn.Config(
                self.app,
                http=Protocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
        )
        self._hurry = asyncio.Event()

    def run_on(self, listening: socket.socket) -> None:
        """Serve until SIGTERM, SIGINT, or ``should_exit``. A second signal ends the requests that are left."""
        try:
            if self.served.engine is not None:
                self.served.engine.start()
            self.run([listening])
        finally:
            self._close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections, and say so."""
        await super().startup(sockets)
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, let requests end, and end those that take longer than they may."""
        draining = asyncio.create_task(self._drain())
        await super().shutdown(sockets)
        draining.cancel()

    async def _drain(self) -> None:
        """Wait for as long as requests may take to end; then answer those that are left, and at last leave them."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), self.served.limits.drain_seconds)
        await asyncio.get_running_loop().run_in_executor(None, self._close)
        await asyncio.sleep(LAST_WORDS_SECONDS)
        self.force_exit = True

    def _close(self) -> None:
        if self.served.engine is not None:
            self.served.engine.close()
        self.served.aside.close()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at signals. Unlike uvicorn, do not raise them again afterwards: the server ended as it was told."""
        try:
            before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not on the main thread, which has the signals
            before = {}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, *_: Any) -> None:
        """Stop; at the second signal requests are told so and ended, at the third they are left."""
        self.force_exit = self._hurry.is_set()
        if self.should_exit:
            self._hurry.set()
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound; port 0 is any that is free.

    Raises:
        ServeError: the address cannot be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise ServeError(
            f"port {port} of {host} cannot be used: {reason(error)}; give another --port or --host"
        ) from error
    return listening


def url_of(listening: socket.socket) -> str:
    """Return the address of a socket, as a browser takes it."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Lines(logging.Formatter):
    """The log: a line of JSON for each event. It has no text of a prompt or an answer."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of an event."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
        facts = {"time": at, "level": record.levelname.lower(), "event": record.getMessage()}
        facts |= getattr(record, "facts", {})
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps(facts)


def log_to_standard_error(level: str) -> Callable[[], None]:
    """Write the log of the server from a level on, and uvicorn's warnings, to standard error; return what ends that."""
    number = logging.getLevelNamesMapping()[level.upper()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    loggers = {"converter.serving": number, "uvicorn.error": max(number, logging.WARNING)}
    for name, least in loggers.items():
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(least)
        logging.getLogger(name).propagate = False

    def end() -> None:
        for name in loggers:
            logging.getLogger(name).removeHandler(handler)
            logging.getLogger(name).propagate = True

    return end
