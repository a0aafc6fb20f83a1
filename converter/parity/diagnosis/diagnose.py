"""Why a graph is not its source: hypotheses, tried at each operation that puts out what it should not.

An operation is guilty if its output is not what its own input and the source's weights give. A hypothesis is the same
operation with something changed; the one that gives the graph's output is the cause, and how closely it does is the
evidence. Only logits and taps are looked at, never the graph or its weights.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

from converter.parity.diagnosis.hypotheses import GUESSES, Cause
from converter.parity.diagnosis.operations import Operation, Operations
from converter.parity.diagnosis.taps import FLOAT16_MAXIMUM, Localisation
from converter.parity.verdict.metrics import FLOAT32_EPSILON

# Largest difference, as a share of the RMS of the output, by which an operation may miss what it should put out: of a
# graph in float64 that ships float32 constants, and of one in float32. A rounded tensor is at 1e-4, a changed element
# of a weight at 1e-5 and more.
FLOAT64_LIMIT = 1e-6
FLOAT32_LIMIT = 1e-3

# A hypothesis is confirmed if it leaves no more than is allowed, and no more than this share of the error: an error
# just above what is allowed could otherwise be explained by anything.
EXPLAINED = 0.1

# Of hypotheses that leave about as little as the best one, within this factor, the first is taken: names of one and the
# same function stand in the order in which they are used.
AS_GOOD = 10.0

# For so many operations hypotheses are tried, the first in the model first: who repairs those will ask again.
MAX_DIAGNOSED = 64


class Subject(StrEnum):
    """Who computes something else than the other two."""

    GRAPH = "graph"
    HUGGINGFACE = "Hugging Face"
    REFERENCE = "reference"


@dataclass(frozen=True)
class Finding:
    """A cause and where it was found.

    Attributes:
        cause: its key; ``unexplained`` if no hypothesis held.
        sentence: for the user.
        operations: the taps that it explains.
        error: the largest share by which they miss what they should put out.
        left: of that, what is left once the hypothesis is granted.
    """

    cause: str
    sentence: str
    operations: tuple[str, ...]
    error: float
    left: float

    @property
    def evidence(self) -> str:
        """Figures for the sentence."""
        if self.cause == "unexplained":
            return f"off by {self.error:.1e} of its size at most"
        return f"off by {self.error:.1e} of its size at most; granted that, by {self.left:.1e}"


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        subject: whose operations were looked at; of ``reference``, that the graph and Hugging Face agree against it.
        case: what was fed.
        findings: the first in the model first.
        maxima: for each layer the largest absolute value of the truth, which 65504 is the most that float16 holds.
        examined: how many operations were looked at.
        guilty: how many of them put out what they should not; of these the first ``MAX_DIAGNOSED`` are explained.
    """

    subject: Subject
    case: str
    findings: tuple[Finding, ...]
    maxima: dict[str, float]
    examined: int
    guilty: int

    @property
    def sentence(self) -> str:
        """The first finding, or nothing."""
        if not self.findings:
            return ""
        more = f" (and {len(self.findings) - 1} more)" if len(self.findings) > 1 else ""
        return self.findings[0].sentence + more


def diagnose(
    given: Operations, limit: float, localisation: Localisation, subject: Subject = Subject.GRAPH
) -> Diagnosis:
    """Look at every operation by itself, and say what is wrong with those that are."""
    names = given.names()
    suspects: list[Suspect] = []
    guilty = 0
    for tap in names:
        op = given[tap]
        error = op.error()
        if error <= limit or not all(bool(x.isfinite().all()) for x in op.inputs):
            continue  # what comes after a NaN is not to blame
        guilty += 1
        if guilty <= MAX_DIAGNOSED:
            suspects.append(Suspect(tap, error, _explain(op, given, error, limit) or {_unexplained(op): math.nan}))
    return Diagnosis(subject, localisation.case, tuple(_findings(suspects)), _maxima(localisation), len(names), guilty)


@dataclass(frozen=True)
class Suspect:
    """A guilty operation, its error, and the causes that would explain it with what each leaves of the error."""

    tap: str
    error: float
    causes: dict[Cause, float]


def _explain(op: Operation, given: Operations, error: float, limit: float) -> dict[Cause, float]:
    """The hypotheses of the first guess that gives what the graph gave, all that do so about equally well."""
    if op.misshapen(op.compute()):
        return {}
    for guess in GUESSES[op.sort]:
        tried = ((cause, hypothesis.error()) for cause, hypothesis in guess(op, given))
        held = [(cause, left) for cause, left in tried if left <= min(limit, EXPLAINED * error)]
        if held:
            enough = AS_GOOD * max(min(left for _, left in held), FLOAT32_EPSILON**2)
            return {cause: left for cause, left in held if left <= enough}
    return {}


def _findings(suspects: list[Suspect]) -> list[Finding]:
    """As few causes as explain all suspects: the one that explains most first, of equal ones the first that was tried.

    Two hypotheses can be one and the same in one layer (a scale of 1/√4, and the number of layer 2), but not in all.
    """
    findings: list[Finding] = []
    left = suspects
    while left:
        counts = Counter(cause for suspect in left for cause in suspect.causes)
        cause = max(counts, key=lambda cause: counts[cause])
        findings.append(_finding(cause, [suspect for suspect in left if cause in suspect.causes]))
        left = [suspect for suspect in left if cause not in suspect.causes]
    order = [suspect.tap for suspect in suspects]
    return sorted(findings, key=lambda finding: order.index(finding.operations[0]))


def _unexplained(op: Operation) -> Cause:
    """What can be said without a cause."""
    expected = op.compute()
    if op.misshapen(expected):
        found, wanted = list(op.output.shape), [*op.real.shape, expected.shape[-1]]
        return Cause("shape", f"{op.tap} is of shape {found}; its input gives {wanted}")
    lost = ~op.output[op.real].isfinite()
    if not bool(lost.any()):
        return Cause("unexplained", f"{op.tap} ({op.sort}) does not put out what its input and weights give")
    what = "NaN" if bool(op.output.isnan().any()) else "infinite"
    columns, count = lost.any(dim=0), int(lost.any(dim=0).sum())
    where = f"column {int(columns.float().argmax())}" if count == 1 else f"{count} columns"
    largest = float(expected[op.real].abs().max())
    why = f"its largest value should be {largest:.3g}"
    if largest > FLOAT16_MAXIMUM:
        why += f", more than the {FLOAT16_MAXIMUM:.0f} that float16 holds"
    elif bool(lost.all(dim=0).any()) and op.weight is not None:
        why += ", so that its weight or bias holds a number that is not finite or far too large"
    return Cause("overflow", f"{op.tap} is {what} in {where}; {why}")


def _finding(cause: Cause, places: list[Suspect]) -> Finding:
    taps = tuple(place.tap for place in places)
    where = taps[0] if len(taps) == 1 else f"{taps[0]} and {len(taps) - 1} more"
    left = max(place.causes[cause] for place in places)
    return Finding(cause.key, cause.sentence.replace("{}", where), taps, max(place.error for place in places), left)


def _maxima(localisation: Localisation) -> dict[str, float]:
    """The largest absolute value of each layer."""
    largest: dict[str, float] = {}
    for tap in localisation.taps:
        place = "model" if tap.layer is None else f"h.{tap.layer}"
        largest[place] = max(largest.get(place, 0.0), tap.largest)
    return largest
