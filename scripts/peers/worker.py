"""Keep a model open in a process of its own, and ask it for tokens. ``workers/protocol.py`` is the other end."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from peers.candidates import WORKERS, Candidate
from peers.errors import LateError, PeerError
from peers.running import LIMIT_SECONDS, THREADS, log_file, python_of, surroundings

UNLIMITED = resource.RLIM_INFINITY
MEMORY_SHARE = 0.9  # the share of free memory for one worker


class Worker:
    """A process that holds a model open.

    Args:
        limited: whether its memory is, so that what wants more fails by itself. CUDA maps more than there is.
    """

    def __init__(self, work: Path, folder: Path, candidate: Candidate, limited: bool = True) -> None:
        python = python_of(work, candidate.environment)
        command = [str(python), str(WORKERS / candidate.worker), str(folder), candidate.variant]
        command += [str(THREADS), str(int(MEMORY_SHARE * free_memory()) if limited else UNLIMITED)]
        log = log_file(work, f"worker {candidate.name}").open("w", encoding="utf-8")
        self.ended = False
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=surroundings(candidate.environment),
        )
        log.close()

    def generate(self, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        """Send a request; return the worker's answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"prompts": prompts, "new_tokens": new_tokens}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # answer() says why it ended
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Return the worker's next answer; wait no longer than the limit."""
        assert self.process.stdout is not None
        began = time.monotonic()
        killer = threading.Timer(LIMIT_SECONDS, self.process.kill)
        killer.daemon = True
        killer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            killer.cancel()
        if not line:
            self.ended = True
            late = time.monotonic() - began >= LIMIT_SECONDS
            code = self.process.wait()
            raise LateError(f"no answer in {LIMIT_SECONDS} s") if late else PeerError(f"its process ended with {code}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise PeerError(reply["error"])
        return reply

    def close(self) -> None:
        """End the worker by closing its input; kill it if it does not end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.process, self.process.stdout:
            try:
                self.process.stdin.close()
                self.process.wait(60)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                self.process.kill()


def free_memory() -> int:
    """Return the bytes that a process can have; all there are if the kernel does not say."""
    info = Path("/proc/meminfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return free[0] if free else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
