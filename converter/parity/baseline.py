"""Measure the source: its float64 truth, the noise floor, and the legs of Hugging Face and of the reference.

Nothing here depends on the model folder. One baseline serves any number of folders.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Protocol

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
from converter.parity.legs.steps import Steps
from converter.parity.legs.truth import truths
from converter.parity.verdict import metrics
from converter.parity.verdict.judge import Judge, MeasuredLeg
from converter.parity.verdict.limits import Limits
from converter.weights.ledger import Ledger, Role


@dataclass(frozen=True)
class LegSpec(Identity):
    """A leg that has not run yet.

    Attributes:
        open: opens the leg, which then computes logits.
        limit: see ``MeasuredLeg``.
        cases: tells whether the leg runs a case.
        truths: returns the logits to compare with, by case; None means those of the source's own weights.
        note: called after the run; returns a sentence that qualifies the verdict, or None.
    """

    open: Callable[[], Leg]
    limit: float = 0.0
    cases: Callable[[Case], bool] = lambda case: True
    truths: Callable[[list[Case]], Mapping[str, np.ndarray]] | None = None
    note: Callable[[], str | None] = lambda: None


def short(case: Case) -> bool:
    """Tell whether a case is neither long nor there for its shape."""
    return not case.long and not case.shape


def usual(case: Case) -> bool:
    """Tell whether a case is a normal one, not there for its shape."""
    return not case.shape


def with_noise(case: Case) -> bool:
    """Tell whether noise is measured on a case: it has its own tokens, and is no part of the vocabulary."""
    return case.part_of is None and (usual(case) or not case.long)


def sample(case: Case) -> bool:
    """Tell whether a case is a row that is fed at once, or a padded batch: enough to tell two models apart."""
    return short(case) and (len(case.chunks) == 1 or not case.attention_mask.all())


def prefill(case: Case) -> bool:
    """Tell whether a case feeds one row at once. That is enough to see the effect of the number of threads."""
    return case.name in ("prefill", "one text")


@dataclass
class Baseline:
    """The measurements of a source.

    Attributes:
        checkpoint, ledger: the source.
        cases, text: the token ids to feed, and a description of their text.
        limits, level: the options of the check.
        truths: the float64 logits of each case.
        scale: the scale of the logits; see ``metrics.scale``.
        by_column: cases with positions that count padding, whose truths other exporters' files may need.
        legs: the legs of the source, measured.
        notes: sentences that qualify the verdict.
    """

    checkpoint: Checkpoint
    ledger: Ledger
    cases: list[Case]
    text: str
    limits: Limits
    level: Level
    truths: dict[str, np.ndarray]
    scale: float
    by_column: tuple[Case, ...] = ()
    legs: list[MeasuredLeg] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    @property
    def judge(self) -> Judge:
        """Return the judge that compares legs with the measured noise."""
        return Judge.from_legs(self.scale, self.legs, self.limits, self.cases)

    def measure(self, row: LegSpec, step: Steps | None = None) -> MeasuredLeg:
        """Run a leg; returns its distances from the truth.

        Args:
            step: told of each case.
        """
        release_memory(self.ledger.parameters)  # free the last model and its logits first
        began = time.monotonic()
        leg = row.open()
        cases = [case for case in self.cases if row.cases(case)]
        true = row.truths(cases) if row.truths is not None else self.truths
        distances = {}
        for done, case in enumerate(cases, 1):
            distances[case.name] = metrics.compare(true[case.name], leg(case), case.real, case.following)
            if step is not None:
                step.within(done, len(cases))
        scored = tuple(case.name for case in cases if case.scored)
        seconds = time.monotonic() - began
        return MeasuredLeg(**row.identity(), distances=distances, scored=scored, seconds=seconds, limit=row.limit)


class MoreCases(Protocol):
    """The cases that exports of other programs need besides."""

    def more(self, tokens: np.ndarray, level: Level) -> list[Case]:
        """Return more cases, of token ids of the text."""

    def shifted(self, cases: Sequence[Case]) -> list[Case]:
        """Return those of ``cases`` that have other positions too, with these: see ``Baseline.by_column``."""


def measure_source(
    checkpoint: Checkpoint,
    ledger: Ledger,
    text: Path | None,
    limits: Limits,
    level: Level,
    step: Steps,
    rows: Sequence[LegSpec] | None = None,
    wanted: MoreCases | None = None,
) -> Baseline:
    """Compute the truth, and measure the source's own legs against it; returns the baseline.

    Args:
        step: called with the name of what is computed next: the truth, then each of the rows.
        rows: the result of ``source_rows``; made here if None.
        wanted: more cases that exports of other programs need.

    Raises:
        CheckError: the text cannot be used, or the source's logits are not finite.
    """
    config = ledger.config
    if rows is None:
        rows = source_rows(HuggingFace(checkpoint, ledger), ledger, limits, level)
    read = tokenizer.from_source(checkpoint.companions, checkpoint.tokenizer)
    tokens, what = held_out_tokens(read, config) if text is None else tokens_of(text, read, config)
    special = special_ids(read, checkpoint.config_values)
    more = wanted.more(tokens, level) if wanted is not None else []
    cases = [*grid(config, tokens, level), *more, *shapes(config, tokens, special, level)]
    shifted = tuple(wanted.shifted(cases)) if wanted is not None else ()
    step("the truth: reference in float64")
    true = truths(config, ledger.weights, [*cases, *shifted], step)
    measured = {case.name: case.real for case in cases if usual(case)}
    scale = metrics.scale({name: true[name] for name in measured}, measured, config.head)
    if not math.isfinite(scale):
        raise CheckError(
            f"{checkpoint.folder} gives logits that are NaN or infinite, even in float64; its weights are damaged"
        )
    baseline = Baseline(checkpoint, ledger, cases, what, limits, level, true, scale, shifted)
    for row in rows:
        step(row.name)
        baseline.legs.append(baseline.measure(row, step))
    aside = (f"{entry.tensor.name} was left aside" for entry in ledger.entries if entry.role is Role.IGNORED)
    baseline.notes = (*ledger.warnings, *checkpoint.notes, *aside, *(note for row in rows if (note := row.note())))
    release_memory(ledger.parameters)
    return baseline


def source_rows(huggingface: HuggingFace, ledger: Ledger, limits: Limits, level: Level) -> Sequence[LegSpec]:
    """Return the legs of the source.

    Hugging Face's 16-bit legs come after its others, because its model must be loaded again after a 16-bit type.
    """

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
        replace(eager, note=lambda: huggingface.note),  # once for all of its legs
        replace(eager, name=f"{eager.name}, 1 thread", open=one_thread, cases=prefill),
        hf("float32", "sdpa", LegKind.NOISE, cases=with_noise),
        hf("float64", "eager", LegKind.SEMANTICS, limit=exact, cases=usual if full else sample),
    ]
    if full:
        rows.append(hf("float64", "sdpa", LegKind.SEMANTICS, limit=exact, cases=usual))
        for dtype, attention in product(("float16", "bfloat16"), ("eager", "sdpa")):
            rows.append(hf(dtype, attention, LegKind.HALF, budget=dtype, cases=usual))
    rows.append(LegSpec("reference float32", LegKind.NUMERICS, reference, runner=Runner.REFERENCE, **asked))
    return rows


def noise_floor(baseline: Baseline) -> tuple[float, float]:
    """Return RMS and maximum of the noise over the short cases, as shares of the logits' scale."""
    distances = baseline.legs[0].distances
    rms, maximum = baseline.judge.floor({case.name: distances[case.name] for case in baseline.cases if short(case)})
    return rms / baseline.scale, maximum / baseline.scale
