"""Load the server of the bundled checkpoint for long, and see whether it loses an answer or keeps memory.

    python scripts/soak.py --minutes 60

Clients send requests of every kind: greedy and drawn, streams, several texts, log-probabilities, prompts that are too
long, fields that are wrong, and streams that are left in the middle. Each greedy text is held against the first answer
to the same request. The script prints the memory every minute, and ends with 1 if an answer is lost, is an error of the
server (5xx) or is another one, if a place is still taken at the end, or if memory has grown since the middle by more
than ``GROWN``.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from processes import ROOT

ROWS, WAIT_SECONDS = 8, 60
MINUTE = 60.0
GROWN = 1.1  # of memory; the allocator's own ups and downs are within 3 %
TEXTS = ("/v1/completions", 200)
LEFT, LEFT_BYTES = "a stream that is left", 20

Body = dict[str, Any]


def asked(more: Body) -> Callable[[random.Random], Body]:
    """Return what makes a request of a kind: a prompt of up to 40 numbers, and these fields."""

    def body(rng: random.Random) -> Body:
        numbers = " ".join(str(rng.randrange(9)) for _ in range(rng.randrange(40)))
        return {"model": "soak", "prompt": f"The following {numbers}", "max_tokens": rng.randrange(1, 12)} | more

    return body


# Name → the address, the code of its answer, and what makes a request.
KINDS: dict[str, tuple[str, int, Callable[[random.Random], Body]]] = {
    "greedy": (*TEXTS, asked({"temperature": 0})),
    "drawn": (*TEXTS, asked({"temperature": 1.0})),
    "several texts": (*TEXTS, asked({"temperature": 0.7, "n": 2})),
    "log-probabilities": (*TEXTS, asked({"logprobs": 3, "echo": True})),
    "stop strings": (*TEXTS, asked({"stop": ["e"]})),
    "a stream": (*TEXTS, asked({"stream": True})),
    LEFT: (*TEXTS, asked({"stream": True, "max_tokens": 60})),
    "a prompt that is too long": ("/v1/completions", 400, asked({"prompt": "x" * 20_000})),
    "a wrong field": ("/v1/completions", 400, asked({"max_tokens": "many"})),
    "tokens": ("/tokenize", 200, lambda rng: {"prompt": str(rng.random())}),
}


@dataclass
class Soak:
    """A server under load.

    Attributes:
        counts: answers of each kind.
        faults: what went wrong, a sentence each.
        known: greedy requests, and their texts.
    """

    port: int
    ends: float
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, client: int) -> None:
        """Send requests of every kind, one after the other, until the time is over."""
        rng, connection = (
            random.Random(client),
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS),
        )
        for kind in itertools.cycle(KINDS):
            if time.monotonic() > self.ends:
                return
            path, expected, make = KINDS[kind]
            body = json.dumps(make(rng))
            try:
                connection.request("POST", path, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                text = answer.read(LEFT_BYTES if kind == LEFT else None).decode(errors="replace")
                fault = "" if answer.status == expected else f"code {answer.status}: {text}"
            except (OSError, http.client.HTTPException) as error:
                fault, text = repr(error), ""
            if fault or kind == LEFT:
                connection.close()  # it opens again with the next request
            self.note(kind, body, text, fault)

    def note(self, kind: str, body: str, text: str, fault: str) -> None:
        with self.lock:
            self.counts[kind] += 1
            if kind == "greedy" and not fault:
                found = json.loads(text)["choices"][0]["text"]
                if self.known.setdefault(body, found) != found:
                    fault = f"another text: {found!r} instead of {self.known[body]!r}"
            if fault:
                self.faults.append(f"{kind}: {fault}: {body[:200]}")


@contextmanager
def served(folder: Path) -> Iterator[tuple[int, int]]:
    """Serve a folder; yield the server's process id and port."""
    command = [sys.executable, "-m", "converter.cli", "serve", str(folder), "--port", "0", "--name", "soak"]
    options = ["--rows", str(ROWS), "--log", "warning"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr is not None
    try:
        port = re.search(r":(\d+) serves", process.stderr.readline())
        assert port is not None, process.stderr.read()
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield process.pid, int(port[1])
    finally:
        process.terminate()
        process.wait(WAIT_SECONDS)


def memory(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index] # Linux always has it


def taken(port: int) -> float:
    """Return how many texts the server runs, by its own metrics."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS)
    connection.request("GET", "/metrics")
    found = re.search(r"^gpt2onnx_running (\S+)", connection.getresponse().read().decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


@click.command(help=__doc__)
@click.option("--minutes", default=1.0, show_default=True, help="How long.")
@click.option("--clients", default=12, show_default=True, help="Requests at once.")
def main(minutes: float, clients: int) -> None:
    from converter import convert
    from converter.data import CHECKPOINT

    with tempfile.TemporaryDirectory() as place:
        convert(CHECKPOINT, Path(place) / "out")
        with served(Path(place) / "out") as (pid, port), ThreadPoolExecutor(clients) as pool:
            soak, sizes = Soak(port, time.monotonic() + MINUTE * minutes), list[float]()
            sending = [pool.submit(soak.send, client) for client in range(clients)]
            while time.monotonic() < soak.ends:
                time.sleep(min(MINUTE, MINUTE * minutes / 10))
                sizes.append(memory(pid))
                click.echo(f"{sum(soak.counts.values()):,} requests, {sizes[-1]:.1f} MB, {len(soak.faults)} faults")
            for each in sending:
                each.result()
            time.sleep(1)
            if taken(port):
                soak.faults.append(f"{taken(port):.0f} places are still taken")
    middle, end = sizes[len(sizes) // 2], statistics.median(sizes[-3:])
    if end > GROWN * middle:
        soak.faults.append(f"memory has grown from {middle:.1f} to {end:.1f} MB since the middle")
    click.echo(", ".join(f"{kind} {count:,}" for kind, count in soak.counts.items()))
    click.echo("\n".join(soak.faults[:20]) or "nothing lost, nothing kept")
    sys.exit(1 if soak.faults else 0)


if __name__ == "__main__":
    main()
