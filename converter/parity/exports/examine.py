"""Compare an export of another program with the baseline of a source; if they differ, find out where and why."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx

from converter.checkpoint.tensor import LazyTensor, to_float32
from converter.errors import ModelFolderError
from converter.parity.baseline import Baseline
from converter.parity.diagnosis.diagnose import Diagnosis
from converter.parity.diagnosis.taps import Localisation
from converter.parity.exports.align import Located, locate
from converter.parity.exports.branches import never_taken, read_model
from converter.parity.exports.cases import by_column, express
from converter.parity.exports.legs import Opened, Ran, measure, open_as_is, open_in_float64, said
from converter.parity.exports.quantized import bits_of
from converter.parity.exports.weights import TYPES, Weights, find_weights
from converter.parity.legs.cases import Case
from converter.parity.legs.identity import Identity, LegKind, Runner
from converter.parity.legs.shipped import InMemory
from converter.parity.legs.truth import truths
from converter.parity.verdict.judge import Judge, MeasuredLeg
from converter.runtime.exports.interface import Interface
from converter.runtime.ort import OPEN_ERRORS
from converter.weights.ledger import Ledger
from converter.weights.precisions import FULL, PRECISIONS

STEPS = ("the weights of {}, by content", "{} in ONNX Runtime", "{} in float64")

# The precision of a file whose weights were rounded to a type, as far as there is one.
PRECISION_OF = {"float16": "fp16", "bfloat16": "bfloat16"}


@dataclass(frozen=True)
class ExportReport:
    """The verdict on an export.

    Attributes:
        name: the file or folder.
        files: its ONNX files.
        interface: what each file takes, in a few words.
        precision: of its weights: ``fp32``, ``fp16``, ``bfloat16``, ``int8`` or ``int4``.
        weights: what was found of the source's weights; None if only the logits decide.
        legs: its legs, measured.
        faults: every reason against a match, but for those of the legs.
        notes: sentences that say what was not compared, and why.
        localisation, diagnosis: where it goes wrong, and why; None if it does not, or if that cannot be said.
    """

    name: str
    files: tuple[str, ...]
    interface: tuple[str, ...]
    precision: str
    weights: Weights | None
    legs: tuple[MeasuredLeg, ...]
    faults: tuple[str, ...]
    notes: tuple[str, ...]
    localisation: Localisation | None = None
    diagnosis: Diagnosis | None = None


@dataclass
class _Examined:
    """What is known so far."""

    legs: list[MeasuredLeg] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def examine_export(
    baseline: Baseline,
    name: str,
    interfaces: Sequence[Interface],
    step: Callable[[str], None],
    weights: bool = True,
    also: bool = False,
) -> ExportReport:
    """Compare an export with a source; returns the verdict.

    Args:
        name: what the export is called in the report.
        interfaces: of its files.
        step: called with the name of each of ``STEPS``.
        weights: whether its weights are looked for.
        also: whether it is compared beside a folder.

    Raises:
        ModelFolderError: its weights are missing.
    """
    ledger, known = baseline.ledger, _Examined()
    files = [each.file for each in interfaces]
    step(STEPS[0].format(name))
    found = find_weights(files, ledger)
    precision = _precision(files, found)
    step(STEPS[1].format(name))
    ran = _run(baseline, _identity(name, precision, also), interfaces, known)
    step(STEPS[2].format(name))
    numbers = with_rounding(ledger, found)
    widened = _run_in_float64(baseline, name, interfaces, numbers, known, also) if bits_of_all(files) is None else None
    if widened is None and bits_of_all(files) is not None:
        known.notes.append(f"{name}: quantized operators compute in integers, so that its mathematics is not compared")
    known.notes += _remarks(name, interfaces, ran)
    known.notes += [f"{name}: {note}" for note in found.notes] if weights else []
    if weights and found.missing:
        known.notes.append(f"{name}: {found.sentence}")
    located = _located(baseline, interfaces, numbers, known.legs)
    known.faults += [f"{name}: {fault}" for fault in found.faults] if weights else []
    return ExportReport(
        name,
        tuple(str(file) for file in files),
        tuple(each.sentence for each in interfaces),
        precision,
        found if weights else None,
        tuple(known.legs),
        tuple(known.faults),
        tuple(known.notes),
        located.localisation if located else None,
        located.diagnosis if located else None,
    )


def bits_of_all(files: Sequence[Path]) -> int | None:
    """Return the fewest bits of the quantized weights of some files; None if they have none."""
    return min((bits for bits in map(bits_of, files) if bits is not None), default=None)


def _precision(files: Sequence[Path], weights: Weights) -> str:
    """Return the precision of an export's weights."""
    bits = bits_of_all(files)
    if bits is not None:
        return "int4" if bits <= 4 else "int8"
    kept = [PRECISION_OF[kind] for kind in ("bfloat16", "float16") if kind in weights.rounding.values()]
    return kept[0] if kept else FULL


def _identity(name: str, precision: str, also: bool) -> Identity:
    """Return the identity of the leg that runs an export as it is."""
    if precision == FULL:
        kind = LegKind.OTHER if also else LegKind.NUMERICS
        return Identity(name, kind, graph=name, precision=FULL, export=name)
    budget = PRECISIONS[precision].budget_name if precision in PRECISIONS else precision
    return Identity(name, LegKind.LOSSY, graph=name, precision=precision, budget=budget, export=name)


