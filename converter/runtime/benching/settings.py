"""What is measured: settings, the cells of the tables, and what each process is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from converter.errors import BenchError
from converter.folder import manifest
from converter.runtime.opening import config_of, model_file
from converter.weights import precisions
from converter.weights.precisions import PRECISIONS
from reference.config import GPT2Config
from reference.head import HEADS


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
        cuda_graphs: see ``converter.load``.
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
    cuda_graphs: bool = False
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
    """Parse ``"1,8"`` into ``(1, 8)``.

    Raises:
        BenchError: something else is among them; it says of what setting.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise BenchError(f"{name} is {text!r}; expected whole numbers of 1 or more with commas between, such as 1,8")
    return tuple(map(int, parts))


def chosen(folder: Path, asked: Sequence[str]) -> tuple[str, ...]:
    """Return the precisions to measure.

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
    """Return the precisions that a folder holds; without our manifest it is known to have one graph."""
    return [name for name in manifest.read(folder).get("precisions") or {} if name in PRECISIONS] or ["fp32"]


def clipped(settings: Settings, config: GPT2Config) -> Settings:
    """Reduce the settings to the model's positions; one token more is needed than is timed.

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
    """A batch of prompts of one length, and whether its prefill or its decoding is measured."""

    batch_size: int
    tokens: int
    prefill: bool
    decode: bool

    @property
    def label(self) -> str:
        """For people."""
        return f"batch {self.batch_size}, {self.tokens} tokens"


def cells_of(settings: Settings) -> list[Cell]:
    """Return what a process measures, the cheapest first, as it may be stopped."""
    lengths = sorted({*settings.prompt_lengths, *settings.contexts})
    every = [
        Cell(batch, tokens, tokens in settings.prompt_lengths, tokens in settings.contexts)
        for batch in settings.batch_sizes
        for tokens in lengths
    ]
    return sorted(every, key=lambda cell: cell.batch_size * cell.tokens)


def job_of(folder: Path, name: str, settings: Settings, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return what the process of a precision is told."""
    named = name if "precisions" in manifest.read(folder) else None
    return {
        "model": [os.fspath(folder), settings.provider, settings.threads, named, settings.cuda_graphs],
        "cells": [asdict(cell) for cell in cells],
        "new_tokens": settings.new_tokens,
        "steps": [f"{name}: load", *(f"{name}: {cell.label}" for cell in cells)],
    }
