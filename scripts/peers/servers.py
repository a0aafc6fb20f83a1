"""Name the servers that are compared: how each is installed and started, and what its requests need."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from processes import measure

from peers.environments import COMPILER
from peers.errors import PeerError
from peers.load import LEVELS
from peers.running import HERE, THREADS, last_line, log_file, python_of, surroundings

ROWS = max(LEVELS)  # that each server may run side by side
POSITIONS = 1024
READY_SECONDS = 120


LLAMA_SOURCE = "source/vendor/llama.cpp"  # below the environment
BUILD_SECONDS = 3600


@dataclass(frozen=True)
class Server:
    """A server over one model.

    Attributes:
        name: in the tables.
        model: of ``MODELS``.
        environment: of ``ENVIRONMENTS``; "" for ours.
        command: {python}, {environment}, {model}, {source}, {port} are filled in.
        ready: the path that answers 200 once it can serve.
        body: what its requests hold beside the common part.
        takes_texts: prompts are texts; the others take token ids.
    """

    name: str
    model: str
    environment: str
    command: tuple[str, ...]
    ready: str
    body: Mapping[str, Any] = field(default_factory=dict)
    takes_texts: bool = False


def ours(precision: str, model: str) -> Server:
    command = (
        *("{python}", "-m", "converter.cli", "serve", "{model}", "--port", "{port}", "--precision", precision),
        *("--rows", str(ROWS), "--threads", str(THREADS)),
    )
    return Server(f"ours {precision}", model, HERE, command, "/health/ready", {"min_tokens": 64})


def llama(variant: str) -> Server:
    command = (
        *(
            f"{{environment}}/{LLAMA_SOURCE}/build/bin/llama-server",
            "-m",
            f"{{model}}/model-{variant}.gguf",
            "--port",
            "{port}",
        ),
        *("--threads", str(THREADS), "--parallel", str(ROWS), "--ctx-size", str(ROWS * POSITIONS), "--no-webui"),
    )
    return Server(f"llama-server {variant}", f"llama-{variant}", "llama", command, "/health", {"ignore_eos": True})


def transformers(name: str, *options: str) -> Server:
    command = (
        *("{environment}/bin/transformers", "serve", "{source}", "--port", "{port}", "--device", "cpu"),
        *("--dtype", "float32", *options),
    )
    return Server(name, "checkpoint", HERE, command, "/health", takes_texts=True)


SERVERS = (
    ours("fp32", "ours"),
    ours("int8", "ours-int8"),
    ours("int4", "ours-int4"),
    llama("f32"),
    llama("q8_0"),
    llama("q4_0"),
    transformers("transformers serve"),
    transformers("transformers serve, continuous", "--continuous-batching"),
)


def build(work: Path, server: Server) -> None:
    """Compile llama.cpp's own server, once. The Python package serves one request at a time and is no peer.

    Raises:
        PeerError: it cannot be compiled.
    """
    if server.environment != "llama":
        return
    source = work / "environments" / server.environment / LLAMA_SOURCE
    if (source / "build/bin/llama-server").is_file():
        return
    made = ("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_BUILD_TESTS=OFF")
    configure = ["cmake", "-S", str(source), "-B", str(source / "build"), *made, *shlex.split(COMPILER["CMAKE_ARGS"])]
    log = log_file(work, "build llama-server")
    try:
        measure(configure, log=log, limit=BUILD_SECONDS)
        target = ["--target", "llama-server", "--parallel", str(THREADS)]
        measure(["cmake", "--build", str(source / "build"), *target], log=log, limit=BUILD_SECONDS)
    except (click.ClickException, OSError) as error:
        raise PeerError(f"llama-server cannot be compiled ({last_line(log)})") from error


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def started(work: Path, source: Path, server: Server) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Start a server, wait until it is ready, yield its port and process, and end it.

    Raises:
        PeerError: it does not become ready.
    """
    port, python, log = free_port(), python_of(work, server.environment), log_file(work, f"serve {server.name}")
    places = {
        "python": python,
        "environment": python.parent.parent,
        "source": source,
        "model": work / "models" / server.model,
    }
    command = [part.format(port=port, **places) for part in server.command]
    with log.open("wb") as said:
        try:
            process = subprocess.Popen(command, stdout=said, stderr=said, env=surroundings(server.environment))
        except OSError as error:
            raise PeerError(f"it cannot be started: {error}") from error
        try:
            until = time.monotonic() + READY_SECONDS
            while not answers(port, server.ready):
                if process.poll() is not None or time.monotonic() > until:
                    raise PeerError(last_line(log) or "it did not become ready")
                time.sleep(0.2)
            yield port, process
        finally:
            process.terminate()
            try:
                process.wait(READY_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def resident(process: subprocess.Popen[bytes]) -> int:
    """Return the bytes of memory that a process holds; 0 where the system does not say."""
    try:
        pages = Path(f"/proc/{process.pid}/statm").read_text(encoding="utf-8").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
