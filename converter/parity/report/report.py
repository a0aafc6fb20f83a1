"""Hold what a check found as data; terminal, HTML, JSON and JUnit are views of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from converter.parity.legs.identity import LegKind, Runner
from converter.parity.verdict.judge import LegReport

if TYPE_CHECKING:
    from converter.parity.baseline import Baseline
    from converter.parity.diagnosis.diagnose import Diagnosis
    from converter.parity.diagnosis.taps import Localisation
    from converter.parity.outputs import OutputReport
    from converter.parity.verdict.found import Weights
    from converter.parity.verdict.judge import Judge, MeasuredLeg

# The schema of the JSON that ``check --json`` prints; docs/check.md describes it. The number changes when a key is
# renamed or removed, but not when one is added.
SCHEMA = "gpt2onnx/check/2"


# What the verdict says if the graph is not to blame, by ``Diagnosis.subject``.
DISAGREEMENTS = {
    "Hugging Face": "the graph and the from-scratch reference agree, and Hugging Face computes something else",
    "reference": "the graph and Hugging Face agree, and gpt2onnx's own reference does not: a fault of gpt2onnx",
}


def said(diagnosis: Diagnosis | None, faults: Sequence[str]) -> str:
    """Return why something is a mismatch: the cause, or else the first fault and where it arises."""
    if diagnosis is not None and diagnosis.explains:
        return diagnosis.sentence
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    where = f"; {diagnosis.sentence}" if diagnosis is not None and diagnosis.sentence else ""
    return f"{faults[0]}{more}{where}"


@dataclass(frozen=True)
class Details:
    """The measurements that the HTML report draws and JSON leaves out: every position of every leg."""

    baseline: Baseline
    measured: tuple[MeasuredLeg, ...]
    judge: Judge


# The comparisons of a folder's files, as test cases.
FILES = ("initializers, bit for bit", "config and tokenizer", "files as convert writes them")


@dataclass(frozen=True)
class Comparison:
    """A comparison of files, which has a row beside the legs.

    Attributes:
        case: its name as a test case, which no number is part of.
        name: what was compared.
        proves: what a match proves.
        faults: a sentence for each difference.
        left: the number of things that could not be compared.
    """

    case: str
    name: str
    proves: str
    faults: tuple[str, ...]
    left: int = 0

    @property
    def status(self) -> str:
        """Return the result in a word."""
        return "FAIL" if self.faults else f"{self.left} not compared" if self.left else "pass"


@dataclass(frozen=True)
class Compared:
    """An export of another program, and what is known of it besides its legs.

    Attributes:
        name: the file or folder.
        files: its ONNX files.
        interface: what each file takes, in a few words.
        precision: of its weights: ``fp32``, ``fp16``, ``bfloat16``, ``int8`` or ``int4``.
        weights: what was found of the source's weights; None if only the logits decide.
        faults: why it cannot be run, or not in all cases.
        localisation, diagnosis: where it goes wrong, and why; None if it does not, or if that cannot be said.
    """

    name: str
    files: tuple[str, ...]
    interface: tuple[str, ...]
    precision: str
    weights: Weights | None
    faults: tuple[str, ...]
    localisation: Localisation | None = None
    diagnosis: Diagnosis | None = None

    @property
    def comparison(self) -> tuple[Comparison, ...]:
        """Return the comparison of its weights, and a row for a file that cannot be run."""
        rows = [Comparison(f"{self.name} runs", "each case", "can be run", self.faults)] if self.faults else []
        if self.weights is not None:
            name = f"{self.weights.compared} of {self.weights.total} weights"
            case = f"weights of {self.name}, by content"
            rows.append(Comparison(case, name, "by content", self.weights.faults, len(self.weights.missing)))
        return tuple(rows)


@dataclass(frozen=True)
class Report:
    """The verdict on a model folder, or on an export of another program.

    Attributes:
        source, out: the source, and the model folder.
        level: how much was run.
        text: a description of the text.
        settings: versions, machine, ONNX Runtime's provider and session options.
        limits: the limits of the verdict.
        scale: the scale of the logits: the RMS over positions of their standard deviation over the vocabulary.
        floor_rms, floor_maximum: the noise floor, relative to the scale.
        exactness: whether the initializers were compared bit for bit.
        initializers: the number of initializers that were compared.
        exactness_faults: a sentence for each initializer that differs.
        beside_faults: a sentence for each thing in the folder's config or tokenizer that differs from the source.
        reproduction_faults: a sentence for each thing in a file that ``convert`` does not write for this source.
        files: the number of files that were compared in this way; 0 for an export of another program.
        allowed: the differences that were allowed.
        unproven: what was not compared or not judged, and why, as a part of the verdict; else empty.
        run_faults: a sentence for each graph that was edited and can no longer be run.
        outputs: what the graphs return beside their answers: one report for each output.
        legs: all legs.
        localisation: how the error grows from operation to operation; only on a mismatch or if asked for.
        diagnosis: what was found to be wrong; only on a mismatch.
        notes: sentences that qualify the verdict.
        seconds: the time that the check took.
        details: the measurements for the HTML report.
        export: what is known of ``out`` if it is an export of another program; None for a folder of gpt2onnx.
        also: the exports that were compared beside it.
    """

    source: str
    out: str
    level: str
    text: str
    settings: Mapping[str, Any]
    limits: Mapping[str, float]
    scale: float
    floor_rms: float
    floor_maximum: float
    exactness: bool
    initializers: int
    exactness_faults: tuple[str, ...]
    beside_faults: tuple[str, ...]
    reproduction_faults: tuple[str, ...]
    files: int
    allowed: tuple[str, ...]
    unproven: str
    run_faults: tuple[str, ...]
    outputs: tuple[OutputReport, ...]
    legs: tuple[LegReport, ...]
    localisation: Localisation | None
    diagnosis: Diagnosis | None
    notes: tuple[str, ...]
    seconds: float
    details: Details | None = field(default=None, repr=False, compare=False)
    export: Compared | None = None
    also: tuple[Compared, ...] = ()

    def __repr__(self) -> str:
        return f"Report({self.headline}: {self.verdict})"

    def _repr_html_(self) -> str:
        from converter.parity.report.notebook import html

        return html(self)

    @property
    def faults(self) -> tuple[str, ...]:
        """Return every reason against a match, the most telling first."""
        return (
            self.exactness_faults
            + self.reproduction_faults
            + self.beside_faults
            + self.run_faults
            + tuple(f"{leg.name} {leg.fault}" for leg in self.legs if leg.fault and not leg.export)
            + tuple(output.fault for output in self.outputs if output.fault)
        )

    @property
    def other_faults(self) -> tuple[str, ...]:
        """Return a sentence for each other export that differs from the source. They say nothing about the folder."""
        return tuple(sentence for other in self.also for sentence in [self._against(other)] if sentence)

    def _against(self, other: Compared) -> str:
        """Return what is wrong with another export; empty if nothing is."""
        guilty = [leg for leg in self.legs if leg.fault and leg.export == other.name]
        differs = other.weights.faults if other.weights is not None else ()
        if not guilty and not other.faults and not differs:
            return ""
        if guilty and all(leg.costs_more for leg in guilty) and not other.faults and not differs:
            return f"{other.name} is over its {other.precision} budget: it {guilty[0].fault}"
        seen = [*differs, *other.faults, *(f"it {leg.fault}" for leg in guilty)]
        return f"{other.name} is NOT {self.source}: {said(other.diagnosis, seen)}"

    @property
    def matches(self) -> bool:
        """Tell whether the folder is the source, whatever other exports are."""
        return not self.faults

    @property
    def passed(self) -> bool:
        """Tell whether the folder is the source, and so is every other export that was compared."""
        return self.matches and not self.other_faults

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Return the comparisons of files; none if files were not compared."""
        others = tuple(
            replace(row, name=f"{row.name} of {other.name}") for other in self.also for row in other.comparison
        )
        if self.export is not None:
            return self.export.comparison + others
        if not self.exactness:
            return others
        weights, beside, written = FILES
        rows = [
            Comparison(weights, f"{self.initializers} initializers", "bit for bit", self.exactness_faults),
            Comparison(beside, "config and tokenizer", "as the source's", self.beside_faults),
        ]
        if self.files:
            rows.append(Comparison(written, f"{self.files} files", "as convert writes them", self.reproduction_faults))
        return (*rows, *others)

    @property
    def over_budget(self) -> tuple[LegReport, ...]:
        """Return the legs over their budget, if nothing else is wrong with the folder."""
        dear = tuple(leg for leg in self.legs if leg.fault and leg.costs_more and not leg.export)
        return dear if len(dear) == len(self.faults) else ()

    @property
    def headline(self) -> str:
        """Return the verdict in a word or two."""
        return "MATCH" if self.passed else "OVER BUDGET" if self.over_budget else "MISMATCH"

    @property
    def verdict(self) -> str:
        """Return the verdict in one sentence."""
        if self.matches and self.other_faults:
            more = f" (and {len(self.other_faults) - 1} more)" if len(self.other_faults) > 1 else ""
            return f"{self.out} is {self.source}, but {self.other_faults[0]}{more}"
        if self.over_budget:
            names = " and ".join(dict.fromkeys(leg.precision for leg in self.over_budget))
            several = len({leg.precision for leg in self.over_budget}) > 1
            return (
                f"{self.out} computes what {self.source} does, but is over its {names} budget{'s' if several else ''}: "
                f"{self.over_budget[0].name} {self.over_budget[0].fault}"
            )
        if self.passed:
            return f"{self.out} is {self.source}: {', '.join(self._proven)}"
        cause = self.diagnosis.sentence if self.diagnosis is not None else ""
        if self.diagnosis is not None and self.diagnosis.subject in DISAGREEMENTS:
            who = DISAGREEMENTS[self.diagnosis.subject]
            return f"{self.out} is not proven to be {self.source}: {who}{f' ({cause})' if cause else ''}"
        return f"{self.out} is NOT {self.source}: {said(self.diagnosis, self.faults)}"

    @property
    def _proven(self) -> list[str]:
        """Return what was proven, part by part."""
        own = [leg for leg in self.legs if leg.runner in (Runner.RUNTIME, Runner.WIDENED) and not leg.export]
        # A precision may have been run in two ways.
        lossy = list(dict.fromkeys(leg.precision for leg in own if leg.kind is LegKind.LOSSY))
        exact = any(leg.kind is LegKind.NUMERICS for leg in own)
        weights = "weights bit for bit" if exact else "weights rounded to nearest"
        if self.export is not None and self.export.weights is not None:
            weights = self.export.weights.sentence
        return [
            weights if self.exactness else "weights not compared",
            *(["mathematics in float64"] if any(leg.runner is Runner.WIDENED for leg in own) else []),
            *(["float32 within rounding"] if exact else []),
            *([f"{len(self.outputs)} outputs beside the answer"] if self.outputs else []),
            *([f"{' and '.join(lossy)} within {'their budgets' if lossy[1:] else 'its budget'}"] if lossy else []),
            *([f"{', '.join(self.allowed_files)} allowed to differ"] if self.allowed else []),
            *([self.unproven] if self.unproven else []),
        ]

    @property
    def allowed_files(self) -> list[str]:
        """Return the files in which something was allowed to differ."""
        return list(dict.fromkeys(said.partition(":")[0] for said in self.allowed))

    def by_logits_alone(self) -> Report:
        """Return the verdict of a check that compares no files. The verdicts on the legs stay the same."""
        return replace(
            self,
            exactness=False,
            initializers=0,
            exactness_faults=(),
            beside_faults=(),
            reproduction_faults=(),
            files=0,
            allowed=(),
            unproven="",
            also=(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON; docs/check.md says what each key means."""
        values = {name: value for name, value in vars(self).items() if name != "details"}
        plain = asdict(Report(**values))
        del plain["details"]
        for values, leg in zip(plain["legs"], self.legs, strict=True):
            values["status"] = leg.status
        for row, other in zip(plain["also"], self.also, strict=True):
            row["passed"] = not self._against(other)
        verdict = {"passed": self.passed, "verdict": self.verdict, "faults": list(self.faults)}
        return {"schema": SCHEMA, **verdict, **plain}


def together(reports: Sequence[Report], heads: Sequence[str]) -> Report:
    """Join the reports on the graphs of one folder; returns the first one, with the legs and faults of the others."""
    first, *others = reports
    for report, head in zip(others, heads[1:], strict=True):
        first = replace(
            first,
            initializers=first.initializers + report.initializers,
            exactness_faults=first.exactness_faults + report.exactness_faults,
            run_faults=first.run_faults + report.run_faults,
            outputs=first.outputs + report.outputs,
            legs=first.legs + tuple(replace(leg, name=f"{leg.name}, {head}") for leg in report.legs),
            localisation=first.localisation if first.diagnosis or not report.diagnosis else report.localisation,
            diagnosis=first.diagnosis or report.diagnosis,
            notes=(*first.notes, *(note for note in report.notes if note not in first.notes)),
        )
    return first
