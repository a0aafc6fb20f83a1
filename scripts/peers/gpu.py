"""Measure on a GPU: ours beside genai on our graph, and transformers as it is and compiled."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import click

from peers.candidates import MODELS, Candidate
from peers.conversion import convert
from peers.errors import PeerError
from peers.page import table
from peers.plan import Shape
from peers.prompts import SANITY_LENGTH, SANITY_NEW, SANITY_PROMPTS, random_prompts
from peers.results import Row
from peers.worker import Worker

SHAPES = [Shape(batch, context) for batch in (1, 8, 32) for context in (128, 900)]
NEW_TOKENS = 100  # in 900 + 100 of 1024 positions


def measure_on_gpu(work: Path, source: Path, candidates: Sequence[Candidate], rounds: int) -> dict[str, Row]:
    """Open the candidates one after the other. Each shape is run once before it is measured, as most prepare it."""
    rows = {candidate.name: Row() for candidate in candidates}
    work.mkdir(parents=True, exist_ok=True)
    for candidate in candidates:
        row = rows[candidate.name]
        with row.noting("conversion"):
            if not (work / "models" / candidate.model).is_dir():
                convert(work, source, candidate.model)
        folder = work / "models" / candidate.model if MODELS[candidate.model].command else source
        click.echo(candidate.name, err=True)
        worker = Worker(work, folder, candidate, limited=False)
        try:
            _measure(worker, row, rounds)
        except PeerError as error:
            row.note("run", error)
        finally:
            worker.close()
    return rows


def _measure(worker: Worker, row: Row, rounds: int) -> None:
    opened = worker.answer()
    row.versions = opened["versions"]
    row.load_seconds.append(opened["seconds"])
    row.sanity = worker.generate(random_prompts(SANITY_PROMPTS, SANITY_LENGTH, seed=0), SANITY_NEW)["tokens"]
    for shape in SHAPES:
        with row.noting(f"batch {shape.batch}, context {shape.context}"):
            for number in range(rounds + 1):
                done = worker.generate(random_prompts(shape.batch, shape.context, seed=number), NEW_TOKENS)
                if number:
                    row.add(shape, NEW_TOKENS, done)


def tables(rows: dict[str, Row]) -> str:
    """Return the tables: tokens a second after the first, and milliseconds until the first."""
    heads = ["", *(f"{shape.batch} × {shape.context}" for shape in SHAPES)]
    first = next(iter(rows.values()))

    def cells(values: dict[Shape, list[float]], form: str, scale: float) -> list[str]:
        return [format(statistics.median(values[s]) * scale, form) if s in values else "–" for s in SHAPES]

    decode = [[name, *cells(row.decode, ",.0f", 1)] for name, row in rows.items()]
    prefill = [[name, *cells(row.prefill, ".1f", 1000)] for name, row in rows.items()]
    lines = ["Decode, tokens/s of all rows", "", table(heads, decode), "", "Prefill, ms", "", table(heads, prefill), ""]
    for name, row in rows.items():
        same = sum(a[0] == b[0] for a, b in zip(row.sanity, first.sanity, strict=False))
        versions = ", ".join(f"{package} {version}" for package, version in row.versions.items())
        said = [versions, f"first tokens as ours {same} of {SANITY_PROMPTS}", *row.notes]
        lines.append(f"- {name}: {'; '.join(filter(None, said))}")
    return "\n".join(lines)
