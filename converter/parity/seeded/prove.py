"""Prove the check: seed defects into copies of a conversion, each of which must be caught and named."""

from __future__ import annotations

import filecmp
import math
import os
import shutil
import tempfile
import time
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converter.checkpoint import hub
from converter.checkpoint.options import SourceOptions
from converter.errors import CheckError, GPT2Error
from converter.folder.convert import convert
from converter.folder.staging import files_in
from converter.parity.baseline import Baseline, measure_source
from converter.parity.examine import compare_files, examine
from converter.parity.explain import TapCache
from converter.parity.folder_legs import Examination, graphs_of
from converter.parity.legs.cases import Level
from converter.parity.legs.leg import on_threads
from converter.parity.legs.steps import Progress, Steps
from converter.parity.legs.widen import threads_for
from converter.parity.report.report import Report
from converter.parity.seeded.beside import BESIDE, of_blocks
from converter.parity.seeded.mutation import Copy, Mutation
from converter.parity.seeded.mutations import MUTATIONS, elements, lossy
from converter.parity.seeded.weights import scaled_matrix
from converter.parity.verdict.limits import Limits
from converter.weights.ledger import read_source
from converter.weights.precisions import FULL, PRECISIONS
from reference.config import GPT2Config
from reference.head import LM

# The smallest change of a weight matrix that is caught is searched for between these, to within this factor.
CHANGE_LEAST, CHANGE_MOST, CHANGE_STEP = 1e-8, 1e-2, 2.0


@dataclass(frozen=True)
class Trial:
    """The result of one seeded defect.

    Attributes:
        defect: its name.
        causes: the causes that a diagnosis may name.
        caught: whether it was noticed with all files compared; a changed weight must be noticed by its bits.
        caught_by_logits: whether the logits alone showed it; None if it does not show in logits.
        named, named_by_logits: whether the diagnosis named the cause, or the sentence about a file the place.
        said: the diagnosis from the logits alone, or the error that ended the trial.
        verdict: the verdict with all files compared.
        ended_in_error: whether the check gave no verdict at all, which counts as a miss.
    """

    defect: str
    causes: tuple[str, ...]
    caught: bool
    caught_by_logits: bool | None
    named: bool
    named_by_logits: bool | None
    said: str
    verdict: str
    ended_in_error: bool = False

    @property
    def passed(self) -> bool:
        """Tell whether nothing was missed."""
        return self.caught and self.named and self.caught_by_logits is not False and self.named_by_logits is not False


@dataclass(frozen=True)
class Proof:
    """The results of all defects.

    Attributes:
        source: the checkpoint.
        sound: whether the conversion passed before any defect was seeded.
        trials: one for each defect.
        skipped: defects that this model has no place for, or that change nothing in it.
        matrix: the weight whose smallest detectable change was searched for.
        smallest: that change, relative, as the logits alone show it.
        seconds: the time that it took.
    """

    source: str
    sound: bool
    trials: tuple[Trial, ...]
    skipped: tuple[str, ...]
    matrix: str
    smallest: float
    seconds: float

    @property
    def passed(self) -> bool:
        """Tell whether every defect was caught and named, and the sound conversion passed."""
        return self.sound and all(trial.passed for trial in self.trials)

    def to_dict(self) -> dict[str, Any]:
        """Return the proof for JSON."""
        return {"schema": "gpt2onnx/proof/1", "passed": self.passed, **asdict(self)}


