"""The source's side of a check: the truth, the noise floor, and what Hugging Face and the reference make of it.

None of it depends on the model folder; one baseline serves any number of folders.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from converter import tokenizer
from converter.checkpoint.source import Checkpoint
from converter.errors import CheckError
from converter.parity.legs import leg as legs
from converter.parity.legs.cases import Case, Level, grid, held_out_tokens, tokens_of
from converter.parity.legs.huggingface import HuggingFace
from converter.parity.legs.leg import Leg
from converter.parity.legs.memory import release_memory
from converter.parity.legs.truth import truths
from converter.parity.verdict import metrics
from converter.parity.verdict.judge import Judge, Kind, Measured
from converter.parity.verdict.limits import Limits
from converter.weights.ledger import Ledger, Role


@dataclass(frozen=True)
class Row:
    """A leg to run: its name, what it is there for, and how it is opened.

    Attributes:
        limit, budget: see ``Measured``.
        cases: which cases it is run on.
    """

    name: str
    kind: Kind
    open: Callable[[], Leg]
    limit: float = 0.0
    budget: str = ""
    cases: Callable[[Case], bool] = lambda case: True


def short(case: Case) -> bool:
    """All but the longest case."""
    return not case.long


def prefill(case: Case) -> bool:
    """One row at once: enough to see what the number of threads does."""
    return case.name in ("prefill", "one text")


@dataclass
class Baseline:
    """A source, measured.

    Attributes:
        checkpoint, ledger: the source.
        cases, text: what is fed, and what it is.
        limits, level: as the check was asked for.
        truths: the float64 logits of each case.
        scale: of the logits.
        legs: the source's legs, measured.
        notes: what qualifies them.
    """

    checkpoint: Checkpoint
    ledger: Ledger
    cases: list[Case]
    text: str
    limits: Limits
    level: Level
    truths: dict[str, np.ndarray]
    scale: float
    legs: list[Measured] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    @property
    def judge(self) -> Judge:
        """Holds legs against the noise that was measured."""
        return Judge.of(self.scale, self.legs, self.limits)

    def measure(self, row: Row) -> Measured:
        """Run a leg."""
        release_memory()  # a model and its logits go before the next come in
        began = time.monotonic()
        leg = row.open()
        cases = [case for case in self.cases if row.cases(case)]
        distances = {
            case.name: metrics.compare(self.truths[case.name], leg(case), case.real, case.following) for case in cases
        }
        scored = tuple(case.name for case in cases if case.scored)
        return Measured(row.name, row.kind, distances, scored, time.monotonic() - began, row.limit, row.budget)


def measure_source(
    checkpoint: Checkpoint, ledger: Ledger, text: Path | None, limits: Limits, level: Level, step: Callable[[str], None]
) -> Baseline:
    """The truth and the source's own legs.

    Raises:
        CheckError: the text cannot be used, or the source's logits are not finite.
    """
    config = ledger.config
    read = tokenizer.of(checkpoint.companions, checkpoint.tokenizer)
    tokens, what = held_out_tokens(read, config) if text is None else tokens_of(text, read, config)
    cases = grid(config, tokens, level)
    step("the truth: reference in float64")
    true = truths(config, ledger.weights, cases)
    scale = metrics.scale(true, {case.name: case.real for case in cases}, config.head)
    if not math.isfinite(scale):
        raise CheckError(
            f"{checkpoint.folder} gives logits that are NaN or infinite, even in float64; its weights are damaged"
        )
    baseline = Baseline(checkpoint, ledger, cases, what, limits, level, true, scale)
    huggingface = HuggingFace(checkpoint, ledger)
    for row in source_rows(huggingface, ledger, limits, level):
        step(row.name)
        baseline.legs.append(baseline.measure(row))
    aside = (f"{entry.tensor.name} was left aside" for entry in ledger.entries if entry.role is Role.IGNORED)
    baseline.notes = (*ledger.warnings, *checkpoint.notes, *aside, *([huggingface.note] if huggingface.note else []))
    release_memory()
    return baseline


def source_rows(huggingface: HuggingFace, ledger: Ledger, limits: Limits, level: Level) -> Sequence[Row]:
    """The source's legs, in an order in which Hugging Face's model is only ever widened."""

    def hf(name: str, dtype: torch.dtype, attention: str, kind: Kind, **options: object) -> Row:
        return Row(name, kind, lambda: huggingface.open(dtype, attention), **options)  # type: ignore[arg-type]

    def one_thread() -> Leg:
        return legs.single_threaded(huggingface.open(torch.float32, "eager"))

    def reference() -> Leg:
        huggingface.close()
        return legs.reference(ledger.config, ledger.weights, torch.float32)

    exact, full = limits.huggingface_float64, level is Level.FULL
    asked = {"cases": (lambda case: True) if full else short}
    rows = [
        hf("Hugging Face float32 eager", torch.float32, "eager", Kind.NOISE, **asked),
        Row("Hugging Face float32 eager, 1 thread", Kind.NOISE, one_thread, cases=prefill),
        hf("Hugging Face float32 SDPA", torch.float32, "sdpa", Kind.NOISE),
        hf("Hugging Face float64 eager", torch.float64, "eager", Kind.SEMANTICS, limit=exact, **asked),
    ]
    if full:
        rows.append(hf("Hugging Face float64 SDPA", torch.float64, "sdpa", Kind.SEMANTICS, limit=exact))
        for dtype, attention in ((d, a) for d in ("float16", "bfloat16") for a in ("eager", "sdpa")):
            name = f"Hugging Face {dtype} {'SDPA' if attention == 'sdpa' else attention}"
            rows.append(hf(name, getattr(torch, dtype), attention, Kind.HALF, budget=dtype))
    rows.append(Row("reference float32", Kind.NUMERICS, reference, **asked))  # type: ignore[arg-type]
    return rows


def source_steps(level: Level) -> int:
    """How many steps ``measure_source`` tells of."""
    return 11 if level is Level.FULL else 6
