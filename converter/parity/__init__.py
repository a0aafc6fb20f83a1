"""Proves that a model folder is its source: ``check``. Needs torch and transformers; imports them when called."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from converter import certificate, tokenizer
from converter.checkpoint import Checkpoint, open_checkpoint
from converter.errors import CheckError, OutputError
from converter.staging import MANIFEST
from converter.weights import Ledger, Role, account

if TYPE_CHECKING:
    import numpy as np

    from converter.parity.cases import Case
    from converter.parity.legs import Leg
    from converter.parity.metrics import Error
    from converter.parity.verdict import Judge, Kind, LegReport, Report

NEEDED = ("torch", "transformers")

Progress = Callable[[str], None]  # told what is about to be computed


def available() -> bool:
    """Whether ``check`` can run: whether the extra ``check`` is installed."""
    return all(importlib.util.find_spec(name) for name in NEEDED)


def check(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    ignore: Iterable[str] = (),
    provider: str = "cpu",
    text: str | os.PathLike[str] | None = None,
    certify: bool = True,
    progress: Progress = lambda step: None,
) -> Report:
    """Judge whether the model folder ``out`` computes what ``source`` computes.

    Weights are compared bit for bit, mathematics in float64 (Hugging Face, the from-scratch reference and the shipped
    graph), and float32 by how far Hugging Face's own float32 is from that truth.

    Args:
        source: as for ``convert``.
        ignore: the globs that ``convert`` was given.
        provider: of ONNX Runtime, for the shipped graph.
        text: a file whose text is fed, plain or JSONL; by default held-out text that ships with gpt2onnx.
        certify: write the verdict and the files' hashes into the folder's manifest, for ``verify``.
        progress: called before each step with its name.

    Raises:
        CheckError: torch or transformers is missing, or ``out`` is a model of other dimensions.
        GPT2Error: source or folder cannot be opened, or its manifest cannot be read.
    """
    if not available():
        raise CheckError("check needs torch and transformers; install them with: pip install 'gpt2onnx[check]'")
    from converter.parity.beside import compare_config, compare_tokenizer
    from converter.parity.exactness import compare_initializers
    from converter.parity.verdict import Report
    from converter.runtime.session import OPEN_ERRORS, model_file, provider_name

    checkpoint = open_checkpoint(source)
    ledger = account(checkpoint, ignore)
    folder = Path(out)
    graph_file = model_file(folder)
    beside_faults = compare_config(folder, checkpoint, ledger) + compare_tokenizer(folder, checkpoint.folder)
    ort_provider = provider_name(provider)
    text_file = None if text is None else Path(text)
    progress("every initializer, bit for bit")
    exactness = compare_initializers(graph_file, ledger)
    try:
        compared = _compare_legs(checkpoint.folder, ledger, folder, provider, text_file, progress)
    except OPEN_ERRORS as error:
        raise CheckError(f"{graph_file} cannot be run by ONNX Runtime ({error})") from error
    finally:
        gc.unfreeze()
    judge = compared.judge
    report = Report(
        source=os.fspath(source),
        out=os.fspath(out),
        text=compared.text,
        provider=ort_provider,
        scale=judge.scale,
        floor_rms=judge.floor_rms / judge.scale,
        floor_maximum=judge.floor_maximum / judge.scale,
        initializers=exactness.compared,
        exactness_faults=exactness.faults,
        beside_faults=tuple(beside_faults),
        legs=tuple(compared.legs),
        notes=_notes(ledger, compared),
    )
    return _certified(report, checkpoint, ledger) if certify and (folder / MANIFEST).is_file() else report


def _certified(report: Report, checkpoint: Checkpoint, ledger: Ledger) -> Report:
    """The report, once its certificate is written; with a note if the folder cannot be written to."""
    read = {weight.file for weight in ledger.weights.values()} | {checkpoint.folder / "config.json"}
    legs = [{"name": leg.name, "rms": leg.rms, "maximum": leg.maximum, "fault": leg.fault} for leg in report.legs]
    try:
        certificate.write(Path(report.out), read, report.passed, report.verdict, legs)
    except OutputError as error:
        return replace(report, notes=(*report.notes, f"no certificate: {error}"))
    return report


def _notes(ledger: Ledger, compared: Comparison) -> tuple[str, ...]:
    """What qualifies the verdict."""
    aside = (f"{entry.tensor.name} was left aside" for entry in ledger.entries if entry.role is Role.IGNORED)
    return (*ledger.warnings, *aside, *([compared.note] if compared.note else []))


class Comparison(NamedTuple):
    """What the legs gave."""

    legs: list[LegReport]
    judge: Judge
    text: str  # what the token ids are
    note: str | None  # what qualifies the Hugging Face legs


def _compare_legs(
    source: Path, ledger: Ledger, out: Path, provider: str, text_file: Path | None, progress: Progress
) -> Comparison:
    """Run every leg over the grid, one in memory at a time."""
    import torch

    from converter.parity import legs, metrics
    from converter.parity.cases import grid, held_out_tokens, tokens_of
    from converter.parity.verdict import GRAPH_FLOAT64_LIMIT, HUGGINGFACE_FLOAT64_LIMIT, Judge, Kind
    from converter.parity.widen import widened_session
    from converter.runtime.session import load, model_file

    gc.freeze()  # what the imports left is not looked at again whenever a leg's memory is released
    config, weights = ledger.config, ledger.weights
    read = tokenizer.load(out)
    tokens, text = held_out_tokens(read, config) if text_file is None else tokens_of(text_file, read, config)
    cases = grid(config, tokens)

    progress("the truth: reference in float64")
    truths = _truths(legs.alone(legs.reference(config, weights, torch.float64)), cases)
    scale = metrics.scale(truths, {case.name: case.real for case in cases})

    if not math.isfinite(scale):
        raise CheckError(f"{source} gives logits that are NaN or infinite, even in float64; its weights are damaged")
    huggingface = legs.HuggingFace(source, ledger)

    table: tuple[tuple[str, Kind, float, Callable[[], Leg]], ...] = (
        ("Hugging Face float64 eager", Kind.SEMANTICS, HUGGINGFACE_FLOAT64_LIMIT,
         lambda: huggingface.open(torch.float64, "eager")),
        ("ONNX graph in float64", Kind.SEMANTICS, GRAPH_FLOAT64_LIMIT,
         lambda: legs.widened(widened_session(model_file(out)), config)),
        ("Hugging Face float32 eager", Kind.NOISE, 0.0, lambda: huggingface.open(torch.float32, "eager")),
        ("Hugging Face float32 SDPA", Kind.NOISE, 0.0, lambda: huggingface.open(torch.float32, "sdpa")),
        ("reference float32", Kind.NUMERICS, 0.0, lambda: legs.reference(config, weights, torch.float32)),
        ("ONNX Runtime float32", Kind.NUMERICS, 0.0, lambda: legs.shipped(load(out, provider))),
    )  # fmt: skip
    measured: list[tuple[str, Kind, float, dict[str, Error], float]] = []
    for name, kind, limit, open_leg in table:
        release_memory()  # a model and its logits go before the next come in
        progress(name)
        began = time.monotonic()
        errors = _measure(open_leg(), cases, truths)
        measured.append((name, kind, limit, errors, time.monotonic() - began))
    noise = [sum(errors.values(), metrics.Error()) for _, kind, _, errors, _ in measured if kind is Kind.NOISE]
    judge = Judge.of(scale, noise)
    reports = [judge.report(name, kind, errors, limit, took) for name, kind, limit, errors, took in measured]
    return Comparison(reports, judge, text, huggingface.note)


def release_memory() -> None:
    """Give back to the system what a leg has freed; glibc keeps blocks below 32 MB, a whole model's worth of them."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _truths(leg: Leg, cases: list[Case]) -> dict[str, np.ndarray]:
    """The truth of each case; cases that feed the same tokens in other chunks share one."""
    by_tokens: dict[int, np.ndarray] = {}
    for case in cases:
        if id(case.input_ids) not in by_tokens:
            by_tokens[id(case.input_ids)] = leg(case)
    return {case.name: by_tokens[id(case.input_ids)] for case in cases}


def _measure(leg: Leg, cases: list[Case], truths: dict[str, np.ndarray]) -> dict[str, Error]:
    from converter.parity.metrics import compare

    return {case.name: compare(truths[case.name], leg(case), case.real) for case in cases}