class Laboratory:
    """A source, its conversions and its baseline. Defects are seeded into copies of them, one after the other."""

    def __init__(self, source: Path, place: Path, step: Steps) -> None:
        self.source, self.place = source, place
        self.sound()
        self.baseline = _baseline(source, step)
        self.cache = TapCache(self.baseline)
        self.shipped_truths: dict[str, Mapping[str, np.ndarray]] = {}
        self.config = self.baseline.ledger.config

    def sound(self, precision: str = FULL) -> Path:
        """Return the conversion to a precision, which is made on first use."""
        out = self.place / precision
        if not out.is_dir():
            convert(self.source, out, precision=precision, scan=False)
        return out

    def spoilt(self, mutation: Mutation) -> Copy:
        """Return a fresh copy with the defect in it."""
        shutil.rmtree(self.place / "copy", ignore_errors=True)
        copy = Copy(self.place / "copy" / "source", self.place / "copy" / "out", self.config)
        shutil.copytree(self.source, copy.source)
        if mutation.variant is not None:
            mutation.variant(copy.source)
            convert(copy.source, copy.out, scan=False)
        else:
            shutil.copytree(self.sound(mutation.precision), copy.out, symlinks=True)
        mutation.apply(copy)
        return copy

    def is_zero(self, name: str) -> bool:
        """Tell whether a weight of the middle layer is all zeros, so that leaving it out changes nothing."""
        weight = self.baseline.ledger.weights[name.format(i=self.config.n_layer // 2)]
        return not any(chunk.any() for chunk in weight.chunks())

    def unspoilt(self, copy: Copy, precision: str) -> bool:
        """Tell whether the defect changed nothing."""
        sound = self.sound(precision)
        names = files_in(sound)
        return (
            _same_files(self.source, copy.source)
            and files_in(copy.out) == names
            and not filecmp.cmpfiles(sound, copy.out, names, shallow=False)[1]
        )

    def weights_changed(self, copy: Copy, precision: str) -> bool:
        """Tell whether the graph's initializers are no longer the sound ones."""
        data = PRECISIONS[precision].data
        return not filecmp.cmp(self.sound(precision) / data, copy.out / data, shallow=False)

    def examine(self, copy: Copy, files: bool, precision: str = FULL) -> Report:
        """Return the report on a copy, up to its first fault. A source that the defect changed is measured again."""
        baseline, cache, known = self.baseline, self.cache, self.shipped_truths
        if not _same_files(self.source, copy.source):
            baseline = _baseline(copy.source)
            cache = TapCache(baseline)
        if baseline is not self.baseline or self.weights_changed(copy, precision):
            known = {}
        asked = Examination(files=files, whole=baseline.ledger, until_fault=True, shipped_truths=known)
        return examine(baseline, copy.out, asked, Steps(), cache)

    def faults_of_files(self, copy: Copy) -> tuple[str, ...]:
        """Return the faults that a check finds in the files of a copy, before it runs a leg."""
        asked, graphs = Examination(whole=self.baseline.ledger), graphs_of(copy.out, LM)
        beside, exactness, derived = compare_files(self.baseline, copy.out, graphs, asked, Steps())
        return (*exactness.faults, *derived.faults, *beside)


def defects(config: GPT2Config) -> list[Mutation]:
    """Return every defect, whether a model has a place for it or not."""
    return [*MUTATIONS, *lossy(), *elements(config), *BESIDE, *of_blocks(config)]


def prove(
    source: str | os.PathLike[str],
    progress: Progress = lambda step, done, total: None,
    own_process: bool = False,
) -> Proof:
    """Seed every defect into a conversion of ``source``, and see whether ``check`` notices and names it; returns the
    results.

    Args:
        progress: told what is next, how many steps are done, and how many there are.
        own_process: whether the process does nothing else, so that it may be cut off from the Hub.

    Raises:
        CheckError: the source is not a local folder with a model.safetensors, which can be copied and changed.
        GPT2Error: it cannot be converted.
    """
    began = time.monotonic()
    checkpoint, ledger = read_source(source, SourceOptions())
    if own_process:
        hub.go_offline()
    if not (checkpoint.folder / "model.safetensors").is_file():
        raise CheckError(f"{source} cannot be seeded with defects: it has no single model.safetensors")
    config = ledger.config
    if config.head != LM:
        raise CheckError(f"{source} has the head {config.head}; defects are seeded into language models only")
    known = defects(config)
    possible = [mutation for mutation in known if mutation.possible(config)]
    done = iter(range(len(possible) + 3))
    with (
        on_threads(threads_for(ledger.parameters)),
        tempfile.TemporaryDirectory(prefix="gpt2onnx-prove-") as folder,
    ):
        total = len(possible) + 2
        progress("the sound conversion", next(done), total)
        laboratory = Laboratory(checkpoint.folder, Path(folder), Steps())
        sound = laboratory.examine(laboratory.spoilt(Mutation("none", (), lambda copy: None)), files=True).passed
        trials = []
        for mutation in possible:
            progress(mutation.name, next(done), total)
            trial = _trial(laboratory, mutation)
            if trial is not None:
                trials.append(trial)
        matrix = f"h.{config.n_layer // 2}.mlp.c_fc.weight"
        progress(f"the smallest change of {matrix} that is caught", next(done), total)
        smallest = _smallest_change(laboratory, matrix)
    seeded = {trial.defect for trial in trials}
    skipped = tuple(mutation.name for mutation in known if mutation.name not in seeded)
    seconds = time.monotonic() - began
    return Proof(os.fspath(source), sound, tuple(trials), skipped, matrix, smallest, seconds)


def _trial(laboratory: Laboratory, mutation: Mutation) -> Trial | None:
    """Judge one defect by everything and by the logits alone; returns None if it changes nothing."""
    if mutation.needs and laboratory.is_zero(mutation.needs):
        return None
    copy = laboratory.spoilt(mutation)
    if mutation.variant is None and laboratory.unspoilt(copy, mutation.precision):
        return None
    try:
        return _judged_by_files(laboratory, copy, mutation) if mutation.said else _judged(laboratory, copy, mutation)
    except GPT2Error as error:
        return Trial(mutation.name, mutation.causes, False, False, False, False, str(error), "", ended_in_error=True)


def _judged(laboratory: Laboratory, copy: Copy, mutation: Mutation) -> Trial:
    """Judge a defect that the logits show; returns the result."""
    bits = mutation.variant is None and laboratory.weights_changed(copy, mutation.precision)
    whole = laboratory.examine(copy, files=True, precision=mutation.precision)
    logits = whole.by_logits_alone()
    return Trial(
        defect=mutation.name,
        causes=mutation.causes,
        caught=not whole.passed and (bool(whole.exactness_faults) or not bits),
        caught_by_logits=not logits.passed,
        named=_named(whole, mutation),
        named_by_logits=_named(logits, mutation),
        said=logits.diagnosis.sentence if logits.diagnosis is not None else "",
        verdict=whole.verdict,
    )


def _judged_by_files(laboratory: Laboratory, copy: Copy, mutation: Mutation) -> Trial:
    """Judge a defect that no logits show; returns the result. Its file and key must be named."""
    faults = laboratory.faults_of_files(copy)
    said = next((fault for fault in faults if fault.startswith(mutation.said)), "")
    return Trial(
        defect=mutation.name,
        causes=(),
        caught=bool(faults),
        caught_by_logits=None,
        named=bool(said),
        named_by_logits=None,
        said=said or (faults[0] if faults else ""),
        verdict="",
    )


def _named(report: Report, mutation: Mutation) -> bool:
    """Tell whether the first cause that the diagnosis finds is the defect."""
    findings = report.diagnosis.findings if report.diagnosis is not None else ()
    return bool(findings) and findings[0].cause in mutation.causes


def _smallest_change(laboratory: Laboratory, matrix: str) -> float:
    """Return the smallest relative change of a whole matrix that the logits alone show, found by bisection."""

    def passes(change: float) -> bool:
        copy = laboratory.spoilt(Mutation("scaled", ("scaled",), scaled_matrix(matrix, change)))
        return laboratory.examine(copy, files=False).passed

    steps = int(math.log(CHANGE_MOST / CHANGE_LEAST, CHANGE_STEP)) + 1
    changes = [CHANGE_MOST / CHANGE_STEP**step for step in range(-1, steps)]
    return changes[bisect_left(changes[1:], True, key=passes)]


def _baseline(source: Path, step: Steps | None = None) -> Baseline:
    checkpoint, ledger = read_source(source, SourceOptions())
    return measure_source(checkpoint, ledger, None, Limits(), Level.QUICK, step or Steps())


def _same_files(a: Path, b: Path) -> bool:
    """Tell whether config and weights of two folders are the same."""
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in ("config.json", "model.safetensors"))
