"""The protocol between scripts/peers and its workers: one JSON object a line. It needs only the standard library.

    python run_PEER.py FOLDER VARIANT THREADS MEMORY

A worker opens the model and says how long that took. It answers requests one at a time, and ends when its input ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

Prompts = list[list[int]]  # all of one length
Reply = dict[str, Any]
OUT_OF_MEMORY = ("bad_alloc", "allocate memory")


class UnavailableError(Exception):
    """A peer cannot do something. The message is the reason that the table gives."""


@dataclass
class Stopwatch:
    """The seconds until the first new token and until the last. Call ``token`` after each step."""

    began: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    last: float = 0.0

    def restart(self) -> None:
        """Start again, after what a model prepares once for every size of a batch."""
        self.began = time.perf_counter()

    def token(self) -> None:
        self.last = time.perf_counter() - self.began
        self.first = self.first or self.last


Generate = Callable[[Prompts, int, Stopwatch], Prompts]  # prompts, new tokens for each, watch → the new tokens, greedy
Open = Callable[[Path, str, int], Generate]  # the model's folder, the variant, threads


def serve(open_model: Open, *packages: str) -> None:
    """Open the model that the command line names, and answer requests until the input ends."""
    answers = private_output()
    folder, variant, threads, memory = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    limit_memory(memory)
    opened: list[Generate] = []

    def load() -> Reply:
        began = time.perf_counter()
        opened.append(open_model(folder, variant, threads))
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "versions": {name: version_of(name) for name in packages}}

    answer(answers, load)
    for line in sys.stdin if opened else ():
        request = json.loads(line)
        answer(answers, lambda: generated(opened[0], request["prompts"], request["new_tokens"]))  # noqa: B023


def version_of(package: str) -> str:
    """Return the version of a package, which may be installed in its form for GPUs."""
    imported = getattr(sys.modules.get(package.replace("-", "_")), "__version__", None)
    if imported:
        return str(imported)
    for name in (package, f"{package}-gpu", f"{package}-cuda"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "unknown"


def generated(generate: Generate, prompts: Prompts, new_tokens: int) -> Reply:
    watch = Stopwatch()
    tokens = generate(prompts, new_tokens, watch)
    if {len(row) for row in tokens} != {new_tokens}:
        raise UnavailableError(f"it made {sorted(map(len, tokens))} tokens where {new_tokens} were asked for")
    return {"tokens": tokens, "first": watch.first, "last": watch.last}


def answer(answers: TextIO, work: Callable[[], Reply]) -> None:
    try:
        reply = work()
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201 - scripts/peers keeps it as a log
        reply = {"error": one_line(error)}
    answers.write(json.dumps(reply) + "\n")
    answers.flush()


def private_output() -> TextIO:
    """Return standard output for answers only. What libraries print there goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def limit_memory(limit: int) -> None:
    """Limit the memory, so that a peer that wants more fails by itself and the machine goes on."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def one_line(error: Exception) -> str:
    """Return the first line of an error. If memory ran out, say only that."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY):
        free, _ = resource.getrlimit(resource.RLIMIT_DATA)
        return f"it needs more than the {free / 1e9:.0f} GB that were free"
    return text
