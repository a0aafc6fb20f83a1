"""Find out where the error of a model folder begins, and its cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from converter.parity.baseline import Baseline
from converter.parity.diagnosis.diagnose import FLOAT32_LIMIT, FLOAT64_LIMIT, Diagnosis, Subject, diagnose
from converter.parity.diagnosis.operations import Operations
from converter.parity.diagnosis.taps import (
    TAP_FLOAT64_LIMIT,
    Localisation,
    Taps,
    graph_taps,
    huggingface_taps,
    localise,
    tap_names,
    truth_taps,
)
from converter.parity.legs.cases import Case
from converter.parity.legs.huggingface import HuggingFace
from converter.parity.legs.identity import LegKind, Runner
from converter.parity.legs.shipped import as_shipped
from converter.parity.verdict.judge import Judge, MeasuredLeg
from converter.weights.precisions import FULL, Precision


@dataclass
class TapCache:
    """The taps of the source by case: the truth's, and Hugging Face's in float32. They are computed on first use."""

    baseline: Baseline
    known: dict[str, tuple[Taps, Taps]] = field(default_factory=dict)

    def __getitem__(self, case: Case) -> tuple[Taps, Taps]:
        if case.name not in self.known:
            ledger = self.baseline.ledger
            huggingface = HuggingFace(self.baseline.checkpoint, ledger)
            truth = truth_taps(ledger, case)
            self.known[case.name] = truth, huggingface_taps(huggingface, case, torch.float32)
        return self.known[case.name]


def to_explain(graphs: Mapping[str, Path], guilty: Sequence[MeasuredLeg], layers: bool) -> str:
    """Return the precision whose graph is diagnosed, the full one if it can be blamed; empty if none is."""
    blamed = [leg.precision for leg in guilty if leg.runner is Runner.WIDENED]
    if FULL in graphs and (layers or (guilty and not blamed) or FULL in blamed):
        return FULL
    return blamed[0] if blamed else ""


def explain(
    baseline: Baseline,
    graph_file: Path,
    precision: Precision,
    guilty: list[MeasuredLeg],
    judge: Judge,
    cache: TapCache,
) -> tuple[Localisation, Diagnosis | None]:
    """Return where the error begins and, on a mismatch, its cause. Of a lossy graph, only the mathematics."""
    config, case = baseline.ledger.config, _telling_case(baseline, guilty, judge)
    ledger = as_shipped(baseline.ledger, graph_file, precision)
    exact = graph_taps(graph_file, config, case, float64=True)
    if precision.name == FULL:
        truth, huggingface = cache[case]
        rounded = graph_taps(graph_file, config, case, float64=False)
    else:
        truth = huggingface = truth_taps(ledger, case)
        rounded = exact
    located = localise(tap_names(config), case, truth, rounded, exact, huggingface)
    if not guilty:
        return located, None
    means = any(not tap.onnx_float64 <= TAP_FLOAT64_LIMIT for tap in located.taps)
    suspect, limit = (exact, FLOAT64_LIMIT) if means else (rounded, FLOAT32_LIMIT)
    subject = Subject.GRAPH
    if any(leg.runner is Runner.HUGGING_FACE and leg.kind is LegKind.SEMANTICS for leg in guilty):
        source = HuggingFace(baseline.checkpoint, baseline.ledger)
        other = huggingface_taps(source, case, torch.float64)
        if not means:
            subject, suspect, limit = Subject.HUGGINGFACE, other, FLOAT64_LIMIT
        elif _agree(other, exact, tap_names(config)[-1], case, baseline.limits.graph_float64 * baseline.scale):
            subject = Subject.REFERENCE
    found = diagnose(Operations(ledger, case, suspect), limit, located, subject)
    return located, found if precision.name == FULL else replace(found, precision=precision.name)


def _agree(a: Taps, b: Taps, tap: str, case: Case, limit: float) -> bool:
    """Tell whether two models give the same values at a tap, padding left out."""
    if tap not in a or tap not in b or a[tap].shape != b[tap].shape:
        return False
    real = case.real_of(a[tap].shape[1])
    return bool(np.abs(a[tap][real] - b[tap][real]).max() <= limit)


def _telling_case(baseline: Baseline, guilty: list[MeasuredLeg], judge: Judge) -> Case:
    """Return the first case in which a leg that failed is beyond its limit.

    For a head that pools, batches come before single rows, because almost any hypothesis explains a single row.
    """
    for case in sorted(baseline.cases, key=lambda case: case.last is not None and len(case.last) == 1):
        for leg in guilty:
            distance = leg.distances.get(case.name)
            if distance is None:
                continue
            allowed = leg.limit * judge.scale or judge.limits.maximum * judge.floor({case.name: distance})[1]
            if not distance.total_maximum <= allowed:
                return case
    return baseline.cases[0]
