"""How fast a model folder runs on this machine, in what memory, and how near that is to what the machine can do.

Each precision runs in a process of its own, so that its memory is its own and no other model's threads are in its way.
Processes follow one another in rounds, every other round backwards, so that a machine that slows down meanwhile slows
all of them down alike.

Decoding is bound by memory: for every token all weights are read, and of each row its cache. The limit that a speed is
held against is the bandwidth that this machine has for reading, divided by those bytes: see ``bytes_per_step``.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from converter.errors import BenchError
from converter.runtime.benching.amounts import not_measured, summary
from converter.runtime.benching.results import Bench, Spread
from converter.runtime.benching.rounds import Progress, Steps, run_rounds
from converter.runtime.benching.settings import Settings, cells_of, chosen, clipped, job_of
from converter.runtime.opening import config_of
from converter.runtime.ort import ORT_VERSION, provider_name
from converter.version import VERSION


def bench(
    out: str | os.PathLike[str],
    settings: Settings | None = None,
    progress: Progress = lambda step, done, total: None,
) -> Bench:
    """Measure a model folder on this machine.

    Args:
        out: what ``convert`` wrote.
        settings: what is measured; by default what ``Settings()`` says.
        progress: called before each step.

    Raises:
        BenchError: the model is too short to decode, a process ended on its own, or the time was too short for
            anything.
        GPT2Error: the folder cannot be opened, lacks a precision or generates nothing, or the provider is not there.
    """
    folder, began = Path(out), time.monotonic()
    settings = settings or Settings()
    provider_name(settings.provider)
    names, config = chosen(folder, settings.precisions), config_of(folder)
    settings = clipped(settings, config)
    cells = cells_of(settings)
    deadline = began + 60 * settings.max_minutes
    steps = Steps(progress, settings.rounds * (1 + len(names) * (1 + len(cells))))
    jobs = {name: job_of(folder, name, settings, cells) for name in names}
    samples, rounds = run_rounds(jobs, settings, deadline, steps)
    read = Spread.over(samples["memory"].get(("bandwidth",), []))
    bandwidth = read.median if read is not None else None
    measured = tuple(summary(name, config, settings, samples[name], bandwidth) for name in names)
    if not any(samples[name] for name in names):
        raise BenchError(f"nothing was measured within {settings.max_minutes:g} minutes; allow more with --max-minutes")
    return Bench(
        out=os.fspath(out),
        settings=settings,
        rounds=rounds,
        seconds=round(time.monotonic() - began, 3),
        bandwidth=bandwidth,
        precisions=measured,
        missing=tuple(not_measured(measured)),
        environment={"gpt2onnx": VERSION, "onnxruntime": ORT_VERSION, "cores": os.cpu_count()},
    )
