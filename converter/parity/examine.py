"""Compare a model folder, its files and its graph, with the baseline of a source; if they differ, find out why."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from converter.errors import CheckError, ModelFolderError
from converter.parity.baseline import Baseline, LegSpec, noise_floor
from converter.parity.explain import TapCache, explain, to_explain
from converter.parity.exports.examine import examine_export
from converter.parity.exports.runs import REFUSED
from converter.parity.folder_legs import Examination, FolderRows, folder_rows, graphs_of
from converter.parity.legs.identity import LegKind, Runner
from converter.parity.legs.memory import release_memory
from converter.parity.legs.steps import Steps
from converter.parity.outputs import OutputReport, compare_outputs
from converter.parity.report.report import Details, Report
from converter.parity.verdict.beside import compare_config, compare_tokenizer
from converter.parity.verdict.exactness import Exactness, compare_initializers
from converter.parity.verdict.judge import MeasuredLeg
from converter.parity.verdict.reproduction import Reproduction, reproduce
from converter.weights.precisions import PRECISIONS


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
    refusals = Refusals(asked.edited or bool(reproduction.faults or exactness.faults), asked.files)
    legs_of_folder, notes = _legs(baseline, rows.legs, step, refusals, asked.until_fault)
    others = [examine_export(baseline, other, step, asked.files, also=True) for other in asked.also]
    notes += [note for other in others for note in other.notes]
    judge = baseline.judge
    measured = [*baseline.legs, *legs_of_folder, *(leg for other in others for leg in other.legs)]
    release_memory(baseline.ledger.parameters)
    step("what is returned beside the answer")
    outputs, unknown = _outputs(baseline, out, graphs, asked.provider, refusals)
    guilty = [leg for leg in measured if leg.kind is not LegKind.LOSSY and not leg.export and judge.fault(leg)]
    located = diagnosis = None
    explained = to_explain(graphs, guilty, asked.layers)
    step("where the error comes from" if explained else "the verdict")
    if explained:
        with refusals.of(graphs[explained], " for the diagnosis"):
            located, diagnosis = explain(
                baseline, graphs[explained], PRECISIONS[explained], guilty, judge, cache or TapCache(baseline)
            )
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
        run_faults=tuple(refusals.sentences),
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


# What may be raised for an edited graph, where something is not as a converter writes it.
UNRUNNABLE = (*REFUSED, ModelFolderError, ValueError, LookupError, TypeError)


@dataclass
class Refusals:
    """The graphs of a folder that cannot be run.

    Attributes:
        edited: whether files of the folder are known to differ from what a conversion writes.
        compared: whether they were compared.
        sentences: one for each graph and each way of running it.
    """

    edited: bool
    compared: bool
    sentences: list[str] = field(default_factory=list)

    @contextmanager
    def of(self, file: Path, how: str = "") -> Iterator[None]:
        """Note that a graph cannot be run, if that is why the block ends.

        Args:
            how: in which way it is run, for the sentence.

        Raises:
            CheckError: nobody is known to have edited the graph, so there is no verdict.
            Exception: nobody has edited it, so the error is ours.
        """
        try:
            yield
        except UNRUNNABLE as error:
            said = f"{file} cannot be run{how} by ONNX Runtime ({error})"
            if self.edited:
                self.sentences.append(said)
            elif not self.compared or isinstance(error, REFUSED):
                raise CheckError(said) from error
            else:
                raise


def _legs(
    baseline: Baseline, rows: Sequence[tuple[Path, LegSpec]], step: Steps, refusals: Refusals, until_fault: bool
) -> tuple[list[MeasuredLeg], list[str]]:
    """Measure legs; returns them, and sentences that qualify the verdict.

    Args:
        refusals: are told of each graph that cannot be run.
        until_fault: stop after the first leg that fails.
    """
    measured, notes = list[MeasuredLeg](), list[str]()
    for file, row in rows:
        step(row.name)
        with refusals.of(file, " in float64" if row.runner is Runner.WIDENED else ""):
            measured.append(baseline.measure(row, step))
            notes += [note for note in [row.note()] if note]
            if until_fault and baseline.judge.fault(measured[-1]):
                break
    return measured, notes


def _outputs(
    baseline: Baseline, out: Path, graphs: Mapping[str, Path], provider: str, refusals: Refusals
) -> tuple[list[OutputReport], list[str]]:
    """Compare what the graphs return beside their answers; returns reports, and sentences that qualify the verdict.

    Args:
        refusals: are told of each graph that cannot be run.
    """
    reports, notes = list[OutputReport](), list[str]()
    for precision, file in graphs.items():
        with refusals.of(file, " for its outputs"):
            named = precision if len(graphs) > 1 else None
            found, unknown = compare_outputs(baseline, out, file, precision, named, provider)
            reports, notes = reports + found, notes + unknown
    return reports, notes
