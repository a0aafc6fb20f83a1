"""Write the page of ``scripts/benchmark.py peers``: the measurements, as tables."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from peers import BASELINE, THREADS, Results, Row, Shape

from converter.version import VERSION

FEW_TOKENS, MANY_TOKENS = 128, 900
BATCHES = (1, 8, 32)
CONTEXTS = (FEW_TOKENS, MANY_TOKENS)
PREFILLS = tuple(Shape(1, context) for context in (16, *CONTEXTS))
DECODES = tuple(Shape(batch, context) for batch in BATCHES for context in CONTEXTS)
NOTHING = "–"

OURS_FP32, OURS_INT8, OURS_INT4 = "ours fp32", "ours int8", "ours int4"
GENAI_FP32, GENAI_INT8 = "genai fp32 on our graph", "genai int8 on our graph"
FP32_PEERS = ("optimum fp32", "mobius fp32 in genai", "CTranslate2 float32", "llama.cpp f32", "transformers fp32")
OTHER_PEERS = ("CTranslate2 int8", "llama.cpp q8_0", "llama.cpp q4_0", "transformers bf16")

Figure = Callable[[Row], float | None]  # higher is better


def decode(batch: int, context: int) -> Figure:
    return lambda row: middle(row.decode.get(Shape(batch, context), []))


def prefill(context: int) -> Figure:
    """Return a figure: the prompt tokens a second."""

    def of(row: Row) -> float | None:
        seconds = middle(row.prefill.get(Shape(1, context), []))
        return context / seconds if seconds else None

    return of


@dataclass(frozen=True)
class Ratio:
    """How many times as fast the best of ours is as the best of the peers."""

    label: str
    figure: Figure
    ours: Sequence[str]
    peers: Sequence[str]


ALL_OURS = (OURS_FP32, OURS_INT8, OURS_INT4)
RATIOS = (
    Ratio("fp32 decode: ours / best peer", decode(1, 128), [OURS_FP32], FP32_PEERS),
    Ratio("fp32 prefill (128): ours / best fp32 peer", prefill(128), [OURS_FP32], FP32_PEERS),
    Ratio("int8 decode: ours / llama.cpp q8_0", decode(1, 128), [OURS_INT8], ["llama.cpp q8_0"]),
    Ratio("int8 decode: ours / CTranslate2 int8", decode(1, 128), [OURS_INT8], ["CTranslate2 int8"]),
    Ratio("int8 prefill (128): ours / CTranslate2 int8", prefill(128), [OURS_INT8], ["CTranslate2 int8"]),
    Ratio("int4 decode: ours / llama.cpp q4_0", decode(1, 128), [OURS_INT4], ["llama.cpp q4_0"]),
    Ratio("our loop / genai's, same fp32 graph: decode", decode(1, 128), [OURS_FP32], [GENAI_FP32]),
    Ratio("our loop / genai's, same fp32 graph: prefill (128)", prefill(128), [OURS_FP32], [GENAI_FP32]),
    Ratio("our loop / genai's, same int8 graph: decode", decode(1, 128), [OURS_INT8], [GENAI_INT8]),
    Ratio("batch 32 decode, fp32: ours / best peer", decode(32, 128), [OURS_FP32], FP32_PEERS),
    Ratio("batch 32 decode, any precision: ours / best peer", decode(32, 128), ALL_OURS, FP32_PEERS + OTHER_PEERS),
)


def page(results: Results) -> str:
    """Return the whole page, in Markdown that can also be read on a terminal."""
    rows = results.rows
    parts = [
        HEAD.format(machine=machine(), rounds=results.plan.rounds, few=results.plan.few, threads=THREADS),
        "## Ratios\n\nBatch 1 and context 128, unless the row says otherwise. Above 1, gpt2onnx is faster.\n",
        table(["", "ratio", "of"], [ratio_row(ratio, rows) for ratio in RATIOS]),
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
python scripts/benchmark.py peers --write docs/benchmarks.md
```

makes this page. It installs each peer in an environment of its own, with the versions below. It takes one to two hours
on two cores that do nothing else.
"""

CONVERSION = """\
## Conversion

Time and peak memory are those of the whole process. "On disk" is everything that the converter wrote. "Load" is the
time to open the model in a process that has imported its libraries. "Tokens as ours" counts the greedy tokens after 32
random prompts that are the same as those of our fp32 graph. In each row, it counts up to the first token that differs.
"""


def machine() -> str:
    """Return the date, the processor, and other facts on which the figures depend."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{time.strftime('%Y-%m-%d')}, {processor()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory, "
        f"{platform.system()}, Python {platform.python_version()}."
    )


def processor() -> str:
    """Return the processor's model, and the instructions that decide how fast low precisions are."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = values.get("flags", "").split()
    useful = [
        flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8") if flag in flags
    ]
    name = values.get("model name", platform.machine() or sys.platform)
    return f"{name} ({' '.join(useful)})" if useful else name


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


def middle(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def spread(values: Sequence[float], scale: float = 1.0) -> str:
    """Return ``median (smallest–largest)``; a single value stands alone."""
    if not values:
        return NOTHING
    scaled = [value * scale for value in values]
    digits = 0 if statistics.median(scaled) >= 100 else 1 if statistics.median(scaled) >= 10 else 2
    text = f"{statistics.median(scaled):.{digits}f}"
    return f"{text} ({min(scaled):.{digits}f}–{max(scaled):.{digits}f})" if len(values) > 1 else text


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


def best(names: Sequence[str], rows: dict[str, Row], figure: Figure) -> tuple[str, float] | None:
    """Return the fastest of some candidates, and its figure; None if none was measured."""
    measured = [(name, value) for name in names if name in rows and (value := figure(rows[name])) is not None]
    return max(measured, key=lambda pair: pair[1], default=None)


def ratios(results: Results) -> dict[str, float | None]:
    """Return the ratios by their labels; None where one side was not measured."""
    found: dict[str, float | None] = {}
    for ratio in RATIOS:
        ours, peer = (best(names, results.rows, ratio.figure) for names in (ratio.ours, ratio.peers))
        found[ratio.label] = ours[1] / peer[1] if ours and peer else None
    return found


def ratio_row(ratio: Ratio, rows: dict[str, Row]) -> list[str]:
    ours, peer = (best(names, rows, ratio.figure) for names in (ratio.ours, ratio.peers))
    if ours is None or peer is None:
        sides = ((ratio.ours, ours), (ratio.peers, peer))
        lacking = " and ".join(" or ".join(names) for names, found in sides if found is None)
        return [ratio.label, NOTHING, f"{lacking} not measured"]
    return [ratio.label, f"{ours[1] / peer[1]:.2f}", f"{ours[0]} {ours[1]:.0f} tokens/s, {peer[0]} {peer[1]:.0f}"]


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
