"""Compare an export of another program with the baseline of a source; if they differ, find out where and why."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from converter.errors import ModelFolderError
from converter.parity.baseline import Baseline, LegSpec, noise_floor
from converter.parity.exports import remarks
from converter.parity.exports.align import Located, locate
from converter.parity.exports.cases import by_column, express
from converter.parity.exports.legs import Ran, measure, open_as_is, open_in_float64, said
from converter.parity.exports.numbers import with_numbers
from converter.parity.exports.quantized import bits_of
from converter.parity.exports.remarks import beyond
from converter.parity.exports.weights import find_weights
from converter.parity.legs import leg as legs
from converter.parity.legs.cases import Case
from converter.parity.legs.identity import Identity, LegKind, Runner
from converter.parity.legs.settings import settings_of
from converter.parity.legs.steps import Steps
from converter.parity.legs.truth import truths
from converter.parity.legs.widen import graph_session, widened_session
from converter.parity.report.report import Compared, Details, Report
from converter.parity.verdict.found import Weights
from converter.parity.verdict.judge import MeasuredLeg
from converter.runtime.exports.files import find
from converter.runtime.exports.interface import Interface
from converter.runtime.exports.open import read_export
from converter.runtime.exports.signature import read_signature
from converter.runtime.ort import CPU_PROVIDER, OPEN_ERRORS
from converter.weights.ledger import Ledger
from converter.weights.precisions import FULL, PRECISIONS
from reference.config import GPT2Config
from reference.head import HEADS, LM

STEPS = ("the weights of {}, by content", "{} in ONNX Runtime", "{} in float64")

# The precision of a file whose weights were rounded to a type, as far as there is one.
PRECISION_OF = {"float16": "fp16", "bfloat16": "bfloat16"}

INT4_BITS = 4

# What ONNX Runtime and the protobuf library raise for a graph that cannot be run.
REFUSED = (*OPEN_ERRORS, DecodeError, legs.InterfaceError)


@dataclass(frozen=True)
class Asked:
    """An export that is to be compared.

    Attributes:
        path: the file or folder.
        files: its ONNX files.
        interfaces: of its files; none for another head than the language model's.
        provider: what runs it, by ONNX Runtime's name.
    """

    path: Path
    files: tuple[Path, ...]
    interfaces: tuple[Interface, ...]
    provider: str = CPU_PROVIDER

    @property
    def name(self) -> str:
        """Return what it is called in the report."""
        return os.fspath(self.path)


def ask(path: Path, config: GPT2Config, given: Mapping[str, str] | None = None, provider: str = CPU_PROVIDER) -> Asked:
    """Read what an export takes and gives, before anything is computed.

    Args:
        given: roles of inputs and outputs that the user gave.
        provider: what runs it, by ONNX Runtime's name.

    Raises:
        ModelFolderError: there is no export, it is another model's, or its interface is unknown.
    """
    if config.head == LM:
        interfaces = read_export(path, config, given)
        return Asked(path, tuple(each.file for each in interfaces), interfaces, provider)
    files = find(path)
    for file in files:
        signature = read_signature(file)
        names = {value.name for value in signature.outputs}
        if lacking := [name for name in HEADS[config.head].outputs if name not in names]:
            raise ModelFolderError(f"{file} lacks the output {lacking[0]} of the head {config.head}; it {signature}")
        if odd := [value.name for value in signature.inputs if value.name not in legs.KNOWN]:
            raise ModelFolderError(f"{file} takes {odd[0]}, which is none of a GPT-2's inputs; it {signature}")
    return Asked(path, files, (), provider)


def refuse_unknown(given: Mapping[str, str], exports: Sequence[Asked]) -> None:
    """Refuse roles that the user gave to inputs or outputs that no export has.

    Raises:
        ModelFolderError: an export that was meant has another name for it.
    """
    known = {name for export in exports for each in export.interfaces for name in each.names}
    for name, role in given.items():
        if name not in known:
            files = " and ".join(export.name for export in exports) or "the model folder of gpt2onnx"
            raise ModelFolderError(f"--inputs {name}={role}: {files} has no input or output {name}")


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
    """
    known, name, ledger = _Known(), asked.name, baseline.ledger
    step(STEPS[0].format(name))
    found, bits = find_weights(asked.files, ledger), bits_of_all(asked.files)
    precision = _precision(bits, found.weights)
    known.notes += remarks.of_files(asked.path, asked.files, asked.interfaces)
    step(STEPS[1].format(name))
    ran = _run(baseline, _identity(name, precision, also), asked, known, step)
    step(STEPS[2].format(name))
    numbers = with_numbers(ledger, found)
    if bits is None or found.complete:
        _run_in_float64(baseline, asked, numbers, known, also, step)
    else:
        known.notes.append("its mathematics is not compared in float64, as the numbers of some weights are unknown")
    if ran is not None:
        known.notes += remarks.of_run(asked.interfaces, ran)
        known.notes += remarks.where_right(baseline, known.legs, list(ran.failed))
    if weights:
        known.notes += [*found.weights.notes, *([found.weights.sentence] if found.weights.missing else [])]
    located = _located(baseline, asked, numbers, known.legs, ran)
    compared = Compared(
        name,
        tuple(os.fspath(file) for file in asked.files),
        tuple(each.sentence for each in asked.interfaces),
        precision,
        found.weights if weights else None,
        tuple(known.faults),
        located.localisation if located else None,
        located.diagnosis if located else None,
    )
    return Examined(compared, tuple(known.legs), tuple(f"{name}: {note}" if also else note for note in known.notes))


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


