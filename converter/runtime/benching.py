"""How fast a model folder runs on this machine, in what memory, and how near that is to what the machine can do.

Each precision runs in a process of its own, so that its memory is its own and no other model's threads are in its way.
Processes follow one another in rounds, every other round backwards, so that a machine that slows down meanwhile slows
all of them down alike.

Decoding is bound by memory: for every token all weights are read, and of each row its cache. The limit that a speed is
held against is the bandwidth that this machine has for reading, divided by those bytes: see ``bytes_per_step``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from converter.errors import BenchError, GPT2Error
from converter.folder import manifest
from converter.runtime.cache import Cache
from converter.runtime.ort import provider_name
from converter.runtime.session import Model, config_of, load, model_file
from converter.version import VERSION
from converter.weights import precisions, write
from converter.weights.data_file import Spec
from converter.weights.precisions import PRECISIONS
from converter.weights.table import parameters
from reference.config import GPT2Config
from reference.head import HEADS, LM

SCHEMA = "gpt2onnx/bench/1"

# A prefill that takes longer is measured once, without a run that warms up.
LONG_SECONDS = 1.0
PREFILLS = 5  # at most, of those that are shorter

# More than a processor's caches hold, and than its share of them for each thread.
READ_BYTES, READ_BYTES_PER_THREAD = 512 * 2**20, 32 * 2**20
READS = 12  # of which the third fastest counts: others may slow most of them down, and a clock may err once

# What a process of its own runs; it finds the modules where this one does, and none in the folder it happens to be in.
PROCESS = "import sys; sys.path[:] = sys.argv[1:-1]; from converter.runtime.benching import serve; serve(sys.argv[-1])"

Key = tuple[str | int, ...]  # what was measured: ("load",), ("prefill", batch_size, tokens), …
Samples = list[tuple[Key, float]]
Progress = Callable[[str, int, int], None]  # told what is measured next, how many steps are done, of how many


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        precisions: names, of those that the folder holds; all of them if empty.
        batch_sizes: prompts that run together.
        contexts: tokens in the cache when decoding begins, fewer where the model has not so many positions.
        prompt_lengths: tokens of a prefill, likewise.
        new_tokens: tokens of each row that a decode speed is measured over, likewise.
        rounds: samples that a median is of.
        threads: of ONNX Runtime; by default one a core.
        provider: of ONNX Runtime.
        max_minutes: after which the rest is left out.

    Raises:
        BenchError: a number is out of range, or there is none.
    """

    precisions: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = (1, 8)
    contexts: tuple[int, ...] = (128, 900)
    prompt_lengths: tuple[int, ...] = (16, 128, 900)
    new_tokens: int = 32
    rounds: int = 3
    threads: int | None = None
    provider: str = "cpu"
    max_minutes: float = 10.0

    def __post_init__(self) -> None:
        for name in ("batch_sizes", "contexts", "prompt_lengths", "new_tokens", "rounds", "threads"):
            given = getattr(self, name)
            numbers = given if isinstance(given, tuple) else (1 if given is None else given,)
            if not numbers or any(type(number) is not int or number < 1 for number in numbers):
                raise BenchError(f"{name} is {given!r}; expected whole numbers of 1 or more")
        if not 0 < self.max_minutes <= MOST_MINUTES:
            raise BenchError(f"max_minutes is {self.max_minutes}; expected more than 0, and at most {MOST_MINUTES}")


MOST_MINUTES = 24 * 60
QUICK = {"batch_sizes": (1,), "contexts": (128,), "prompt_lengths": (16, 128), "new_tokens": 16, "rounds": 1}


