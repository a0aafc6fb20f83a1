"""The source's side of a check: the truth, the noise floor, and what Hugging Face and the reference make of it.

None of it depends on the model folder; one baseline serves any number of folders.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from converter import tokenizer
from converter.checkpoint.source import Checkpoint
from converter.errors import CheckError
from converter.parity.legs import leg as legs
from converter.parity.legs.cases import Case, Level, grid, held_out_tokens, shapes, special_ids, tokens_of
from converter.parity.legs.huggingface import HuggingFace
from converter.parity.legs.identity import Identity, LegKind, Runner
from converter.parity.legs.leg import Leg
from converter.parity.legs.memory import release_memory
from converter.parity.legs.truth import truths
from converter.parity.verdict import metrics
from converter.parity.verdict.judge import Judge, MeasuredLeg
from converter.parity.verdict.limits import Limits
from converter.weights.ledger import Ledger, Role


@dataclass(frozen=True)
class LegSpec(Identity):
    """A leg that is to be run.

    Attributes:
        open: opens what computes it.
        limit: see ``MeasuredLeg``.
        cases: which cases it is run on.
        truths: the logits that it is held against, by case, if they are not those of the source's own weights.
        note: after the run, a sentence that qualifies the verdict; None if there is nothing to say.
    """

    open: Callable[[], Leg]
    limit: float = 0.0
    cases: Callable[[Case], bool] = lambda case: True
    truths: Callable[[list[Case]], Mapping[str, np.ndarray]] | None = None
    note: Callable[[], str | None] = lambda: None


def short(case: Case) -> bool:
    """All but the longest case."""
    return not case.long and not case.shape


def usual(case: Case) -> bool:
    """All but those that are there for their shape."""
    return not case.shape


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
    legs: list[MeasuredLeg] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    @property
    def judge(self) -> Judge:
        """Holds legs against the noise that was measured."""
        return Judge.from_legs(self.scale, self.legs, self.limits)

    def measure(self, row: LegSpec) -> MeasuredLeg:
        """Run a leg."""
        release_memory(self.ledger.parameters)  # a model and its logits go before the next come in
        began = time.monotonic()
        leg = row.open()
        cases = [case for case in self.cases if row.cases(case)]
        true = row.truths(cases) if row.truths is not None else self.truths
        distances = {
            case.name: metrics.compare(true[case.name], leg(case), case.real, case.following) for case in cases
        }
        scored = tuple(case.name for case in cases if case.scored)
        seconds = time.monotonic() - began
        return MeasuredLeg(**row.identity(), distances=distances, scored=scored, seconds=seconds, limit=row.limit)


def measure_source(
    checkpoint: Checkpoint,
    ledger: Ledger,
    text: Path | None,
    limits: Limits,
    level: Level,
    step: Callable[[str], None],
    huggingface: HuggingFace | None = None,
) -> Baseline:
    """Compute the truth, and measure the source's own legs against it.

    Args:
        step: told what is about to be computed: the truth, then each of ``source_rows``.
        huggingface: the source as transformers opens it, if it was made before.

    Raises:
        CheckError: the text cannot be used, or the source's logits are not finite.
    """
    config, huggingface = ledger.config, huggingface or HuggingFace(checkpoint, ledger)
    read = tokenizer.from_source(checkpoint.companions, checkpoint.tokenizer)
    tokens, what = held_out_tokens(read, config) if text is None else tokens_of(text, read, config)
    cases = [*grid(config, tokens, level), *shapes(config, tokens, special_ids(read, checkpoint.config_values), level)]
    step("the truth: reference in float64")
    true = truths(config, ledger.weights, cases)
    measured = {case.name: case.real for case in cases if usual(case)}
    scale = metrics.scale({name: true[name] for name in measured}, measured, config.head)
    if not math.isfinite(scale):
        raise CheckError(
            f"{checkpoint.folder} gives logits that are NaN or infinite, even in float64; its weights are damaged"
        )
    baseline = Baseline(checkpoint, ledger, cases, what, limits, level, true, scale)
    for row in source_rows(huggingface, ledger, limits, level):
        step(row.name)
        baseline.legs.append(baseline.measure(row))
    aside = (f"{entry.tensor.name} was left aside" for entry in ledger.entries if entry.role is Role.IGNORED)
    baseline.notes = (*ledger.warnings, *checkpoint.notes, *aside, *([huggingface.note] if huggingface.note else []))
    release_memory(ledger.parameters)
    return baseline


def source_rows(huggingface: HuggingFace, ledger: Ledger, limits: Limits, level: Level) -> Sequence[LegSpec]:
    """The source's legs, in an order in which Hugging Face's model is only ever widened."""

    def hf(dtype: str, attention: str, kind: LegKind, **options: Any) -> LegSpec:
        name = f"Hugging Face {dtype} {'SDPA' if attention == 'sdpa' else attention}"
        opened = partial(huggingface.open, getattr(torch, dtype), attention)
        return LegSpec(name, kind, opened, runner=Runner.HUGGING_FACE, precision=dtype, **options)

    def one_thread() -> Leg:
        return legs.single_threaded(huggingface.open(torch.float32, "eager"))

    def reference() -> Leg:
        huggingface.close()
        return legs.reference(ledger.config, ledger.weights, torch.float32)

    exact, full = limits.huggingface_float64, level is Level.FULL
    asked: dict[str, Any] = {"cases": usual if full else short}
    eager = hf("float32", "eager", LegKind.NOISE, **asked)
    rows = [
        eager,
        replace(eager, name=f"{eager.name}, 1 thread", open=one_thread, cases=prefill),
        hf("float32", "sdpa", LegKind.NOISE, cases=usual),
        hf("float64", "eager", LegKind.SEMANTICS, limit=exact, **asked),
    ]
    if full:
        rows.append(hf("float64", "sdpa", LegKind.SEMANTICS, limit=exact, cases=usual))
        for dtype, attention in product(("float16", "bfloat16"), ("eager", "sdpa")):
            rows.append(hf(dtype, attention, LegKind.HALF, budget=dtype, cases=usual))
    rows.append(LegSpec("reference float32", LegKind.NUMERICS, reference, runner=Runner.REFERENCE, **asked))
    return rows