def bits_of_all(files: Sequence[Path]) -> int | None:
    """Return the fewest bits of the quantized weights of some files; None if they have none."""
    return min((bits for bits in map(bits_of, files) if bits is not None), default=None)


def _precision(bits: int | None, weights: Weights) -> str:
    """Return the precision of an export's weights."""
    if bits is not None:
        return "int4" if bits <= INT4_BITS else "int8"
    kept = [PRECISION_OF[kind] for kind in ("bfloat16", "float16") if kind in weights.rounding.values()]
    return kept[0] if kept else FULL


def _identity(name: str, precision: str, also: bool) -> Identity:
    """Return the identity of the leg that runs an export as it is."""
    given: dict[str, Any] = {"graph": name, "precision": precision, "export": name if also else ""}
    if precision == FULL:
        own = "ONNX Runtime float32"
        return Identity(name if also else own, LegKind.OTHER if also else LegKind.NUMERICS, **given)
    budget = PRECISIONS[precision].budget_name if precision in PRECISIONS else precision
    return Identity(name if also else f"ONNX Runtime {precision}", LegKind.LOSSY, budget=budget, **given)


def _run(baseline: Baseline, identity: Identity, asked: Asked, known: _Known, step: Steps) -> Ran | None:
    """Run an export as it is; None if ONNX Runtime refuses it."""
    config = baseline.ledger.config
    try:
        if not asked.interfaces:
            known.legs.append(baseline.measure(_head(identity, asked, config), step))
            return None
        opened = partial(open_as_is, asked.interfaces, config, asked.provider)
        ran = measure(baseline, opened, asked.interfaces, identity, step=step)
    except REFUSED as error:
        known.faults.append(f"it cannot be run by ONNX Runtime ({said(error)})")
        return None
    for case, why in list(ran.failed.items())[:1]:
        more = f" and {len(ran.failed) - 1} more cases" if len(ran.failed) > 1 else ""
        known.faults.append(f"it cannot be run on {case}{more} by ONNX Runtime ({why})")
    if ran.leg.distances:
        known.legs.append(ran.leg)
    return ran


def _head(identity: Identity, asked: Asked, config: GPT2Config, float64: bool = False) -> LegSpec:
    """Return the leg of a graph of another head than the language model's, with Optimum's names."""
    file = asked.files[0]
    if float64:
        return LegSpec(
            **identity.identity(), open=lambda: legs.graph(widened_session(file, config=config), config, np.float64)
        )
    return LegSpec(
        **identity.identity(), open=lambda: legs.graph(graph_session(file, provider=asked.provider), config, np.float32)
    )


def _run_in_float64(baseline: Baseline, asked: Asked, numbers: Ledger, known: _Known, also: bool, step: Steps) -> None:
    """Run an export in float64, against the truth of its own numbers, if its operators allow it."""
    config, name, limit = baseline.ledger.config, asked.name, baseline.limits.graph_float64
    given: dict[str, Any] = {"runner": Runner.WIDENED, "graph": name, "export": name if also else ""}
    identity = Identity(f"{name} in float64" if also else "ONNX graph in float64", LegKind.SEMANTICS, **given)

    def truth(cases: list[Case]) -> Mapping[str, np.ndarray]:
        return truths(numbers.config, numbers.weights, cases)

    own = truth if numbers is not baseline.ledger else None
    try:
        if not asked.interfaces:
            row = replace(_head(identity, asked, config, float64=True), limit=limit, truths=own)
            known.legs.append(baseline.measure(replace(row, cases=lambda case: not case.long), step))
            return
        opened = partial(open_in_float64, asked.interfaces, config)
        ran = measure(baseline, opened, asked.interfaces, identity, limit, own, short=True, step=step)
    except REFUSED as error:
        known.notes.append(f"its mathematics is not compared in float64: {_lacking(error)}")
        return
    if ran.leg.distances:
        known.legs.append(ran.leg)


def _lacking(error: Exception) -> str:
    """Return which operator has no float64, if ONNX Runtime says so; else what it says."""
    operator = re.search(r"operator \((\w+)\)|implementation for (\w+)", str(error))
    if operator is None:
        return said(error)
    return f"ONNX Runtime has no {operator[1] or operator[2]} for it"


def _located(
    baseline: Baseline, asked: Asked, numbers: Ledger, measured: Sequence[MeasuredLeg], ran: Ran | None
) -> Located | None:
    """Find out where a guilty leg goes wrong, in float64 if that can be; None if none is guilty."""
    judge = baseline.judge
    guilty = [leg for leg in measured if leg.kind is not LegKind.LOSSY and judge.fault(leg)]
    if not guilty or ran is None:
        return None
    leg = next((leg for leg in guilty if leg.runner is Runner.WIDENED), guilty[0])
    case = _telling(baseline, leg)
    how = express(asked.interfaces, case)
    assert not isinstance(how, str)
    counted = by_column(case) if len(how.truths) > 1 and ran.by_column else case
    try:
        return locate(numbers, asked.interfaces, how, counted, leg.runner is Runner.WIDENED)
    except REFUSED:
        return None  # with every value as an output ONNX Runtime may refuse what it runs otherwise


def _telling(baseline: Baseline, leg: MeasuredLeg) -> Case:
    """Return the first case in which a leg is beyond its limit, or else the one with the largest error."""
    cases = [case for case in baseline.cases if case.name in leg.distances]
    worst = next(case for case in cases if case.name == leg.worst_case)
    return next((case for case in cases if beyond(baseline, leg, case)), worst)
