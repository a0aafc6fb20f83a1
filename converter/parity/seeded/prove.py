"""The check is checked: defects are seeded into copies of a conversion, and each must be caught and named."""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.options import SourceOptions
from converter.errors import CheckError, GPT2Error
from converter.folder.convert import convert
from converter.parity.baseline import Baseline, measure_source
from converter.parity.examine import Examination, TapCache, examine
from converter.parity.legs.cases import Level
from converter.parity.legs.leg import one_thread
from converter.parity.report.report import Report
from converter.parity.seeded.mutations import MUTATIONS, Copy, Mutation, elements, scaled_matrix
from converter.parity.verdict.limits import Limits
from converter.runtime.session import model_file
from converter.weights.ledger import read_source
from reference.head import LM

# The smallest change of a weight matrix that is caught is looked for between these, to within this factor.
CHANGE_LEAST, CHANGE_MOST, CHANGE_STEP = 1e-8, 1e-2, 2.0

SMALL_MODEL = 10_000_000  # parameters, below which torch's threads cost more than they save

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trial:
    """One defect, seeded.

    Attributes:
        defect: its name.
        causes: what a diagnosis may call it.
        caught: with all files compared; changed weights, by their bits.
        caught_by_logits: with nothing but the logits to go by.
        named, named_by_logits: whether the diagnosis named the cause.
        said: what the diagnosis said, from the logits alone; or the error that ended the trial.
        verdict: with all files compared.
        ended_in_error: whether the check gave no verdict at all, which is a miss.
    """

    defect: str
    causes: tuple[str, ...]
    caught: bool
    caught_by_logits: bool
    named: bool
    named_by_logits: bool
    said: str
    verdict: str
    ended_in_error: bool = False

    @property
    def passed(self) -> bool:
        """Whether nothing was missed."""
        return self.caught and self.caught_by_logits and self.named and self.named_by_logits


@dataclass(frozen=True)
class Proof:
    """What became of all defects.

    Attributes:
        source: the checkpoint.
        sound: whether the conversion passed before it was spoilt.
        trials: one for each defect.
        skipped: defects that this model has no place for, or that would change nothing in it.
        matrix: the weight whose smallest detectable change was looked for.
        smallest: that change, relative, as the logits alone see it.
        seconds: that it took.
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
        """Whether every defect was caught and named, and the sound conversion passed."""
        return self.sound and all(trial.passed for trial in self.trials)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"schema": "gpt2onnx/proof/1", "passed": self.passed, **asdict(self)}


class Laboratory:
    """A source, its conversion and its baseline, of which copies are spoilt one after the other."""

    def __init__(self, source: Path, place: Path, step: Callable[[str], None]) -> None:
        self.source, self.place = source, place
        convert(source, place / "sound", scan=False)
        self.baseline = _baseline(source, step)
        self.cache = TapCache(self.baseline)
        self.config = self.baseline.ledger.config

    def spoilt(self, mutation: Mutation) -> Copy:
        """A fresh copy with the defect in it."""
        shutil.rmtree(self.place / "copy", ignore_errors=True)
        copy = Copy(self.place / "copy" / "source", self.place / "copy" / "out", self.config)
        shutil.copytree(self.source, copy.source)
        if mutation.variant is not None:
            mutation.variant(copy.source)
            convert(copy.source, copy.out, scan=False)
        else:
            shutil.copytree(self.place / "sound", copy.out, symlinks=True)
        mutation.apply(copy)
        return copy

    def is_zero(self, name: str) -> bool:
        """Whether a weight of the middle layer is all zeros, so that leaving it out changes nothing."""
        weight = self.baseline.ledger.weights[name.format(i=self.config.n_layer // 2)]
        return not any(chunk.any() for chunk in weight.chunks())

    def unspoilt(self, copy: Copy) -> bool:
        """Whether the defect changed nothing."""
        same = _same_files(self.source, copy.source) and not self.weights_changed(copy)
        return same and filecmp.cmp(model_file(copy.out), model_file(self.place / "sound"), shallow=False)

    def weights_changed(self, copy: Copy) -> bool:
        """Whether the graph's initializers are not the sound ones any more."""
        sound, spoilt = (model_file(out).with_name("model.onnx_data") for out in (self.place / "sound", copy.out))
        return not filecmp.cmp(sound, spoilt, shallow=False)

    def examine(self, copy: Copy, files: bool) -> Report:
        """The verdict on a copy; a source that the defect changed is measured anew."""
        baseline, cache = self.baseline, self.cache
        if not _same_files(self.source, copy.source):
            baseline = _baseline(copy.source)
            cache = TapCache(baseline)
        return examine(baseline, copy.out, Examination(files=files, whole=baseline.ledger), lambda step: None, cache)


def prove(source: str | os.PathLike[str], progress: Progress = lambda step, done, total: None) -> Proof:
    """Seed every defect into a conversion of ``source``, and see whether ``check`` notices and names it.

    Raises:
        CheckError: the source is not a local folder with a model.safetensors, which can be copied and changed.
        GPT2Error: it cannot be converted.
    """
    began = time.monotonic()
    checkpoint, ledger = read_source(source, SourceOptions())
    if not (checkpoint.folder / "model.safetensors").is_file():
        raise CheckError(f"{source} cannot be seeded with defects: it has no single model.safetensors")
    config = ledger.config
    if config.head != LM:
        raise CheckError(f"{source} has the head {config.head}; defects are seeded into language models only")
    known = [*MUTATIONS, *elements(config)]
    possible = [mutation for mutation in known if mutation.possible(config)]
    done = iter(range(len(possible) + 3))
    small = ledger.parameters < SMALL_MODEL
    with (
        one_thread() if small else nullcontext(),
        tempfile.TemporaryDirectory(prefix="gpt2onnx-prove-") as folder,
    ):
        total = len(possible) + 2
        progress("the sound conversion", next(done), total)
        laboratory = Laboratory(checkpoint.folder, Path(folder), lambda step: None)
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
    """One defect, judged by everything and by the logits alone; nothing if it changes nothing."""
    if mutation.needs and laboratory.is_zero(mutation.needs):
        return None
    copy = laboratory.spoilt(mutation)
    if laboratory.unspoilt(copy):
        return None
    bits = mutation.variant is None and laboratory.weights_changed(copy)
    try:
        whole = laboratory.examine(copy, files=True)
    except GPT2Error as error:
        return Trial(mutation.name, mutation.causes, False, False, False, False, str(error), "", ended_in_error=True)
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


def _named(report: Report, mutation: Mutation) -> bool:
    """Whether the first thing that the diagnosis says is the defect."""
    findings = report.diagnosis.findings if report.diagnosis is not None else ()
    return bool(findings) and findings[0].cause in mutation.causes


def _smallest_change(laboratory: Laboratory, matrix: str) -> float:
    """By halving: the smallest factor off 1 of a whole matrix that the logits alone betray."""
    caught, change = CHANGE_MOST * CHANGE_STEP, CHANGE_MOST
    while change >= CHANGE_LEAST:
        copy = laboratory.spoilt(Mutation("scaled", ("scaled",), scaled_matrix(matrix, change)))
        if laboratory.examine(copy, files=False).passed:
            return caught
        caught, change = change, change / CHANGE_STEP
    return caught


def _baseline(source: Path, step: Callable[[str], None] = lambda step: None) -> Baseline:
    checkpoint, ledger = read_source(source, SourceOptions())
    return measure_source(checkpoint, ledger, None, Limits(), Level.QUICK, step)


def _same_files(a: Path, b: Path) -> bool:
    """Whether config and weights of two folders are the same."""
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in ("config.json", "model.safetensors"))
