"""Compare a model folder with its source: ``check``. It needs torch and transformers, and imports them when called."""

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

Progress = Callable[[str, int, int], None]  # called with the name of the next step, the steps done, and their total


def available() -> bool:
    """Tell whether ``check`` can run, that is, whether the extra ``check`` is installed."""
    return all(importlib.util.find_spec(name) for name in NEEDED)


def require(needed: Sequence[str] = NEEDED, what: str = "check") -> None:
    """Check that the packages in ``needed`` are installed; ``what`` needs them.

    Raises:
        CheckError: a package is missing.
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
    """Judge whether the model folder ``out`` computes what ``source`` computes; returns the report.

    Weights are compared bit for bit. The mathematics of Hugging Face, the from-scratch reference and the shipped graph
    is compared in float64. A float32 leg is compared with the noise floor: how far Hugging Face's own float32 is from
    the float64 truth. On a mismatch, the operation that is wrong is searched for, and hypotheses about its cause are
    tried.

    Args:
        source: see ``convert``.
        level: ``quick``, or ``full``, which runs every leg on every case, adds half precisions, and reads more text.
        ignore: the globs that ``convert`` was given.
        provider: the provider of ONNX Runtime for the shipped graph.
        text: a file with the text to feed, plain or JSONL. The default is a held-out text that comes with gpt2onnx.
        limits: values that replace defaults of ``converter.parity.verdict.limits.Limits``, by name.
        files: also compare initializers, config and tokenizer; otherwise the logits alone decide.
        allow: files, or keys of JSON files (``FILE:KEY``), that may differ from what ``convert`` writes.
        layers: compare every operation, even on a match.
        also: other ONNX files to compare with the source. Their inputs and outputs have the names that Optimum gives
            them.
        activation, adapter, head: see ``convert``.
        certify: write the verdict and the files' hashes into the folder's manifest, for ``verify``.
        own_process: whether the process does nothing else, so that its memory allocator may be set for the check.
        progress: called before each step.

    Raises:
        CheckError: torch or transformers is missing, or ``out`` is a model of other dimensions.
        GPT2Error: the source or the folder cannot be opened, or the manifest cannot be read.
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
    # Other files are compared with the first graph only.
    first, *others = ledger.per_graph
    parts = [(first, replace(examination, whole=ledger)), *((part, replace(examination, also=())) for part in others)]
    of_source = [source_rows(HuggingFace(checkpoint, part), part, allowed, asked) for part, _ in parts]
    of_folder = [folder_rows(part, allowed, asked, folder, each) for part, each in parts]
    total = sum(map(len, of_source)) + sum(len(rows.legs) for rows in of_folder) + len(parts) * BESIDE_LEGS
    step, reports, read = _counter(progress, total), [], None if text is None else Path(text)
    for (part, each), its_source, its_folder in zip(parts, of_source, of_folder, strict=True):
        baseline = measure_source(checkpoint, part, read, allowed, asked, step, its_source)
        reports.append(examine(baseline, folder, each, step, rows=its_folder))
    report = together(reports, [part.config.head for part, _ in parts])
    report = replace(report, source=os.fspath(source), seconds=time.monotonic() - began)
    certify = certify and files and (folder / MANIFEST).is_file()
    # A mismatch with another source must not replace the certificate that these files have earned.
    certify = certify and (report.passed or not certificate.holds(folder))
    return _certified(report, checkpoint, ledger) if certify else report


# The steps of a check that are not legs: the truth, comparing the files, and the verdict with its causes.
BESIDE_LEGS = 3


def _counter(progress: Progress, total: int) -> Callable[[str], None]:
    """Return a function that takes the name of a step, counts it, and calls ``progress``."""
    done = count()
    return lambda step: progress(step, next(done), total)


def _certified(report: Report, checkpoint: Checkpoint, ledger: Ledger) -> Report:
    """Write the certificate; returns the report, with a note if the folder cannot be written to."""
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
