"""Runs each precision in a process of its own, round after round, and collects what they tell."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from converter.errors import BenchError
from converter.runtime.benching.measuring import READ_BYTES, Key
from converter.runtime.benching.settings import Settings

# What a process of its own runs; it finds the modules where this one does, and none in the folder it happens to be in.
PROCESS = (
    "import sys; sys.path[:] = sys.argv[1:-1]; "
    "from converter.runtime.benching.measuring import serve; serve(sys.argv[-1])"
)

Progress = Callable[[str, int, int], None]  # told what is measured next, how many steps are done, of how many


class Steps:
    """Counts what is done."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def begin(self, label: str) -> None:
        """Tell that ``label`` is measured next."""
        self.progress(label, min(self.done, self.total), self.total)
        self.done += 1


def run_rounds(
    jobs: Mapping[str, Mapping[str, Any]], settings: Settings, deadline: float, steps: Steps
) -> tuple[dict[str, dict[Key, list[float]]], int]:
    """Return all samples by precision, and the number of rounds; those of the memory are under ``memory``.

    A round is begun if there is as much time as the one before it took; in the first, each precision has an equal share
    of what is left.
    """
    samples: dict[str, dict[Key, list[float]]] = defaultdict(lambda: defaultdict(list))
    took = 0.0
    for number in range(settings.rounds):
        began = time.monotonic()
        if number and deadline - began < took:
            return samples, number
        order = list(jobs.items())[:: -1 if number % 2 else 1]
        if settings.provider.lower() == "cpu":
            job: Mapping[str, Any] = {"read": READ_BYTES, "threads": settings.threads, "steps": ["memory bandwidth"]}
            order.insert(0, ("memory", job))
        for place, (name, job) in enumerate(order):
            share = (deadline - time.monotonic()) / (len(order) - place)
            for key, value in run(job, share, steps.begin).items():
                samples[name][key].append(value)
        took = time.monotonic() - began
    return samples, settings.rounds


def run(job: Mapping[str, Any], seconds: float, begin: Callable[[str], None]) -> dict[Key, float]:
    """Run a job in a process of its own, and stop it after ``seconds``; return what it measured until then.

    Args:
        begin: told each of the job's ``steps`` before it is taken.

    Raises:
        BenchError: it cannot do the job, or was ended by something else.
    """
    found: dict[Key, float] = {}
    steps = iter(job["steps"])
    step = next(steps)
    with process(job, seconds) as (lines, ended_for_time):
        begin(step)
        for line in lines:
            if not line.endswith("\n"):
                break  # stopped in the middle of it
            message = json.loads(line)
            if isinstance(message, str):
                raise BenchError(message)
            found |= {tuple(key): value for key, value in message}
            step = next(steps, "")
            if step:
                begin(step)
    code = ended_for_time()
    if code < 0:
        raise BenchError(
            f"{step}: the process was ended by signal {-code}, as where memory runs out; try smaller --batch-sizes or "
            f"--contexts"
        )
    if code:
        raise RuntimeError(f"{step}: the process ended with {code}")
    return found


@contextmanager
def process(job: Mapping[str, Any], seconds: float) -> Iterator[tuple[Iterator[str], Callable[[], int]]]:
    """Start a process that does a job. Yield its lines, and a function that tells how it ended, 0 if its time was up.

    However this block is left, the process is gone afterwards; and it ends itself should this one be killed, as its
    standard input is closed then.
    """
    command = [sys.executable, "-P", "-c", PROCESS, *sys.path, json.dumps(job)]
    late = threading.Event()
    child = subprocess.Popen(  # noqa: S603 - a program of ours
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
        process_group=0,  # we handle Ctrl-C
    )  # fmt: skip

    def stop() -> None:
        late.set()
        child.kill()

    timer = threading.Timer(max(0.0, seconds), stop)
    try:
        timer.start()
        assert child.stdout is not None
        yield iter(child.stdout), lambda: 0 if late.is_set() else child.returncode
        child.wait()
    finally:
        timer.cancel()
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()
