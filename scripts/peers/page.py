"""Write the page of ``scripts/benchmark.py peers``: the measurements, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from converter.version import VERSION
from peers.candidates import BASELINE
from peers.figures import NOTHING, decode, spread
from peers.machine import machine
from peers.plan import Shape
from peers.ratios import AGAINST_EACH, COUNTERPARTS, RATIOS, against_row, behind, ratio_row
from peers.results import Results, Row
from peers.running import THREADS

FEW_TOKENS, MANY_TOKENS = 128, 900
BATCHES = (1, 8, 32)
CONTEXTS = (FEW_TOKENS, MANY_TOKENS)
PREFILLS = tuple(Shape(1, context) for context in (16, *CONTEXTS))
DECODES = tuple(Shape(batch, context) for batch in BATCHES for context in CONTEXTS)


def page(results: Results) -> str:
    """Return the whole page, in Markdown that can also be read on a terminal."""
    rows = results.rows
    parts = [
        HEAD.format(machine=machine(), rounds=results.plan.rounds, few=results.plan.few, threads=THREADS),
        "## Ratios\n\nBatch 1 and context 128, unless the row says otherwise. Above 1, gpt2onnx is faster.\n",
        table(["", "ratio", "of"], [ratio_row(ratio, rows) for ratio in RATIOS]),
        "## Against each peer\n\nHow many times as fast ours of the same precision is; int8 stands for 16 bits.\n",
        table(["", *AGAINST_EACH], [against_row(peer, rows) for peer in COUNTERPARTS if peer in rows]),
        not_ahead(rows),
        CONVERSION,
        table(
            ["", "convert s", "peak MB", "on disk MB", "load s", "tokens as ours"],
            [[name, *conversion_cells(row, rows)] for name, row in rows.items()],
        ),
        "## Prefill, ms until the first token\n\nBatch 1. The columns are the lengths of the prompt, in tokens.\n",
        table(
            ["", *(f"{shape.context}" for shape in PREFILLS)],
            [[name, *(spread(row.prefill.get(shape, []), 1e3) for shape in PREFILLS)] for name, row in rows.items()],
        ),
        "## Decode, tokens a second\n\nOf all rows together, after the first token; the columns are batch × context.\n",
        table(
            ["", *(f"{shape.batch} × {shape.context}" for shape in DECODES)],
            [[name, *(spread(row.decode.get(shape, [])) for shape in DECODES)] for name, row in rows.items()],
        ),
        "## What a longer context costs\n\nThe share of decode speed lost at a context of 900 tokens, against 128.\n",
        table(
            ["", *(f"batch {batch}" for batch in BATCHES)],
            [[name, *(loss(row, batch) for batch in BATCHES)] for name, row in rows.items()],
        ),
        notes(results),
        "## Versions\n",
        table(["", "versions"], [[name, version_cell(name, row)] for name, row in rows.items()]),
    ]
    return "\n".join(parts)


HEAD = """\
# Benchmarks

GPT-2 with 124 million parameters and random weights, float32 on disk, converted and run by gpt2onnx and by other
programs.

{machine}

The candidates were measured in turn. There were {rounds} rounds, but only {few} for what takes long: conversion, and
batches 8 and 32 at context 900. Every cell is the median of the rounds, with the smallest and the largest in
parentheses.

All candidates have {threads} threads, take the same random token ids, decode greedily, and may not stop early.
Everything else is their default: llama.cpp keeps its cache in float16, the others in the precision they compute in.
mobius runs in onnxruntime-genai, for which it is made, with its `model.type` corrected to "decoder". Optimum binds its
inputs and outputs (`use_io_binding=True`).

<!-- not run: takes one to two hours -->
```bash
python scripts/benchmark.py peers --rounds {rounds} --write docs/benchmarks.md
```

makes this page. It installs each peer in an environment of its own, with the versions below. It takes one to two hours
on two cores that do nothing else.
"""
CONVERSION = """\
## Conversion

Time and peak memory are those of the whole process. gpt2onnx ends when its files are safe on the disk; the others leave
that to the system. "On disk" is everything that the converter wrote. "Load" is the time to open the model in a process
that has imported its libraries. "Tokens as ours" counts the greedy tokens after 32 random prompts that are the same as
those of our fp32 graph. In each row, it counts up to the first token that differs.
"""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose columns line up: names on the left, figures on the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cells[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)),
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:]), ""])
    return "\n".join([line(heads), rule, *map(line, rows), ""])


def conversion_cells(row: Row, rows: dict[str, Row]) -> list[str]:
    peak = max((run.peak_bytes for run in row.conversions), default=0)
    return [
        spread([run.seconds for run in row.conversions]),
        f"{peak / 1e6:.0f}" if peak else NOTHING,
        f"{row.disk_bytes / 1e6:.0f}" if row.disk_bytes else NOTHING,
        spread(row.load_seconds),
        agreement(row, rows),
    ]


def agreement(row: Row, rows: dict[str, Row]) -> str:
    """Return how many greedy tokens are ours too. In each row, counting stops at the first one that differs."""
    ours = rows[BASELINE.name].sanity if BASELINE.name in rows else []
    if not ours or not row.sanity:
        return NOTHING
    alike = 0
    for mine, theirs in zip(ours, row.sanity, strict=True):
        differs = [a != b for a, b in zip(mine, theirs, strict=True)]
        alike += differs.index(True) if True in differs else len(differs)
    return f"{alike} of {sum(map(len, ours))}"


def not_ahead(rows: dict[str, Row]) -> str:
    """Return what peers are faster at."""
    lines = [f"- {line}" for line in behind(rows)]
    return "\n".join(
        ["**Where gpt2onnx is not ahead:**" if lines else "gpt2onnx is ahead in all of them.", "", *lines, ""]
    )


def loss(row: Row, batch: int) -> str:
    few, many = (decode(batch, context)(row) for context in CONTEXTS)
    return f"{100 * (1 - many / few):.0f} %" if few and many else NOTHING


def notes(results: Results) -> str:
    """Return what candidates could not do, without the path of the folder where they ran."""
    lines = [f"- {name}: {note}" for name, row in results.rows.items() for note in row.notes]
    told = "\n".join(lines).replace(f"{results.work}/", "")
    return f"## What is missing, and why\n\n{told}\n" if lines else ""


def version_cell(name: str, row: Row) -> str:
    versions = {"gpt2onnx": VERSION} if name.startswith("ours") else {}
    return ", ".join(f"{package} {version}" for package, version in (versions | row.versions).items()) or NOTHING
