"""Measure the candidates in turn, so that disturbances of the machine meet them all.

Their models stay open, except for the largest batches, for which only one is open at a time. If a peer cannot do
something, a note stands beside its figures, and the rest goes on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click

from peers.candidates import MODELS, Candidate
from peers.conversion import convert, warm
from peers.environments import ENVIRONMENTS, install
from peers.errors import PeerError
from peers.plan import Plan, Shape
from peers.prompts import SANITY_LENGTH, SANITY_NEW, SANITY_PROMPTS, WARM, random_prompts
from peers.results import Results, Row
from peers.running import HERE
from peers.worker import Worker

PAUSE_SECONDS = 0.3  # between measurements, as threads of the last one may still spin


def compare(work: Path, source: Path, candidates: Sequence[Candidate], plan: Plan) -> Results:
    """Install, convert and measure the candidates; return the results."""
    rows = {candidate.name: Row() for candidate in candidates}
    bench = Bench(work, source, plan, rows)
    try:
        bench.install(candidates)
        bench.convert(candidates)
        bench.measure_small(bench.able(candidates))
        bench.measure_large(bench.able(candidates))
    except KeyboardInterrupt:
        click.echo("stopped; these were the measurements so far:", err=True)
    return Results(plan, rows, work)


@dataclass(frozen=True)
class Bench:
    """The run of all measurements. A candidate that fails in an early step takes no later ones."""

    work: Path
    source: Path
    plan: Plan
    rows: dict[str, Row]

    def able(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates that have a model, and answered in time so far."""
        rows = {candidate: self.rows[candidate.name] for candidate in candidates}
        return [candidate for candidate, row in rows.items() if row.disk_bytes and not row.late]

    def install(self, candidates: Sequence[Candidate]) -> None:
        for name in dict.fromkeys(candidate.environment for candidate in candidates):
            if name == HERE:
                continue
            click.echo(f"environment {name}", err=True)
            try:
                install(self.work / "environments" / name, ENVIRONMENTS[name])
            except PeerError as error:
                for candidate in candidates:
                    if candidate.environment == name:
                        self.rows[candidate.name].note("installation", error)

    def convert(self, candidates: Sequence[Candidate]) -> None:
        """Convert all models, round by round. A model that two candidates run is converted once a round."""
        warm(self.source)
        users: dict[str, list[Row]] = {}
        for candidate in candidates:
            if not self.rows[candidate.name].notes:
                users.setdefault(candidate.model, []).append(self.rows[candidate.name])
        for _ in range(self.plan.few):
            for name, rows in users.items():
                self.convert_once(name, [row for row in rows if not row.notes])

    def convert_once(self, name: str, rows: list[Row]) -> None:
        if not rows:
            return
        click.echo(f"conversion {name}", err=True)
        try:
            run, disk = convert(self.work, self.source, name)
        except PeerError as error:
            for row in rows:
                row.note("conversion", error)
            return
        for row in rows:
            row.disk_bytes = disk
            row.conversions += [run] if run else []

    def measure_small(self, candidates: list[Candidate]) -> None:
        """Measure all candidates in turn for each shape. Their models stay open."""
        for _ in range(self.plan.rounds - 1):
            for candidate in candidates:
                with ExitStack() as stack:
                    self.open(stack, candidate)
        with ExitStack() as stack:
            workers = {candidate.name: self.open(stack, candidate) for candidate in candidates}
            open_ones = {name: worker for name, worker in workers.items() if worker is not None}
            for name, worker in open_ones.items():
                with self.rows[name].noting("first tokens"):
                    prompts = random_prompts(SANITY_PROMPTS, SANITY_LENGTH, seed=0)
                    self.rows[name].sanity = worker.generate(prompts, SANITY_NEW)["tokens"]
                    worker.generate(*WARM)
            for number in range(self.plan.rounds):
                for shape, new_tokens in self.plan.small.items():
                    click.echo(f"round {number + 1}: batch {shape.batch}, context {shape.context}", err=True)
                    for name, worker in open_ones.items():
                        self.time(name, worker, shape, new_tokens, number)

    def measure_large(self, candidates: list[Candidate]) -> None:
        """Measure all candidates in turn, one open at a time. Together they would not fit into memory."""
        for number in range(self.plan.few if self.plan.large else 0):
            for candidate in candidates:
                with ExitStack() as stack:
                    worker = self.open(stack, candidate)
                    if worker is not None:
                        self.time_large(candidate.name, worker, number)

    def time_large(self, name: str, worker: Worker, number: int) -> None:
        with self.rows[name].noting("first tokens"):
            worker.generate(*WARM)
        for shape, new_tokens in self.plan.large.items():
            click.echo(f"round {number + 1}: batch {shape.batch}, context {shape.context}, {name}", err=True)
            self.time(name, worker, shape, new_tokens, number)

    def open(self, stack: ExitStack, candidate: Candidate) -> Worker | None:
        row = self.rows[candidate.name]
        opened: list[Worker] = []
        with row.noting("loading"):
            worker = Worker(self.work, self.model_folder(candidate), candidate)
            stack.callback(worker.close)
            reply = worker.answer()
            row.load_seconds.append(reply["seconds"])
            row.versions = reply["versions"]
            opened.append(worker)
        return opened[0] if opened else None

    def model_folder(self, candidate: Candidate) -> Path:
        return self.work / "models" / candidate.model if MODELS[candidate.model].command else self.source

    def time(self, name: str, worker: Worker, shape: Shape, new_tokens: int, number: int) -> None:
        if worker.ended:
            return
        row = self.rows[name]
        with row.noting(f"batch {shape.batch}, context {shape.context}"):
            time.sleep(PAUSE_SECONDS)
            done = worker.generate(random_prompts(shape.batch, shape.context, seed=number), new_tokens)
            row.add(shape, new_tokens, done)