def whole_numbers(name: str, text: str) -> tuple[int, ...]:
    """``"1,8"`` → ``(1, 8)``.

    Raises:
        BenchError: something else is among them; it says of what setting.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise BenchError(f"{name} is {text!r}; expected whole numbers of 1 or more with commas between, such as 1,8")
    return tuple(map(int, parts))


@dataclass(frozen=True)
class Spread:
    """What the rounds gave."""

    median: float
    minimum: float
    maximum: float

    @classmethod
    def over(cls, samples: Sequence[float]) -> Spread | None:
        """None if there is no sample."""
        return cls(statistics.median(samples), min(samples), max(samples)) if samples else None


@dataclass(frozen=True)
class Prefill:
    """A batch of prompts of one length, until the logits after the last token; in milliseconds."""

    batch_size: int
    prompt_length: int
    milliseconds: Spread | None


@dataclass(frozen=True)
class Decode:
    """A batch that grows token by token.

    Attributes:
        batch_size, context: rows, and tokens of each that were in the cache before.
        tokens_per_second: of all rows together.
        bytes_per_step: what must be read for one token of each row, at least.
        limit: tokens per second at which memory would do nothing else; None where its bandwidth is not known.
        share_of_limit: the median's, 1 for all of it.
    """

    batch_size: int
    context: int
    tokens_per_second: Spread | None
    bytes_per_step: int
    limit: float | None
    share_of_limit: float | None


@dataclass(frozen=True)
class MeasuredPrecision:
    """One precision.

    Attributes:
        precision: its name.
        weight_bytes: weights that are read for one token.
        load_seconds: until the folder is open.
        resident_bytes: memory of the process then, mapped files included; None where the system does not tell.
        peak_bytes: the most memory at any time.
        prefill, decode: by batch size and length.
    """

    precision: str
    weight_bytes: int
    load_seconds: Spread | None
    resident_bytes: Spread | None
    peak_bytes: Spread | None
    prefill: tuple[Prefill, ...]
    decode: tuple[Decode, ...]


@dataclass(frozen=True)
class Bench:
    """A model folder, measured.

    Attributes:
        out: the folder.
        settings: what was asked for, cut to what the model's positions allow.
        rounds: how many were begun.
        seconds: that all of it took.
        bandwidth: bytes per second that the machine reads from memory; None unless the provider is cpu.
        precisions: each of them.
        missing: what there was no time for, in words.
        environment: versions of what ran, and the processor's cores.
    """

    out: str
    settings: Settings
    rounds: int
    seconds: float
    bandwidth: float | None
    precisions: tuple[MeasuredPrecision, ...]
    missing: tuple[str, ...]
    environment: Mapping[str, str | int | None]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; docs/bench.md describes it."""
        asked = asdict(self.settings)
        kept = ("new_tokens", "threads", "provider")
        found = {key: value for key, value in asdict(self).items() if key not in ("settings", "precisions")}
        measured = [asdict(one) for one in self.precisions]
        return {"schema": SCHEMA, **found, **{key: asked[key] for key in kept}, "precisions": measured}


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
    steps = _Steps(progress, settings.rounds * (1 + len(names) * (1 + len(cells))))
    jobs = {name: job_of(folder, name, settings, cells) for name in names}
    samples, rounds = _rounds(jobs, settings, deadline, steps)
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
        missing=tuple(_missing(measured)),
        environment={"gpt2onnx": VERSION, "onnxruntime": _runtime_version(), "cores": os.cpu_count()},
    )


def _runtime_version() -> str:
    import onnxruntime  # which ``session`` says how to install where it is missing

    return str(onnxruntime.__version__)


def chosen(folder: Path, asked: Sequence[str]) -> tuple[str, ...]:
    """The precisions to measure.

    Raises:
        GPT2Error: the folder cannot be opened, generates nothing, or does not hold one that is asked for.
    """
    model_file(folder)
    head = config_of(folder).head
    if not HEADS[head].predicts:
        raise BenchError(f"{folder} has the head {head}, which generates nothing; bench measures language models")
    names = [row.name for row in precisions.parse(asked)] if asked else _held(folder)
    for name in names:
        if name not in _held(folder):
            model_file(folder, name)  # which says what is there, and how to add it
    return tuple(names)


def _held(folder: Path) -> list[str]:
    """Of a folder without our manifest we know no more than that it has a graph."""
    return [name for name in manifest.read(folder).get("precisions") or {} if name in PRECISIONS] or ["fp32"]


