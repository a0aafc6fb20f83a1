"""Compare an export of another program with the baseline of a source; if they differ, find out where and why."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from converter.errors import CheckError
from converter.parity.baseline import Baseline, noise_floor
from converter.parity.exports import remarks
from converter.parity.exports.align import Located, locate
from converter.parity.exports.asked import Asked
from converter.parity.exports.cases import by_column, express
from converter.parity.exports.legs import Ran, said
from converter.parity.exports.numbers import with_numbers
from converter.parity.exports.quantized import bits_of
from converter.parity.exports.remarks import beyond
from converter.parity.exports.runs import REFUSED, Runs, lacking
from converter.parity.exports.suspects import suspects_of
from converter.parity.exports.untaken import try_untaken
from converter.parity.exports.weights import Found, find_weights
from converter.parity.legs.cases import Case
from converter.parity.legs.identity import LegKind, Runner
from converter.parity.legs.settings import settings_of
from converter.parity.legs.steps import Steps
from converter.parity.report.report import Compared, Details, Report
from converter.parity.verdict.found import Weights
from converter.parity.verdict.judge import MeasuredLeg
from converter.weights.precisions import FULL

STEPS = ("the weights of {}, by content", "{} in ONNX Runtime", "{} in float64")

# The precision of a file whose weights were rounded to a type, as far as there is one.
PRECISION_OF = {"float16": "fp16", "bfloat16": "bfloat16"}

INT4_BITS = 4


@dataclass(frozen=True)
class Examined:
    """What was measured of an export.

    Attributes:
        compared: what is known of it besides its legs.
        legs: its legs.
        notes: sentences that say what was not compared, and why.
    """

    compared: Compared
    legs: tuple[MeasuredLeg, ...]
    notes: tuple[str, ...]


@dataclass
class _Known:
    """What is known so far."""

    legs: list[MeasuredLeg] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def examine_export(baseline: Baseline, asked: Asked, step: Steps, weights: bool = True, also: bool = False) -> Examined:
    """Compare an export with a source; returns what was measured.

    Args:
        step: called with the name of each of ``STEPS``.
        weights: whether differences of weights count.
        also: whether it is compared beside a folder.

    Raises:
        ModelFolderError: its weights are missing.
        CheckError: it takes none of the cases.
    """
    known, name = _Known(), asked.name
    step(STEPS[0].format(name))
    found = find_weights(asked.files, baseline.ledger)
    bits = min((bits for bits in map(bits_of, asked.files) if bits is not None), default=None)
    bits = None if found.complete and not found.quantized else bits  # an operator alone rounds no weight
    runs = Runs(baseline, asked, _precision(bits, found.weights), with_numbers(baseline.ledger, found), also, step)
    known.notes += [*remarks.of_files(asked), *remarks.of_products(asked.files)]
    for each in asked.interfaces:
        suspects = suspects_of(each.file, each.ids.name)
        known.notes += remarks.of_graph(baseline, suspects)
        known.faults += [f"it draws random numbers: {operator}" for operator in suspects.chance[:1]]
    step(STEPS[1].format(name))
    ran = _run(runs, known)
    step(STEPS[2].format(name))
    exact = _run_in_float64(runs, known, bits is None or found.complete)
    known.notes += remarks.of_run(ran) if ran is not None else []
    if ran is not None and asked.interfaces:
        again = replace(runs, step=Steps())  # the cases of this step have been told
        faults, notes = try_untaken(baseline, asked.interfaces, ran, again.in_float64 if exact else again.as_is)
        known.faults += faults
        known.notes += [*notes, *remarks.where_right(baseline, known.legs, list(ran.failed))]
    known.notes += _of_weights(found) if weights else []
    located = _located(runs, known.legs, ran)
    compared = Compared(
        name,
        tuple(os.fspath(file) for file in asked.files),
        tuple(each.sentence for each in asked.interfaces),
        runs.precision,
        found.weights if weights else None,
        tuple(known.faults),
        located.localisation if located else None,
        located.diagnosis if located else None,
    )
    return Examined(compared, tuple(known.legs), tuple(f"{name}: {note}" if also else note for note in known.notes))


def _precision(bits: int | None, weights: Weights) -> str:
    """Return the precision of an export's weights.

    Args:
        bits: the fewest bits of its quantized weights; None if it has none.
    """
    if bits is not None:
        return "int4" if bits <= INT4_BITS else "int8"
    kept = [PRECISION_OF[kind] for kind in ("bfloat16", "float16") if kind in weights.rounding.values()]
    return kept[0] if kept else FULL


def _of_weights(found: Found) -> list[str]:
    """Return what is to be said of the weights besides their faults."""
    weights = found.weights
    return [*weights.notes, *([weights.sentence] if weights.missing or weights.partly else [])]


def _run(runs: Runs, known: _Known) -> Ran | None:
    """Run an export as it is; None if ONNX Runtime refuses it.

    Raises:
        CheckError: it takes none of the cases, so that there is nothing to judge.
    """
    try:
        ran = runs.as_is()
    except REFUSED as error:
        known.faults.append(f"it cannot be run by ONNX Runtime ({said(error)})")
        return None
    for case, why in list(ran.failed.items())[:1]:
        more = f" and {len(ran.failed) - 1} more cases" if len(ran.failed) > 1 else ""
        known.faults.append(f"it cannot be run on {case}{more} ({why})")
    if not ran.leg.distances and not ran.failed:
        nothing = f"nothing that it computes can be compared: {next(iter(ran.skipped))}"
        if not runs.also:
            raise CheckError(f"{runs.asked.name}: {nothing}; export it with dimensions of any size")
        known.faults.append(nothing)
    known.legs += [ran.leg] if ran.leg.distances else []
    return ran


def _run_in_float64(runs: Runs, known: _Known, complete: bool) -> bool:
    """Run an export in float64, if its operators allow it; tell whether they do.

    Args:
        complete: whether it is known with which numbers it computes.
    """
    if not complete:
        known.notes.append("its mathematics is not compared in float64, as the numbers of some weights are unknown")
        return False
    try:
        ran = runs.in_float64()
    except REFUSED as error:
        known.notes.append(f"its mathematics is not compared in float64: {lacking(error)}")
        return False
    known.legs += [ran.leg] if ran.leg.distances else []
    return True


def report_on(
    baseline: Baseline, asked: Asked, also: Sequence[Asked], step: Steps, weights: bool, began: float
) -> Report:
    """Compare an export with a source, and others besides; returns the report.

    Args:
        step: called with the name of each of ``STEPS``, and of the verdict.
        weights: whether differences of weights count.
        began: when the check began, as ``time.monotonic`` counts.

    Raises:
        ModelFolderError: weights are missing.
        CheckError: the export takes none of the cases.
    """
    examined = examine_export(baseline, asked, step, weights)
    others = [examine_export(baseline, other, step, weights, also=True) for other in also]
    step("the verdict")
    found, judge = examined.compared, baseline.judge
    measured = [*baseline.legs, *(leg for each in (examined, *others) for leg in each.legs)]
    floor_rms, floor_maximum = noise_floor(baseline)
    return Report(
        source=os.fspath(baseline.checkpoint.name),
        out=asked.name,
        level=baseline.level,
        text=baseline.text,
        settings=settings_of(asked.provider),
        limits=baseline.limits.named(),
        scale=baseline.scale,
        floor_rms=floor_rms,
        floor_maximum=floor_maximum,
        exactness=weights,
        initializers=found.weights.compared if found.weights else 0,
        exactness_faults=found.weights.faults if found.weights else (),
        beside_faults=(),
        reproduction_faults=(),
        files=0,
        allowed=(),
        unproven="",
        run_faults=found.faults,
        outputs=(),
        legs=tuple(judge.report(leg) for leg in sorted(measured, key=lambda leg: list(LegKind).index(leg.kind))),
        localisation=found.localisation,
        diagnosis=found.diagnosis,
        notes=(*baseline.notes, *(note for each in (examined, *others) for note in each.notes)),
        seconds=time.monotonic() - began,
        details=Details(baseline, tuple(measured), judge),
        export=found,
        also=tuple(other.compared for other in others),
    )


def _located(runs: Runs, measured: Sequence[MeasuredLeg], ran: Ran | None) -> Located | None:
    """Find out where a guilty leg goes wrong, in float64 if that can be; None if none is guilty."""
    baseline, interfaces = runs.baseline, runs.asked.interfaces
    guilty = [leg for leg in measured if leg.kind is not LegKind.LOSSY and baseline.judge.fault(leg)]
    if not guilty or ran is None or not interfaces:
        return None
    leg = next((leg for leg in guilty if leg.runner is Runner.WIDENED), guilty[0])
    case = _telling(baseline, leg)
    how = express(interfaces, case)
    assert not isinstance(how, str)
    counted = by_column(case) if len(how.truths) > 1 and ran.by_column else case
    try:
        return locate(runs.numbers, interfaces, how, counted, leg.runner is Runner.WIDENED)
    except REFUSED:
        return None  # with every value as an output ONNX Runtime may refuse what it runs otherwise


def _telling(baseline: Baseline, leg: MeasuredLeg) -> Case:
    """Return the first case in which a leg is beyond its limit, or else the one with the largest error."""
    cases = [case for case in baseline.cases if case.name in leg.distances]
    worst = next(case for case in cases if case.name == leg.worst_case)
    return next((case for case in cases if beyond(baseline, leg, case)), worst)
