"""Measure servers in turn, each at every number of streams, and write the tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from peers.candidates import MODELS
from peers.conversion import convert
from peers.environments import ENVIRONMENTS, install
from peers.errors import PeerError
from peers.figures import NOTHING, spread
from peers.load import LEVELS, LONGEST, NEW_TOKENS, SHORTEST, Level, load, prompts
from peers.machine import machine
from peers.page import table
from peers.running import HERE, THREADS
from peers.servers import SERVERS, Server, build, resident, started

REQUESTS_PER_STREAM = 2  # so that streams end and begin while others run
FEWEST_REQUESTS = 6  # of one stream, whose prompts differ most


@dataclass
class Served:
    """What was measured of one server."""

    levels: dict[int, list[Level]] = field(default_factory=dict)
    resident: int = 0
    notes: list[str] = field(default_factory=list)


def measure_servers(work: Path, source: Path, only: str, rounds: int, most_streams: int) -> dict[str, Served]:
    """Install, convert and measure; a server that fails has a note in place of figures."""
    beginnings = tuple(part.strip() for part in only.split(",") if part.strip())
    servers = [server for server in SERVERS if not beginnings or server.name.startswith(beginnings)]
    found = {server.name: Served() for server in servers}
    levels = [streams for streams in LEVELS if streams <= most_streams]
    for server in servers:
        try:
            prepare(work, source, server)
        except PeerError as error:
            found[server.name].notes.append(f"preparation: {error}")
    for number in range(rounds):
        for server in servers:
            if not found[server.name].notes:
                click.echo(f"round {number + 1}: {server.name}", err=True)
                measure_one(work, source, server, levels, number, found[server.name])
    return found


def prepare(work: Path, source: Path, server: Server) -> None:
    """Install a server and convert its model, once."""
    if server.environment != HERE:
        install(work / "environments" / server.environment, ENVIRONMENTS[server.environment])
    build(work, server)
    if MODELS[server.model].command and not any((work / "models" / server.model).glob("*")):
        convert(work, source, server.model)


def measure_one(work: Path, source: Path, server: Server, levels: Sequence[int], number: int, found: Served) -> None:
    def given_prompts(count: int, seed: int) -> Sequence[list[int] | str]:
        given = prompts(count, seed)
        return texts(source, given) if server.takes_texts else given

    try:
        with started(work, source, server) as (port, process):
            load(port, server.body, 1, given_prompts(1, seed=-1))  # the runtime prepares everything
            for streams in levels:
                given = given_prompts(max(FEWEST_REQUESTS, REQUESTS_PER_STREAM * streams), seed=number)
                found.levels.setdefault(streams, []).append(load(port, server.body, streams, given))
                found.resident = max(found.resident, resident(process))
    except PeerError as error:
        found.notes.append(str(error))


def beside_generate(work: Path, source: Path, server: Server, rounds: int) -> Iterator[tuple[float, float]]:
    """Yield for each of some prompts the seconds of one stream, and those of ``generate`` in this process, in turn.

    Args:
        server: one of ours.
    """
    from converter import load as open_folder

    prepare(work, source, server)
    precision = server.name.split()[-1]
    model = open_folder(work / "models" / server.model, threads=THREADS, precision=precision, large_pages=True)
    with started(work, source, server) as (port, _):
        for number, ids in enumerate([*prompts(1, seed=-1) * 2, *prompts(rounds, seed=0)]):
            stream = load(port, server.body, 1, [ids]).done[0]
            alone = model.generate(ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
            if number > 1:  # the first two prepare everything, large pages too
                yield stream.came[-1] - stream.sent, alone.prefill_seconds + alone.decode_seconds


def texts(source: Path, prompts: Sequence[list[int]]) -> list[str]:
    """Return prompts as texts.

    Raises:
        PeerError: the checkpoint has no tokenizer.
    """
    if not (source / "vocab.json").is_file():
        raise PeerError("it takes texts only: give --tokenizer")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    return [tokenizer.decode(ids) for ids in prompts]


TABLES: dict[str, tuple[str, float]] = {  # heading → figure and scale
    "Tokens a second, of all streams together": ("tokens_per_second", 1),
    "Until the first token, ms": ("first_token_median", 1e3),
    "Until the first token, ms, the slowest stream": ("first_token_longest", 1e3),
    "From one token to the next, ms": ("between_tokens_median", 1e3),
    "The longest silence of any stream, ms": ("longest_silence", 1e3),
}


def page_of_servers(found: dict[str, Served]) -> str:
    """Return the tables, in Markdown."""
    rounds = max((len(levels) for served in found.values() for levels in served.levels.values()), default=0)
    parts = [HEAD.format(machine=machine(), rounds=rounds, threads=THREADS)]
    for heading, (figure, scale) in TABLES.items():
        rows = [
            [name, *(spread([level.as_json()[figure] for level in served.levels.get(n, [])], scale) for n in LEVELS)]
            for name, served in found.items()
        ]
        parts += [f"## {heading}\n", table(["", *(f"{n} streams" for n in LEVELS)], rows)]
    memory = [[name, f"{served.resident / 1e6:.0f}" if served.resident else NOTHING] for name, served in found.items()]
    parts += ["## Memory held at the end, MB\n", table(["", "MB"], memory)]
    notes = [f"- {name}: {note}" for name, served in found.items() for note in served.notes]
    return "\n".join([*parts, *(["## What is missing, and why\n", *notes, ""] if notes else [])])


HEAD = f"""\
# Servers

GPT-2 with 124 million parameters and random weights, served on the loopback interface and loaded with streams of
OpenAI's `/v1/completions`. Prompts have {SHORTEST} to {LONGEST} random tokens, answers {NEW_TOKENS}, greedily.
Each stream sends its next request as soon as it has its answer.

{{machine}}

{{threads}} threads each; the load comes from the same machine. The servers were measured in turn, in {{rounds}} rounds.
Every cell is the median of the rounds, with the smallest and the largest in parentheses.
"""


def as_json(found: dict[str, Served]) -> dict[str, Any]:
    """Return every measurement."""
    return {
        name: {
            "levels": [level.as_json() for levels in served.levels.values() for level in levels],
            "resident_bytes": served.resident,
            "notes": served.notes,
        }
        for name, served in found.items()
    }


PAIRS = (
    ("ours fp32", "llama-server f32"),
    ("ours fp32", "transformers serve"),
    ("ours fp32", "transformers serve, continuous"),
    ("ours int8", "llama-server q8_0"),
    ("ours int4", "llama-server q4_0"),
)


def serving_ratios(found: dict[str, Served]) -> list[str]:
    """Say how many times as many tokens a second the first of each pair gives as the second."""
    said = []
    for ours, theirs in PAIRS:
        for streams in LEVELS:
            rates = [
                statistics.median(level.tokens_per_second for level in found[name].levels[streams])
                for name in (ours, theirs)
                if name in found and streams in found[name].levels
            ]
            if len(rates) == 2:
                said.append(f"{ours} / {theirs}, {streams} streams: {rates[0] / rates[1]:.2f}")
    return said
