"""Hold the measurements, and say what a candidate could not do."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from processes import Run

from peers.errors import LateError, PeerError
from peers.plan import Plan, Shape
from peers.running import THREADS


@dataclass
class Row:
    """The measurements of one candidate."""

    conversions: list[Run] = field(default_factory=list)
    disk_bytes: int | None = None
    load_seconds: list[float] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    sanity: list[list[int]] = field(default_factory=list)  # tokens after the fixed prompts
    prefill: dict[Shape, list[float]] = field(default_factory=dict)  # seconds until the first token
    decode: dict[Shape, list[float]] = field(default_factory=dict)  # tokens a second after it, of all rows together
    notes: list[str] = field(default_factory=list)
    late: bool = False  # it gave no answer in time, so that it need not be asked for more

    def add(self, shape: Shape, new_tokens: int, done: Mapping[str, float]) -> None:
        """Keep a measurement: the seconds until the ``first`` and the ``last`` of the new tokens."""
        self.prefill.setdefault(shape, []).append(done["first"])
        if new_tokens > 1:
            rate = shape.batch * (new_tokens - 1) / (done["last"] - done["first"])
            self.decode.setdefault(shape, []).append(rate)

    def note(self, what: str, error: PeerError) -> None:
        """Record a failure, once."""
        self.late |= isinstance(error, LateError)
        note = f"{what}: {error}"
        if note not in self.notes:
            self.notes.append(note)
            click.echo(f"  {note}", err=True)

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """Turn a failure into a note."""
        try:
            yield
        except PeerError as error:
            self.note(what, error)


@dataclass(frozen=True)
class Results:
    """All rows, by the names of the candidates."""

    plan: Plan
    rows: dict[str, Row]
    work: Path

    def as_json(self) -> dict[str, Any]:
        """Return every measurement."""

        def by_shape(values: dict[Shape, list[float]]) -> dict[str, list[float]]:
            return {f"{shape.batch}x{shape.context}": figures for shape, figures in values.items()}

        rows = {
            name: {
                "conversion_seconds": [run.seconds for run in row.conversions],
                "conversion_peak_bytes": [run.peak_bytes for run in row.conversions],
                "disk_bytes": row.disk_bytes,
                "load_seconds": row.load_seconds,
                "versions": row.versions,
                "sanity": row.sanity,
                "prefill_seconds": by_shape(row.prefill),
                "decode_tokens_per_second": by_shape(row.decode),
                "notes": row.notes,
            }
            for name, row in self.rows.items()
        }
        return {"date": time.strftime("%Y-%m-%d"), "threads": THREADS, "rounds": self.plan.rounds, "candidates": rows}