def _run(baseline: Baseline, identity: Identity, interfaces: Sequence[Interface], known: _Examined) -> Ran | None:
    """Run an export as it is; None if ONNX Runtime refuses it."""
    try:
        ran = measure(baseline, lambda: open_as_is(interfaces, baseline.ledger.config), interfaces, identity)
    except OPEN_ERRORS as error:
        known.faults.append(f"{identity.name} cannot be run by ONNX Runtime ({said(error)})")
        return None
    for case, why in list(ran.failed.items())[:1]:
        more = f", and {len(ran.failed) - 1} more cases," if len(ran.failed) > 1 else ""
        known.faults.append(f"{identity.name} cannot be run on {case}{more} by ONNX Runtime ({why})")
    if ran.leg.distances:
        known.legs.append(ran.leg)
    return ran


def _run_in_float64(
    baseline: Baseline,
    name: str,
    interfaces: Sequence[Interface],
    numbers: Ledger,
    known: _Examined,
    also: bool,
) -> Ran | None:
    """Run an export in float64, against the truth of its own numbers; None if its operators do not allow it."""
    config, own = baseline.ledger.config, numbers is not baseline.ledger
    identity = Identity(f"{name} in float64", LegKind.SEMANTICS, runner=Runner.WIDENED, graph=name, export=name)

    def truth(cases: list[Case]) -> Mapping[str, np.ndarray]:
        return truths(config, numbers.weights, cases)

    def opened() -> Opened:
        return open_in_float64(interfaces, config)

    limit, given = baseline.limits.graph_float64, truth if own else None
    try:
        ran = measure(baseline, opened, interfaces, identity, limit, given, short=True)
    except OPEN_ERRORS as error:
        known.notes.append(f"{name}: its mathematics is not compared in float64: {_lacking(error)}")
        return None
    if ran.leg.distances:
        known.legs.append(ran.leg)
    return ran


def _lacking(error: Exception) -> str:
    """Return which operator has no float64, if ONNX Runtime says so; else what it says."""
    operator = re.search(r"operator \((\w+)\)|implementation for (\w+)", str(error))
    if operator is None:
        return said(error)
    return f"ONNX Runtime has no {operator[1] or operator[2]} for it"


class _Rounded(Mapping[str, LazyTensor]):
    """The weights of a source, rounded as an export has them. Each is made on use."""

    def __init__(self, ledger: Ledger, rounding: Mapping[str, str]) -> None:
        self.weights, self.rounding = ledger.weights, rounding

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, name: str) -> LazyTensor:
        weight = self.weights[name]
        if name not in self.rounding:
            return weight
        numbers = to_float32(weight.memmap(), weight.dtype).astype(TYPES[self.rounding[name]]).astype(np.float64)
        return InMemory(name, "float64", weight.shape, weight.file, 0, array=np.ascontiguousarray(numbers))


def with_rounding(ledger: Ledger, weights: Weights) -> Ledger:
    """Return a ledger with the numbers that an export has, as far as they are the source's in a shorter type."""
    return replace(ledger, weights=_Rounded(ledger, weights.rounding)) if weights.rounding else ledger


def _remarks(name: str, interfaces: Sequence[Interface], ran: Ran | None) -> list[str]:
    """Return what the interface of an export cannot express, and which of its branches never ran."""
    if ran is None:
        return []
    notes = [f"{name}: {why} (not run: {', '.join(cases)})" for why, cases in ran.skipped.items()]
    if ran.by_column:
        notes.append(
            f"{name}: it takes no position_ids and counts padding too, so that a row of a left-padded batch gets other "
            f"tokens than alone; give it rows of one length"
        )
    for each in interfaces:
        notes += [f"{name}: {what}" for what in never_taken(read_model(each.file).graph, ran.conditions)]
    return notes


def _located(
    baseline: Baseline, interfaces: Sequence[Interface], numbers: Ledger, legs: Sequence[MeasuredLeg]
) -> Located | None:
    """Find out where a guilty leg goes wrong, preferably in float64; None if none is guilty."""
    judge = baseline.judge
    guilty = [leg for leg in legs if judge.fault(leg) and leg.kind is not LegKind.LOSSY]
    widened = [leg for leg in legs if leg.runner is Runner.WIDENED]
    if not guilty:
        return None
    leg = next((leg for leg in widened if leg in guilty), guilty[0])
    case = _telling(baseline, leg, judge)
    how = express(interfaces, case)
    assert not isinstance(how, str)
    counted = len(how.truths) > 1 and _counts_columns(baseline, interfaces)
    try:
        return locate(numbers, interfaces, how, by_column(case) if counted else case, leg in widened)
    except (*OPEN_ERRORS, ModelFolderError, onnx.onnx_cpp2py_export.checker.ValidationError):
        return None


def _counts_columns(baseline: Baseline, interfaces: Sequence[Interface]) -> bool:
    """Tell whether an export without ``position_ids`` counts padding too."""
    identity = Identity("positions", LegKind.NUMERICS)
    ran = measure(baseline, lambda: open_as_is(interfaces, baseline.ledger.config), interfaces, identity, short=True)
    return bool(ran.by_column)


def _telling(baseline: Baseline, leg: MeasuredLeg, judge: Judge) -> Case:
    """Return the first case in which a leg is beyond its limit, the one with the largest error if none is alone."""
    for case in baseline.cases:
        distance = leg.distances.get(case.name)
        if distance is None:
            continue
        allowed = leg.limit * judge.scale or judge.limits.maximum * judge.floor({case.name: distance})[1]
        if not (math.isfinite(distance.total_maximum) and distance.total_maximum <= allowed):
            return case
    return next(case for case in baseline.cases if case.name == leg.worst_case)
