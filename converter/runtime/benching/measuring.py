"""Measures one precision, or how fast memory is read, in a process that does nothing else."""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from converter.errors import GPT2Error
from converter.memory import peak_memory
from converter.runtime.benching.settings import Cell
from converter.runtime.cache import Cache
from converter.runtime.opening import load
from converter.runtime.session import Model

# A prefill that takes longer is measured once, without a run that warms up.
LONG_SECONDS = 1.0
PREFILLS = 5  # at most, of those that are shorter

# More than a processor's caches hold, and than its share of them for each thread.
READ_BYTES, READ_BYTES_PER_THREAD = 512 * 2**20, 32 * 2**20
READS = 12  # of which the third fastest counts: others may slow most of them down, and a clock may err once

Key = tuple[str | int, ...]  # what was measured: ("load",), ("prefill", batch_size, tokens), …
Samples = list[tuple[Key, float]]


def serve(job: str) -> None:
    """Do a job, given as JSON, and write a line of JSON after each step: samples, or a sentence why there are none."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    values = json.loads(job)
    try:
        for samples in read_memory(values) if "read" in values else measure(values):
            _say(samples)
    except (GPT2Error, MemoryError) as error:
        _say(str(error) or "memory ran out; try smaller --batch-sizes or --contexts")


def _end_with_parent() -> None:
    """End this process when its parent ends, which closes standard input."""
    while os.read(0, 1):  # and not by sys.stdin, whose lock would be held when this process ends
        pass
    os._exit(1)


def _say(message: Samples | str) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def read_memory(job: Mapping[str, Any]) -> Iterator[Samples]:
    """Yield how many bytes per second threads read, each its own part of an array."""
    threads = job["threads"] or os.cpu_count() or 1
    numbers = np.ones(max(job["read"], READ_BYTES_PER_THREAD * threads if threads > 1 else 0) // 4, np.int32)
    parts = np.array_split(numbers, threads)
    times = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(READS):
            began = time.perf_counter()
            list(pool.map(np.max, parts))  # of whole numbers, as nothing that numpy does goes through memory faster
            times.append(time.perf_counter() - began)
    yield [(("bandwidth",), numbers.nbytes / sorted(times)[2])]


def measure(job: Mapping[str, Any]) -> Iterator[Samples]:
    """Load a model and measure each cell."""
    folder, provider, threads, precision, cuda_graphs = job["model"]
    began = time.perf_counter()
    model = load(folder, provider, threads, precision, large_pages=True, cuda_graphs=cuda_graphs)
    loaded = time.perf_counter() - began
    yield [(("load",), loaded), *memory("resident"), *memory("peak")]
    for values in job["cells"]:
        yield [*measure_cell(model, Cell(**values), job["new_tokens"]), *memory("peak")]


def measure_cell(model: Model, cell: Cell, new_tokens: int) -> Iterator[tuple[Key, float]]:
    """Yield the seconds of a prefill, and the seconds of the steps after it."""
    place = (cell.batch_size, cell.tokens)
    ids = np.random.default_rng(0).integers(model.config.vocab_size, size=place)
    seconds, logits, cache = prefill(model, ids)
    if cell.prefill:
        times: list[float] = []
        while seconds < LONG_SECONDS and len(times) < PREFILLS and sum(times) < LONG_SECONDS:
            del logits, cache  # of one run at a time
            took, logits, cache = prefill(model, ids)
            times.append(took)
        yield ("prefill", *place), statistics.median(times or [seconds])
    if cell.decode:
        yield ("decode", *place), decode(model, logits, cache, cell.tokens, new_tokens)


def prefill(model: Model, ids: np.ndarray) -> tuple[float, np.ndarray, Cache]:
    """Run prompts ``[batch, tokens]``; return the seconds, the last logits, and the cache."""
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    began = time.perf_counter()
    cache = model.empty_cache(len(ids))
    logits = model.step(ids, np.ones_like(ids), positions, cache, keep=1)
    return time.perf_counter() - began, logits, cache


def decode(model: Model, logits: np.ndarray, cache: Cache, context: int, new_tokens: int) -> float:
    """Return the seconds of greedy steps, taken as ``generate`` takes them. One step before is not timed.

    Args:
        logits: ``[batch, 1, vocab_size]``, after ``context`` tokens that the cache holds.
    """
    batch = len(logits)
    mask = np.ones((batch, context), np.int64)
    tokens = logits[:, -1].argmax(axis=-1)
    began = time.perf_counter()
    for number in range(new_tokens + 1):
        if number == 1:
            began = time.perf_counter()
        ids, positions = tokens[:, None], np.full((batch, 1), context + number)
        mask = np.concatenate((mask, np.ones_like(ids)), axis=1)
        chosen = cache.likeliest(ids, positions)
        if chosen is None:
            chosen = model.step(ids, mask, positions, cache, keep=1)[:, -1].argmax(axis=-1)
        tokens = chosen
    return time.perf_counter() - began


def memory(kind: str) -> Samples:
    """Return the ``resident`` or ``peak`` bytes of this process, mapped files included; nothing where nobody counts."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        peak = peak_memory() if kind == "peak" else None
        return [] if peak is None else [(("peak",), peak)]
    field = {"resident": "VmRSS:", "peak": "VmHWM:"}[kind]  # ru_maxrss would begin with the parent's
    return [((kind,), 1024 * int(line.split()[1])) for line in text.splitlines() if line.startswith(field)]
