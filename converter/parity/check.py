"""Proves that a model folder is its source: ``check``. Needs torch and transformers; imports them when called."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import Checkpoint
from converter.errors import CheckError, OutputError
from converter.folder import certificate
from converter.folder.staging import MANIFEST
from converter.weights.ledger import Ledger, read_source

if TYPE_CHECKING:
    from converter.parity.report.report import Report

NEEDED = ("torch", "transformers")
PAGE_NEEDED, PLOT_NEEDED = ("jinja2", "matplotlib"), ("matplotlib",)

Progress = Callable[[str, int, int], None]  # told what is about to be computed, how many steps are done, of how many


def available() -> bool:
    """Whether ``check`` can run: whether the extra ``check`` is installed."""
    return all(importlib.util.find_spec(name) for name in NEEDED)


def require(needed: Sequence[str] = NEEDED, what: str = "check") -> None:
    """Raise if something cannot run.

    Raises:
        CheckError: a package that it needs is missing.
    """
    if not all(importlib.util.find_spec(name) for name in needed):
        raise CheckError(f"{what} needs {' and '.join(needed)}; install them with: pip install 'gpt2onnx[check]'")


def check(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    level: str = "quick",
    ignore: Iterable[str] = (),
    provider: str = "cpu",
    text: str | os.PathLike[str] | None = None,
    limits: Mapping[str, float] | None = None,
    files: bool = True,
    allow: Iterable[str] = (),
    layers: bool = False,
    also: Iterable[str | os.PathLike[str]] = (),
    certify: bool = True,
    activation: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    head: str | None = None,
    own_process: bool = False,
    progress: Progress = lambda step, done, total: None,
) -> Report:
    """Judge whether the model folder ``out`` computes what ``source`` computes.

    Weights are compared bit for bit, mathematics in float64 (Hugging Face, the from-scratch reference and the shipped
    graph), and float32 by how far Hugging Face's own float32 is from that truth. On a mismatch the operation that is
    wrong is looked for, and hypotheses are tried there.

    Args:
        source: as for ``convert``.
        level: ``quick``, or ``full``: every leg on every case, half precisions, more text.
        ignore: the globs that ``convert`` was given.
        provider: of ONNX Runtime, for the shipped graph.
        text: a file whose text is fed, plain or JSONL; by default held-out text that ships with gpt2onnx.
        limits: what ``converter.parity.verdict.Limits`` allows, otherwise than by default.
        files: compare initializers, config and tokenizer; without, the logits alone decide.
        allow: files, or keys of JSON files (``FILE:KEY``), that may differ from what ``convert`` writes.
        layers: compare every operation, even if nothing is wrong.
        also: other ONNX files, with the inputs and outputs that Optimum gives them, to hold against the source.
        activation, adapter, head: as for ``convert``.
        certify: write the verdict and the files' hashes into the folder's manifest, for ``verify``.
        own_process: the process does nothing else, and its memory allocator may be set for the check.
        progress: called before each step.

    Raises:
        CheckError: torch or transformers is missing, or ``out`` is a model of other dimensions.
        GPT2Error: source or folder cannot be opened, or its manifest cannot be read.
    """
    require()
    from converter.parity.baseline import measure_source, source_rows
    from converter.parity.examine import Examination, examine, folder_rows, graphs_of
    from converter.parity.legs.cases import Level
    from converter.parity.legs.huggingface import HuggingFace
    from converter.parity.legs.memory import LARGE_MODEL, keep_large_blocks
    from converter.parity.report.report import together
    from converter.parity.verdict.beside import compare_config
    from converter.parity.verdict.limits import Limits
    from converter.parity.verdict.reproduction import parse_allowed
    from converter.runtime.ort import provider_name

    began = time.monotonic()
    folder = Path(out)
    examination = Examination(
        provider, files, allowed=parse_allowed(allow), layers=layers, also=tuple(Path(file) for file in also)
    )
    allowed, asked = Limits.from_settings(limits or {}), Level.parse(level)
    provider_name(provider)
    for file in examination.also:
        if not file.is_file():
            raise CheckError(f"there is no ONNX file {file}")
    checkpoint, ledger = read_source(source, SourceOptions(tuple(ignore), activation, adapter, head))
    if own_process and ledger.parameters < LARGE_MODEL:
        keep_large_blocks()
    # What cannot be compared is refused before anything is computed.
    graphs_of(folder, ledger.per_graph[0].config.head)
    compare_config(folder, checkpoint, ledger)
    # Another file is held against the first graph only.
    first, *others = ledger.per_graph
    parts = [(first, replace(examination, whole=ledger)), *((part, replace(examination, also=())) for part in others)]
    opened = [HuggingFace(checkpoint, part) for part, _ in parts]
    rows = [len(source_rows(source, part, allowed, asked)) for source, (part, _) in zip(opened, parts, strict=True)]
    rows += [len(folder_rows(part, allowed, asked, folder, each, {})) for part, each in parts]
    step, reports = _counter(progress, sum(rows) + len(parts) * BESIDE_LEGS), []
    for huggingface, (part, each) in zip(opened, parts, strict=True):
        read = None if text is None else Path(text)
        baseline = measure_source(checkpoint, part, read, allowed, asked, step, huggingface)
        reports.append(examine(baseline, folder, each, step))
    report = together(reports, [part.config.head for part, _ in parts])
    report = replace(report, source=os.fspath(source), seconds=time.monotonic() - began)
    certify = certify and files and (folder / MANIFEST).is_file()
    # A check against another source says nothing about a certificate that was earned by these very files.
    certify = certify and (report.passed or not certificate.holds(folder))
    return _certified(report, checkpoint, ledger) if certify else report


# Steps of a check that are no legs: the truth, comparing the files, and the verdict with its causes.
BESIDE_LEGS = 3


def _counter(progress: Progress, total: int) -> Callable[[str], None]:
    """Return a function that counts the steps that it is told."""
    done = count()
    return lambda step: progress(step, next(done), total)


def _certified(report: Report, checkpoint: Checkpoint, ledger: Ledger) -> Report:
    """The report, once its certificate is written; with a note if the folder cannot be written to."""
    read = {weight.file for weight in ledger.weights.values()} | checkpoint.described_by
    legs = [{"name": leg.name, "rms": leg.rms, "maximum": leg.maximum, "fault": leg.fault} for leg in report.legs]
    from converter.parity.report.quality import recorded

    try:
        values = recorded(Path(report.out), report) if report.passed else None
        facts = {"level": report.level, "limits": dict(report.limits), "legs": legs}
        facts |= {"allowed": list(report.allowed)} if report.allowed else {}
        certificate.write(Path(report.out), read, report.passed, report.verdict, facts, values)
    except OutputError as error:
        return replace(report, notes=(*report.notes, f"no certificate: {error}"))
    return report