def clipped(settings: Settings, config: GPT2Config) -> Settings:
    """Cut to the model's positions: of those a token more is taken than is timed.

    Raises:
        BenchError: there are too few to decode at all.
    """
    size = config.n_positions
    if size < 3:
        raise BenchError(f"the model has {size} positions; decoding is measured with 3 or more")
    new = min(settings.new_tokens, max(1, size // 2 - 1))
    contexts = {min(context, size - new - 1): None for context in sorted(settings.contexts)}
    lengths = {min(length, size): None for length in sorted(settings.prompt_lengths)}
    batches = dict.fromkeys(sorted(settings.batch_sizes))
    return replace(
        settings,
        contexts=tuple(contexts), prompt_lengths=tuple(lengths), batch_sizes=tuple(batches), new_tokens=new,
    )  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A batch of prompts of one length: whether its prefill is of interest, and whether what follows is."""

    batch_size: int
    tokens: int
    prefill: bool
    decode: bool

    @property
    def label(self) -> str:
        """For people."""
        return f"batch {self.batch_size}, {self.tokens} tokens"


def cells_of(settings: Settings) -> list[Cell]:
    """What a process measures, the cheapest first: it may be stopped."""
    lengths = sorted({*settings.prompt_lengths, *settings.contexts})
    every = [
        Cell(batch, tokens, tokens in settings.prompt_lengths, tokens in settings.contexts)
        for batch in settings.batch_sizes
        for tokens in lengths
    ]
    return sorted(every, key=lambda cell: cell.batch_size * cell.tokens)


def job_of(folder: Path, name: str, settings: Settings, cells: Sequence[Cell]) -> dict[str, Any]:
    """What the process of a precision is told."""
    named = name if "precisions" in manifest.read(folder) else None
    return {
        "model": [os.fspath(folder), settings.provider, settings.threads, named],
        "cells": [asdict(cell) for cell in cells],
        "new_tokens": settings.new_tokens,
        "steps": [f"{name}: load", *(f"{name}: {cell.label}" for cell in cells)],
    }


# --- The rounds -------------------------------------------------------------------------------------------------------


class _Steps:
    """Counts what is done."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def begin(self, label: str) -> None:
        self.progress(label, min(self.done, self.total), self.total)
        self.done += 1


def _rounds(
    jobs: Mapping[str, Mapping[str, Any]], settings: Settings, deadline: float, steps: _Steps
) -> tuple[dict[str, dict[Key, list[float]]], int]:
    """All samples by precision, and how many rounds there was time for; the memory's are under ``memory``.

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
    """Run a job in a process of its own, and stop it after so many seconds; what it found until then.

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
    """A process that does a job: its lines, and a function that says how it ended, 0 if that was for lack of time.

    However this block is left, the process is gone afterwards; and it ends itself should this one be killed, as its
    standard input is closed then.
    """
    command = [sys.executable, "-P", "-c", PROCESS, *sys.path, json.dumps(job)]
    late = threading.Event()
    child = subprocess.Popen(
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


# --- In the process of its own ----------------------------------------------------------------------------------------


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
    """Standard input ends when the process that holds its other end does; so does this one then."""
    while os.read(0, 1):  # and not by sys.stdin, whose lock would be held when this process ends
        pass
    os._exit(1)


def _say(message: Samples | str) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def read_memory(job: Mapping[str, Any]) -> Iterator[Samples]:
    """How many bytes per second threads read that each have a part of an array, when little else goes on."""
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
    folder, provider, threads, precision = job["model"]
    began = time.perf_counter()
    model = load(folder, provider, threads, precision)
    loaded = time.perf_counter() - began
    yield [(("load",), loaded), *memory("resident"), *memory("peak")]
    for values in job["cells"]:
        yield [*measure_cell(model, Cell(**values), job["new_tokens"]), *memory("peak")]


def measure_cell(model: Model, cell: Cell, new_tokens: int) -> Iterator[tuple[Key, float]]:
    """Seconds of a prefill, and seconds of the steps after it."""
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
    """Run prompts, ``[batch, tokens]``: the seconds that took, the last logits, and the cache."""
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    began = time.perf_counter()
    cache = model.empty_cache(len(ids))
    logits = model.step(ids, np.ones_like(ids), positions, cache, keep=1)
    return time.perf_counter() - began, logits, cache


def decode(model: Model, logits: np.ndarray, cache: Cache, context: int, new_tokens: int) -> float:
    """The seconds of so many greedy steps, as ``generate`` takes them but for the end of text; one before is not timed.

    Args:
        logits: ``[batch, 1, vocab_size]``, after ``context`` tokens that the cache holds.
    """
    batch = len(logits)
    mask = np.ones((batch, context), np.int64)
    began = time.perf_counter()
    for number in range(new_tokens + 1):
        if number == 1:
            began = time.perf_counter()
        ids = logits[:, -1].argmax(axis=-1)[:, None]
        mask = np.concatenate((mask, np.ones_like(ids)), axis=1)
        positions = np.full((batch, 1), context + number)
        logits = model.step(ids, mask, positions, cache, keep=1)
    return time.perf_counter() - began


def memory(kind: str) -> Samples:
    """``resident`` or ``peak`` bytes of this process, mapped files included; nothing where nobody counts."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return _peak_elsewhere() if kind == "peak" else []
    field = {"resident": "VmRSS:", "peak": "VmHWM:"}[kind]  # ru_maxrss would begin with the parent's
    return [((kind,), 1024 * int(line.split()[1])) for line in text.splitlines() if line.startswith(field)]


def _peak_elsewhere() -> Samples:
    """Without Linux's /proc."""
    try:
        import resource
    except ImportError:  # Windows
        return []
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return [(("peak",), peak if sys.platform == "darwin" else peak * 1024)]


# --- What it amounts to -----------------------------------------------------------------------------------------------


def weight_bytes(config: GPT2Config, precision: str, batch_size: int = 1) -> int:
    """The bytes of weights that one step reads, at least.

    All of the precision's weights, but of a table of embeddings only the rows that are looked up: one of positions, and
    one a row of the batch of tokens, unless the output head is that table and reads all of it.
    """
    row, config = PRECISIONS[precision], replace(config, head=LM)  # a second graph has no part in it
    looked_up = {"wpe": 1} if config.tie_word_embeddings else {"wpe": 1, "wte": batch_size}
    if row.scheme is not None:
        specs = write.specs(config, row.scheme)
    else:
        specs = {name: Spec(row.dtype, shape) for name, _, shape in parameters(config)}
    total = 0
    for name, spec in specs.items():
        rows = spec.shape[0]
        total += spec.nbytes // rows * min(rows, looked_up.get(name.partition(".")[0], rows))
    return total


def bytes_per_step(config: GPT2Config, precision: str, batch_size: int, cached: float) -> int:
    """The bytes that one token of each row must be read for: weights once, keys and values of ``cached`` tokens a row.

    A step reads more than that, and writes: the limit that follows is one that nothing gets beyond, unless the weights
    fit into the processor's caches.
    """
    number = np.dtype(PRECISIONS[precision].dtype).itemsize
    cache = 2 * config.n_layer * config.n_embd * number * cached
    return weight_bytes(config, precision, batch_size) + round(batch_size * cache)


def summary(
    name: str, config: GPT2Config, settings: Settings, samples: Mapping[Key, list[float]], bandwidth: float | None
) -> MeasuredPrecision:
    """Medians of a precision's samples."""

    def of(*key: str | int, times: int = 1) -> Spread | None:
        return Spread.over([times * value for value in samples.get(key, [])])

    cells = sorted(cells_of(settings), key=lambda cell: (cell.batch_size, cell.tokens))
    return MeasuredPrecision(
        precision=name,
        weight_bytes=weight_bytes(config, name),
        load_seconds=of("load"),
        resident_bytes=of("resident"),
        peak_bytes=of("peak"),
        prefill=tuple(
            Prefill(cell.batch_size, cell.tokens, of("prefill", cell.batch_size, cell.tokens, times=1000))
            for cell in cells
            if cell.prefill
        ),
        decode=tuple(
            decoded(name, config, settings, cell, samples.get(("decode", cell.batch_size, cell.tokens), []), bandwidth)
            for cell in cells
            if cell.decode
        ),
    )


def decoded(
    name: str, config: GPT2Config, settings: Settings, cell: Cell, seconds: Sequence[float], bandwidth: float | None
) -> Decode:
    """A decode speed beside its limit."""
    speed = Spread.over([cell.batch_size * settings.new_tokens / value for value in seconds])
    cached = cell.tokens + 1 + (settings.new_tokens - 1) / 2  # in the middle of what is timed
    read = bytes_per_step(config, name, cell.batch_size, cached)
    limit = cell.batch_size * bandwidth / read if bandwidth is not None else None
    share = speed.median / limit if speed is not None and limit is not None else None
    return Decode(cell.batch_size, cell.tokens, speed, read, limit, share)


def _missing(measured: Sequence[MeasuredPrecision]) -> Iterator[str]:
    """What has no sample."""
    for one in measured:
        for prefilled in one.prefill:
            if prefilled.milliseconds is None:
                yield f"{one.precision}: prefill, batch {prefilled.batch_size}, {prefilled.prompt_length} tokens"
        for grown in one.decode:
            if grown.tokens_per_second is None:
                yield f"{one.precision}: decode, batch {grown.batch_size}, context {grown.context}"
