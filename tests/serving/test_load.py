"""Many at once, and clients that misbehave: none is lost, mixed up or cut, and none takes a place that it has left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.serving import calls, server
from tests.serving.servers import WAIT, Running, raw, running

PATH = "/v1/completions"
STREAMS = 64


def request(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    return head.encode() + b"\r\n\r\n" + content


LONG = {"prompt": "The following", "max_tokens": 200, "temperature": 0, "stream": True}


@pytest.fixture
def is_idle(server: Running) -> Any:
    return lambda: (server.engine.stats.running, server.engine.stats.waiting) == (0, 0)


def test_many_streams_of_all_lengths_each_get_what_generate_gives(server: Running) -> None:
    random = np.random.default_rng(0)
    text = "The following statement is executed by the interpreter. A name is bound to an object. " * 3
    sizes = random.integers((1, 1), (200, 24), (STREAMS, 2)).tolist()
    asked = [
        {"prompt": text[:length], "max_tokens": tokens, "seed": seed, "temperature": seed % 3 / 2}
        for seed, (length, tokens) in enumerate(sizes)
    ]
    with ThreadPoolExecutor(STREAMS) as pool:
        came = list(pool.map(lambda body: server.events(PATH, **body), asked))
    for body, events in zip(asked, came, strict=True):
        options = {"max_new_tokens": body["max_tokens"], "seed": body["seed"], "temperature": body["temperature"]}
        expected = server.model.generate(body["prompt"], **options)
        assert "".join(event["choices"][0]["text"] for event in events) == expected.texts[0]
        assert [event["choices"][0]["finish_reason"] is None for event in events[:-1]] == [True] * (len(events) - 1)
        ends = "stop" if expected.ended[0] == "end of text" else "length"
        assert events[-1]["choices"][0]["finish_reason"] == ends


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 12])
def test_a_client_that_goes_away_frees_its_places_at_once(server: Running, is_idle: Any, stream: bool, n: int) -> None:
    before = server.engine.stats.generated_tokens
    connection = raw(server.port, request({**LONG, "temperature": 1, "n": n, "stream": stream, "min_tokens": 200}))
    if stream:
        assert connection.recv(9) == b"HTTP/1.1 "
    else:
        server.until(lambda: server.engine.stats.running)
    connection.close()
    server.until(is_idle)
    assert server.engine.stats.generated_tokens - before < n * LONG["max_tokens"]


def test_a_client_that_does_not_read_holds_up_nobody(server: Running, is_idle: Any) -> None:
    body = {**LONG, "max_tokens": 60, "logprobs": 20, "n": 2, "temperature": 1}
    connections = [raw(server.port, request(body), buffer=4096) for _ in range(3)]
    text = server.post(PATH, prompt="The following", max_tokens=9, temperature=0)["choices"][0]["text"]
    assert text == server.model.generate("The following", max_new_tokens=9).texts[0]
    server.until(is_idle)  # and its own text is computed to the end
    for connection in connections:
        content = b""
        while b"data: [DONE]" not in content:
            content += connection.recv(1 << 16)
        connection.close()


def test_too_many_are_told_to_come_again(bundled: Path) -> None:
    with running(bundled, rows=1, queue=1) as small:
        connections = [raw(small.port, request(LONG)) for _ in range(2)]
        small.until(lambda: small.engine.stats.running + small.engine.stats.waiting == 2)
        status, answer, response = small.ask("POST", PATH, {"prompt": "a"})
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        assert int(response.headers["Retry-After"]) > 0
        small.refused(PATH, {"prompt": ["a", "b", "c"]}, 400, "this server gives at most 2")
        for connection in connections:
            connection.close()
        small.until(lambda: not small.engine.stats.running)
        small.post(PATH, prompt="a", max_tokens=1)


def test_what_takes_too_long_is_ended(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(bundled, seconds=0.5) as hasty:
        run = hasty.engine._batch.slots.step
        monkeypatch.setattr(hasty.engine._batch.slots, "step", lambda tokens: (time.sleep(0.05), run(tokens))[1])
        error = hasty.refused(PATH, {**LONG, "stream": False}, 504, "longer than this server allows")
        assert error["code"] == "timeout"
        *events, last = hasty.events(PATH, **LONG)
        assert events[0]["choices"][0]["text"]
        assert last["error"]["code"] == "timeout"
        hasty.until(lambda: not hasty.engine.stats.running)


def test_a_failure_ends_one_request_and_tells_nothing(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError(f"secret {server.server.served.folder}")

    with monkeypatch.context() as patch:
        patch.setattr(server.engine._batch.slots, "step", fails)
        error = server.refused(PATH, {"prompt": "The"}, 500, "x-1", x_request_id="x-1")
        assert error["code"] == "internal_error"
        assert "secret" not in error["message"]
        assert str(server.server.served.folder.parent) not in error["message"]
    assert any("x-1" in str(record.__dict__.get("facts")) and record.exc_info for record in caplog.records)
    server.post(PATH, prompt="The", max_tokens=2)


def test_a_failure_in_a_stream_is_its_last_event(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    run, left = server.engine._batch.slots.step, iter(range(5))

    def fails_later(tokens: Any) -> Any:
        if next(left, None) is None:
            raise RuntimeError("secret")
        return run(tokens)

    with monkeypatch.context() as patch:
        patch.setattr(server.engine._batch.slots, "step", fails_later)
        *events, last = server.events(PATH, **LONG)
    assert events
    assert last["error"]["type"] == "server_error"
    assert "secret" not in last["error"]["message"]


# --- rubbish ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no sound JSON"),
        (b"{", "no sound JSON"),
        (b'{"prompt": NaN}', "no sound JSON"),
        (b'{"prompt": "a", "temperature": 1e999}', ""),
        (b'{"prompt": "\xff\xfe"}', "no sound JSON"),
        (b'{"prompt": "\\ud800"}', ""),
        (b"[" * 100_000, "no sound JSON"),
        (b'{"a":' * 100_000, "no sound JSON"),
        (b"[]", "no JSON object"),
        (b'"text"', "no JSON object"),
        (b'{"prompt": {"a": 1}}', "Expected"),
        (b'{"prompt": "a", "seed": 1' + b"0" * 400 + b"}", ""),
        (b'{"prompt": "a", "max_tokens": 1e400}', ""),
        (b"\x00" * 1000, "no sound JSON"),
    ],
)
def test_a_body_that_is_none_is_refused(server: Running, body: bytes, said: str) -> None:
    server.refused(PATH, body, 400, said)


def test_a_body_that_is_too_long_is_refused_before_it_has_come(server: Running) -> None:
    limit = server.server.served.limits.body_bytes
    told = raw(server.port, b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
    told.sendall(f"Content-Length: {limit + 1}\r\n\r\n".encode())
    assert told.recv(12) == b"HTTP/1.1 413"
    told.close()
    chunked = raw(
        server.port, b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    )
    chunked.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(limit // 65536 + 1):
        chunked.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
    assert chunked.recv(12) == b"HTTP/1.1 413"
    chunked.close()


def test_a_body_in_chunks_is_read(server: Running) -> None:
    connection = server.connect()
    headers = {"content-type": "application/json; charset=utf-8"}
    connection.request(
        "POST", PATH, iter([b'{"prompt": "a', b'", "max_', b'tokens": 1}']), headers, encode_chunked=True
    )
    assert connection.getresponse().status == 200
    connection.close()


def test_a_body_that_is_no_json_by_its_header_is_refused(server: Running) -> None:
    server.refused(PATH, b'{"prompt": "a"}', 415, "Content-Type", content_type="text/plain")


def test_requests_that_never_end_are_ended(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(calls, "BODY_SECONDS", 0.3)
    with running(bundled) as hasty:
        head = raw(hasty.port, b"POST /v1/completions HTTP/1.1\r\nHost: ")
        body = raw(hasty.port, request({"prompt": "a"})[:-3])
        silent = raw(hasty.port)
        assert head.recv(100) == silent.recv(100) == b""
        assert body.recv(12) == b"HTTP/1.1 408"
        for connection in (head, body, silent):
            connection.close()
        hasty.post(PATH, prompt="a", max_tokens=1)


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"hello\r\n" * 9, b"GET / HTTP/1.1\r\n\r\n"])
def test_what_is_no_http_is_refused_and_the_server_goes_on(server: Running, sent: bytes) -> None:
    connection = raw(server.port, sent, b"\r\n\r\n")
    assert connection.recv(12) == b"HTTP/1.1 400"
    connection.close()
    server.post(PATH, prompt="a", max_tokens=1)


# --- the end ----------------------------------------------------------------------------------------------------------


class Process:
    """``gpt2onnx serve`` in a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "converter", "serve", str(folder), "--port", "0", "--threads", "1", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert self.process.stderr is not None
        line = next(self.process.stderr)
        assert line.startswith("http://127.0.0.1:"), line + self.process.stderr.read()
        self.port = int(line.split()[0].rpartition(":")[2])
        self.lines = list[str]()
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self.reader.start()

    def end(self) -> int:
        code = self.process.wait(WAIT)
        self.reader.join(WAIT)
        return code


