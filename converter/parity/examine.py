"""Compare a model folder, its files and its graph, with the baseline of a source; if they differ, find out why."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf.message import DecodeError

from converter.errors import CheckError, ModelFolderError
from converter.folder import manifest
from converter.folder.staging import second_graph
from converter.parity.baseline import Baseline, LegSpec, noise_floor, usual
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
from converter.parity.exports.asked import Asked
from converter.parity.exports.examine import examine_export
from converter.parity.legs import leg as legs
from converter.parity.legs.cases import Case, Level
from converter.parity.legs.half import Rounded
from converter.parity.legs.huggingface import HuggingFace
from converter.parity.legs.identity import LegKind, Runner
from converter.parity.legs.memory import release_memory
from converter.parity.legs.settings import describe, settings_of
from converter.parity.legs.shipped import as_shipped
from converter.parity.legs.steps import Steps
from converter.parity.legs.truth import truths
from converter.parity.legs.widen import threads_for, widened_session
from converter.parity.outputs import OutputReport, compare_outputs
from converter.parity.report.report import Details, Report
from converter.parity.verdict.beside import compare_config, compare_tokenizer
from converter.parity.verdict.exactness import Exactness, compare_initializers
from converter.parity.verdict.judge import Judge, MeasuredLeg
from converter.parity.verdict.limits import Limits
from converter.parity.verdict.reproduction import Reproduction, reproduce
from converter.runtime.eight_bits import is_offered
from converter.runtime.gpu.graph import can_be_captured
from converter.runtime.heads import load as load_head
from converter.runtime.in_place import can_be_rewritten
from converter.runtime.opening import CAPTURING, load, model_file
from converter.runtime.ort import OPEN_ERRORS, provider_name
from converter.weights.ledger import Ledger
from converter.weights.precisions import FULL, PRECISIONS, Precision
from reference.head import HEADS, LM


@dataclass(frozen=True)
class Examination:
    """How to examine a folder.

    Attributes:
        provider: the provider of ONNX Runtime for the shipped graph.
        files: also compare the files; otherwise the logits alone decide.
        whole: the ledger of the whole model, from which every file of the folder is derived and compared. None for the
            second graph of a model, as the files were compared with the first.
        allowed: files and keys that may differ, as ``parse_allowed`` returns them.
        layers: compare every operation, even on a match.
        until_fault: stop after the first leg that fails, which is enough to prove that a defect is caught.
        shipped_truths: precision → float64 logits of its own numbers, if they are kept between examinations.
        also: exports of other programs to compare with the source.
    """

    provider: str = "cpu"
    files: bool = True
    whole: Ledger | None = None
    allowed: tuple[tuple[str, str], ...] = ()
    layers: bool = False
    until_fault: bool = False
    shipped_truths: dict[str, Mapping[str, np.ndarray]] | None = None
    also: tuple[Asked, ...] = ()


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


def graphs_of(out: Path, head: str) -> dict[str, Path]:
    """Return the graphs of a model folder that have this head, by precision. A folder without our manifest has one
    graph.
    """
    there = manifest.read(out).get("precisions")
    names = list(there) if isinstance(there, dict) and there else [None]
    files = {name or FULL: model_file(out, name) for name in names}
    return {name: second_graph(file) if HEADS[head].part_of else file for name, file in files.items()}


def examine(
    baseline: Baseline,
    out: Path,
    asked: Examination,
    step: Steps,
    cache: TapCache | None = None,
    rows: FolderRows | None = None,
) -> Report:
    """Compare a model folder with its source; returns the report.

    Args:
        step: called with the name of the next step: comparing the files, each of the rows, what the graphs return
            beside their answers, the verdict.
        cache: the taps of the source, if an earlier examination computed them.
        rows: the result of ``folder_rows``; made here if None.

    Raises:
        CheckError: the folder is a model of other dimensions, or ONNX Runtime cannot run its graph.
        GPT2Error: the folder cannot be opened.
    """
    began = time.monotonic()
    graphs = graphs_of(out, baseline.ledger.config.head)
    beside, exactness, reproduction = compare_files(baseline, out, graphs, asked, step)
    if rows is None:
        rows = folder_rows(baseline.ledger, baseline.limits, baseline.level, out, asked)
    edited = bool(reproduction.faults or exactness.faults)
    legs_of_folder, notes, unrunnable = _legs(baseline, rows.legs, step, edited, asked.until_fault)
    others = [examine_export(baseline, other, step, asked.files, also=True) for other in asked.also]
    notes += [note for other in others for note in other.notes]
    judge = baseline.judge
    measured = [*baseline.legs, *legs_of_folder, *(leg for other in others for leg in other.legs)]
    release_memory(baseline.ledger.parameters)
    step("what is returned beside the answer")
    outputs, unknown = _outputs(baseline, out, graphs, asked.provider, edited, unrunnable)
    guilty = [leg for leg in measured if leg.kind is not LegKind.LOSSY and not leg.export and judge.fault(leg)]
    located = diagnosis = None
    explained = _to_explain(graphs, guilty, asked.layers)
    step("where the error comes from" if explained else "the verdict")
    if explained:
        try:
            located, diagnosis = _explain(
                baseline, graphs[explained], PRECISIONS[explained], guilty, judge, cache or TapCache(baseline)
            )
        except UNRUNNABLE as error:
            unrunnable += [_cannot_be_run(graphs[explained], error, edited, " for the diagnosis")]
    floor_rms, floor_maximum = noise_floor(baseline)
    return Report(
        source=os.fspath(baseline.checkpoint.name),
        out=os.fspath(out),
        level=baseline.level,
        text=baseline.text,
        settings=rows.settings,
        limits=baseline.limits.named(),
        scale=baseline.scale,
        floor_rms=floor_rms,
        floor_maximum=floor_maximum,
        exactness=asked.files,
        initializers=exactness.compared,
        exactness_faults=exactness.faults,
        beside_faults=tuple(beside),
        reproduction_faults=reproduction.faults,
        files=reproduction.files,
        allowed=reproduction.allowed,
        unproven=reproduction.unproven,
        run_faults=tuple(unrunnable),
        outputs=tuple(outputs),
        legs=tuple(judge.report(leg) for leg in sorted(measured, key=lambda leg: list(LegKind).index(leg.kind))),
        localisation=located,
        diagnosis=diagnosis,
        notes=(*baseline.notes, *reproduction.notes, *notes, *unknown),
        seconds=time.monotonic() - began,
        details=Details(baseline, tuple(measured), judge),
        also=tuple(other.compared for other in others),
    )


def compare_files(
    baseline: Baseline, out: Path, graphs: Mapping[str, Path], asked: Examination, step: Steps
) -> tuple[list[str], Exactness, Reproduction]:
    """Compare the files of a folder with the source's; returns the results.

    The first result is about config and tokenizer, the second about initializers, the third about all files that are
    derived.
    """
    step("every initializer, bit for bit")
    beside = compare_config(out, baseline.checkpoint, baseline.ledger)
    if not asked.files:
        return [], Exactness(0, ()), Reproduction()
    beside += compare_tokenizer(out, baseline.checkpoint)
    found = [compare_initializers(file, baseline.ledger, PRECISIONS[name]) for name, file in graphs.items()]
    whole = asked.whole
    derived = reproduce(out, baseline.checkpoint, whole, asked.allowed) if whole is not None else Reproduction()
    faults = tuple(fault for one in found for fault in one.faults)
    return beside, Exactness(sum(one.compared for one in found), faults), derived


# REFUSED is what ONNX Runtime and the protobuf library raise for a graph that cannot be run. An edited graph may cause
# the other errors of UNRUNNABLE too, where something is not as a converter writes it.
REFUSED = (*OPEN_ERRORS, DecodeError, legs.InterfaceError)
UNRUNNABLE = (*REFUSED, ModelFolderError, ValueError, LookupError, TypeError)


@dataclass(frozen=True)
class FolderRows:
    """The legs of a folder. Nothing is opened yet.

    Attributes:
        legs: the legs, each with its file.
        settings: versions and machine. ONNX Runtime's are filled in when a leg is opened.
    """

    legs: Sequence[tuple[Path, LegSpec]]
    settings: dict[str, Any] = field(default_factory=dict)


def folder_rows(ledger: Ledger, limits: Limits, level: Level, out: Path, asked: Examination) -> FolderRows:
    """Return the legs of the shipped graphs and of other files."""
    config, settings = ledger.config, settings_of(provider_name(asked.provider))
    graphs = graphs_of(out, config.head)
    several, threads = len(graphs) > 1, threads_for(ledger.parameters)

    def runtime(precision: str, in_place: bool = False, **layout: Any) -> legs.Leg:
        named = precision if several else None
        if config.head != LM:
            model = load_head(out, asked.provider, threads, named)
            settings.update(describe(model.session))
            return legs.shipped_head(model)
        generating = load(out, asked.provider, threads, named, in_place=in_place, **layout)
        settings.update(describe(generating.session))
        return legs.shipped(generating)

    def shipped(precision: str) -> LegSpec:
        which: dict[str, Any] = {"precision": precision, "graph": os.fspath(graphs[precision])}
        opened = partial(runtime, precision)
        if precision == FULL:
            return LegSpec("ONNX Runtime float32", LegKind.NUMERICS, opened, **which)
        name, budget = f"ONNX Runtime {precision}", PRECISIONS[precision].budget_name
        return LegSpec(name, LegKind.LOSSY, opened, cases=usual, budget=budget, **which)

    def widened(precision: str) -> LegSpec:
        return _widened(graphs[precision], precision, ledger, limits, level, asked.shipped_truths)

    def in_place(precision: str) -> LegSpec:
        leg, opened = shipped(precision), partial(runtime, precision, in_place=True)
        return replace(leg, name=f"{leg.name}, cache in place", in_place=True, open=opened)

    def rounded_cache(precision: str) -> LegSpec:
        leg, opened = in_place(precision), partial(runtime, precision, in_place=True, cache="int8")
        name = f"ONNX Runtime {precision}, cache of 8 bits"
        return replace(leg, name=name, open=lambda: legs.from_cache(opened()), cases=legs.leaves_a_cache)

    def captured(precision: str) -> LegSpec:
        leg, opened = shipped(precision), partial(runtime, precision, cuda_graphs=True)
        return replace(leg, name=f"{leg.name}, CUDA graphs", in_place=True, open=opened)

    rows: list[tuple[Path, LegSpec]] = []
    if FULL in graphs:
        rows += [(graphs[FULL], widened(FULL)), (graphs[FULL], shipped(FULL))]
    for precision, file in graphs.items():
        if precision != FULL:
            rows += [(file, widened(precision)), (file, shipped(precision))]
    if config.head == LM and asked.provider == "cpu":  # as in ``generate``
        can = [(file, in_place(precision)) for precision, file in graphs.items() if can_be_rewritten(file)]
        # Without integer products one precision is enough, as only the weights differ.
        quantized = [row for row in can if PRECISIONS[row[1].precision].scheme]
        rows += [*(row for row in can[:1] if row not in quantized), *quantized]
        if is_offered() and config.n_positions >= 2 * legs.FROM_CACHE:  # what comes first is kept in float32
            rows += [(file, rounded_cache(leg.precision)) for file, leg in quantized]
    if config.head == LM and provider_name(asked.provider) in CAPTURING:
        rows += [(file, captured(precision)) for precision, file in graphs.items() if can_be_captured(file)]
    if "fp16" in graphs:
        rows.append((graphs["fp16"], _rounded(ledger)))
    return FolderRows(rows, settings)


def _in_float64(case: Case, everything: bool) -> bool:
    """Tell whether a case is fed to a graph in float64.

    Long texts are fed only if ``everything`` is. The whole vocabulary never is: it costs as much as all other cases.
    """
    return not case.long or (everything and usual(case))


def _widened(
    file: Path,
    precision: str,
    ledger: Ledger,
    limits: Limits,
    level: Level,
    known: dict[str, Mapping[str, np.ndarray]] | None,
) -> LegSpec:
    """Return the leg of a shipped graph in float64. It is compared with the reference that has the same numbers for
    weights.

    So the mathematics is judged alone. The budget of a precision limits the error of the rounded weights.

    Args:
        known: see ``Examination.shipped_truths``.
    """
    config = ledger.config

    def truth(cases: list[Case]) -> Mapping[str, np.ndarray]:
        found = (known or {}).get(precision)
        if found is None:
            found = truths(config, as_shipped(ledger, file, PRECISIONS[precision]).weights, cases)
        if known is not None:
            known[precision] = found
        return found

    return LegSpec(
        "ONNX graph in float64" if precision == FULL else f"ONNX {precision} graph in float64",
        LegKind.SEMANTICS,
        lambda: legs.graph(widened_session(file, config=config), config, np.float64),
        limits.graph_float64,
        partial(_in_float64, everything=level is Level.FULL and precision == FULL),
        truths=None if precision == FULL else truth,
        runner=Runner.WIDENED,
        precision=precision,
        graph=os.fspath(file),
    )


def _rounded(ledger: Ledger) -> LegSpec:
    """Return the leg in which every operation rounds to float16. Its note says what overflows."""
    rounded = Rounded(ledger.config, ledger.weights)
    return LegSpec(
        "float16, every operation rounded",
        LegKind.LOSSY,
        rounded.open,
        cases=usual,
        note=lambda: rounded.sentence,
        runner=Runner.ROUNDED,
        precision="fp16",
        budget=PRECISIONS["fp16"].budget_name,
    )


def _legs(
    baseline: Baseline,
    rows: Sequence[tuple[Path, LegSpec]],
    step: Steps,
    edited: bool,
    until_fault: bool,
) -> tuple[list[MeasuredLeg], list[str], list[str]]:
    """Measure legs; returns them, sentences that qualify the verdict, and a sentence for each graph that cannot be run.

    Args:
        edited: whether the files of the folder are known to differ from what a conversion writes.
        until_fault: stop after the first leg that fails.
    """
    measured, notes, unrunnable = [], [], []
    for file, row in rows:
        step(row.name)
        try:
            measured.append(baseline.measure(row, step))
        except UNRUNNABLE as error:
            how = " in float64" if row.runner is Runner.WIDENED else ""
            unrunnable.append(_cannot_be_run(file, error, edited, how))
            continue
        notes += [note for note in [row.note()] if note]
        if until_fault and baseline.judge.fault(measured[-1]):
            break
    return measured, notes, unrunnable


def _outputs(
    baseline: Baseline, out: Path, graphs: Mapping[str, Path], provider: str, edited: bool, unrunnable: list[str]
) -> tuple[list[OutputReport], list[str]]:
    """Compare what the graphs return beside their answers; returns reports, and sentences that qualify the verdict.

    Args:
        unrunnable: gets a sentence for each graph that cannot be run.
    """
    reports, notes = list[OutputReport](), list[str]()
    for precision, file in graphs.items():
        try:
            named = precision if len(graphs) > 1 else None
            found, unknown = compare_outputs(baseline, out, file, precision, named, provider)
        except UNRUNNABLE as error:
            unrunnable.append(_cannot_be_run(file, error, edited, " for its outputs"))
            continue
        reports, notes = reports + found, notes + unknown
    return reports, notes


def _cannot_be_run(file: Path, error: Exception, edited: bool, how: str) -> str:
    """Return the sentence about a graph that cannot be run.

    Raises:
        CheckError: nobody edited the graph, so there is no verdict.
    """
    said = f"{file} cannot be run{how} by ONNX Runtime ({error})"
    if edited:
        return said
    if isinstance(error, REFUSED):
        raise CheckError(said) from error
    raise error


def _to_explain(graphs: Mapping[str, Path], guilty: Sequence[MeasuredLeg], layers: bool) -> str:
    """Return the precision whose graph is diagnosed, the full one if it can be blamed; empty if none is."""
    blamed = [leg.precision for leg in guilty if leg.runner is Runner.WIDENED]
    if FULL in graphs and (layers or (guilty and not blamed) or FULL in blamed):
        return FULL
    return blamed[0] if blamed else ""


def _explain(
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
