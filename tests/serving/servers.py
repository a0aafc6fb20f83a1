"""Runs servers on the loopback for tests, in this process, and asks them."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

from converter.serving.limits import Limits
from converter.serving.served import open_folder
from converter.serving.server import Server, listen

WAIT = 60.0  # seconds; what takes longer hangs


class Running:
    """A server that runs.

    Attributes:
        server: what runs.
        port: where, on 127.0.0.1.
    """

    def __init__(self, server: Server, port: int) -> None:
        self.server, self.port = server, port
        self.url = f"http://127.0.0.1:{port}"

    @property
    def engine(self) -> Any:
        return self.server.served.engine

    @property
    def model(self) -> Any:
        return self.server.served.model

    def connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=WAIT)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, HTTPResponse]:
        """Send a request; return status, content and response. Bytes are sent as they are."""
        told = {
            "content-type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        sent = body if isinstance(body, bytes | None) else json.dumps(body)
        connection = self.connect()
        try:
            connection.request(method, path, sent, told)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(content) if is_json and content else content.decode(), response

    def post(self, path: str, **body: Any) -> Any:
        """Ask for what must succeed; return the answer."""
        status, answer, _ = self.ask("POST", path, body)
        assert status == 200, answer
        return answer

    def refused(self, path: str, body: Any, status: int, *parts: str, **headers: str) -> Any:
        """Ask for what must be refused in OpenAI's form; return the error."""
        got, answer, _ = self.ask("POST", path, body, **headers)
        assert got == status, answer
        error = answer["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        for part in parts:
            assert part in error["message"]
        return error

    def events(self, path: str, **body: Any) -> list[Any]:
        """Ask for a stream; return its events. It must end in [DONE]."""
        status, text, _ = self.ask("POST", path, {**body, "stream": True})
        assert status == 200, text
        *data, done, last = text.split("\n\n")
        assert (done, last) == ("data: [DONE]", "")
        return [json.loads(each.removeprefix("data: ")) for each in data]

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds, which it must."""
        end = time.monotonic() + WAIT
        while not holds():
            assert time.monotonic() < end, "it never came to hold"
            time.sleep(0.005)


@contextmanager
def running(
    folder: Path,
    *,
    rows: int = 4,
    queue: int = 100,
    key: str | None = None,
    origins: tuple[str, ...] = (),
    **limits: Any,
) -> Iterator[Running]:
    """Serve a folder as long as the block lasts."""
    served = open_folder(folder, threads=1, rows=rows, queue=queue, limits=Limits(**limits))
    listening = listen("127.0.0.1", 0)
    server = Server(served, key, origins)
    thread = threading.Thread(target=server.run_on, args=[listening], daemon=True)
    made = Running(server, listening.getsockname()[1])
    thread.start()
    made.until(lambda: server.started)
    try:
        yield made
    finally:
        server.should_exit = True
        thread.join(WAIT)
        assert not thread.is_alive()


def raw(port: int, *parts: bytes, buffer: int | None = None) -> socket.socket:
    """Return a connection over which these bytes have been sent; it takes no more than ``buffer`` before it is read."""
    connection = socket.socket()
    connection.settimeout(WAIT)
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.connect(("127.0.0.1", port))
    for part in parts:
        connection.sendall(part)
    return connection