@pytest.fixture
def start(bundled: Path) -> Iterator[Any]:
    made = list[Process]()

    def run(*options: str) -> Process:
        made.append(Process(bundled, *options))
        return made[-1]

    yield run
    for each in made:
        each.process.kill()
        each.end()


def read_all(connection: Any) -> bytes:
    content = b""
    while part := connection.recv(1 << 16):
        content += part
    return content


def test_sigterm_lets_every_request_end_and_then_ends_with_0(start: Any) -> None:
    process = start("--rows", "2")
    body = {**LONG, "max_tokens": 30}
    connections = [raw(process.port, request(body)) for _ in range(6)]  # four of which wait
    assert connections[0].recv(12) == b"HTTP/1.1 200"
    time.sleep(0.2)
    os.kill(process.process.pid, signal.SIGTERM)
    contents = [read_all(connection) for connection in connections]
    assert process.end() == 0
    for content in contents:
        assert content.count(b"data: ") == 31
        assert b"data: [DONE]\n\n" in content
    lines = [json.loads(line) for line in process.lines]
    assert [line["status"] for line in lines if line["event"] == "request"] == [200] * 6
    assert "following" not in "".join(process.lines)


@pytest.mark.parametrize(("options", "signals"), [(("--drain", "0.2"), 1), ((), 2)], ids=["in time", "at once"])
def test_what_does_not_end_is_told_so(start: Any, options: tuple[str, ...], signals: int) -> None:
    process = start("--rows", "1", *options)
    streams = [raw(process.port, request({**LONG, "max_tokens": 250})) for _ in range(5)]
    assert streams[0].recv(12) == b"HTTP/1.1 200"
    for _ in range(signals):
        os.kill(process.process.pid, signal.SIGTERM)
        time.sleep(0.1)  # two that come together are one
    contents = [read_all(connection) for connection in streams]
    assert process.end() == 0
    assert not any("raceback" in line for line in process.lines)
    ended = [content for content in contents if b"the server was shut down" in content]
    assert ended
    assert all(b"[DONE]" in content or b" 503 " in content.partition(b"\r\n")[0] for content in contents)
