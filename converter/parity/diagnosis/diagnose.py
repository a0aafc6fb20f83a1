"""Find out why a graph is not its source, by trying hypotheses at each operation whose output is wrong.

An operation is guilty if its own input and the source's weights do not give its output. A hypothesis is the same
operation with one thing changed. The hypothesis that gives the graph's output is the cause; how closely it does so is
the evidence. Only logits and taps are used, never the graph or its weights.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

from converter.parity.diagnosis.hypotheses import GUESSES, Cause
from converter.parity.diagnosis.operations import Operation, Operations
from converter.parity.diagnosis.taps import Localisation
from converter.parity.legs.half import FLOAT16_MAXIMUM
from converter.parity.verdict.metrics import FLOAT32_EPSILON

# The largest error of an operation, as a share of the RMS of its right output: for a graph in float64, which still has
# its float32 constants, and for a graph in float32. A rounded tensor gives 1e-4, a changed element of a weight 1e-5
# and more.
FLOAT64_LIMIT = 1e-6
FLOAT32_LIMIT = 1e-3

# A hypothesis is confirmed if the error it leaves is within the limit and at most this share of the error before.
# Otherwise an error just above the limit could be explained by anything.
EXPLAINED = 0.1

# Hypotheses that leave an error within this factor of the best one are equally good, and the first is taken: several
# names of one function are listed with the most used name first.
AS_GOOD = 10.0

# Hypotheses are tried for this many operations, in the order of the model. After the repair one can check again.
MAX_DIAGNOSED = 64

UNEXPLAINED = "unexplained"  # the cause where no hypothesis held


class Subject(StrEnum):
    """The one of the three that disagrees with the other two."""

    GRAPH = "graph"
    HUGGINGFACE = "Hugging Face"
    REFERENCE = "reference"


@dataclass(frozen=True)
class Finding:
    """A cause, and where it was found.

    Attributes:
        cause: its key; ``unexplained`` if no hypothesis held.
        sentence: for the user.
        operations: the taps that it explains.
        error: the largest error of these operations, as a share of the right output.
        left: the error that is left if the hypothesis holds.
    """

    cause: str
    sentence: str
    operations: tuple[str, ...]
    error: float
    left: float

    @property
    def explains(self) -> bool:
        """Tell whether it says what is wrong, and not only where."""
        return self.cause != UNEXPLAINED

    @property
    def evidence(self) -> str:
        """Return the figures that support the sentence."""
        if not self.explains:
            return f"off by {self.error:.1e} of its size at most"
        return f"off by {self.error:.1e} of its size at most; with this cause repaired, by {self.left:.1e}"


@dataclass(frozen=True)
class Diagnosis:
    """The result of a diagnosis.

    Attributes:
        subject: whose operations were examined. ``reference`` means that the graph and Hugging Face agree against it.
        case: the name of the case that was fed.
        findings: the causes, in the order of the model.
        maxima: for each layer the largest absolute value of the truth, to be compared with float16's maximum.
        examined: the number of operations that were examined.
        guilty: the number of operations with a wrong output; the first ``MAX_DIAGNOSED`` of them are explained.
        precision: of the graph that was examined, if it is another than fp32.
    """

    subject: Subject
    case: str
    findings: tuple[Finding, ...]
    maxima: dict[str, float]
    examined: int
    guilty: int
    precision: str = ""

    @property
    def explains(self) -> bool:
        """Tell whether the first finding says what is wrong."""
        return bool(self.findings) and self.findings[0].explains

    @property
    def sentence(self) -> str:
        """Return the first finding as a sentence; empty if there is none."""
        if not self.findings:
            return ""
        more = f" (and {len(self.findings) - 1} more)" if len(self.findings) > 1 else ""
        where = f"in the {self.precision} graph, " if self.precision else ""
        return where + self.findings[0].sentence + more


def diagnose(
    given: Operations, limit: float, localisation: Localisation, subject: Subject = Subject.GRAPH
) -> Diagnosis:
    """Examine every operation by itself and explain those whose output is wrong.

    Args:
        given: the operations of one case.
        limit: the largest error that an operation may have, ``FLOAT64_LIMIT`` or ``FLOAT32_LIMIT``.
        subject: whose operations they are.
    """
    names = given.names()
    suspects: list[Suspect] = []
    guilty = 0
    for tap in names:
        op = given[tap]
        error = op.error()
        if error <= limit or not all(bool(x.isfinite().all()) for x in op.inputs):
            continue  # the operation that made the NaN is to blame, not this one
        guilty += 1
        if guilty <= MAX_DIAGNOSED:
            suspects.append(Suspect(tap, error, _explain(op, given, error, limit) or {_unexplained(op): math.nan}))
    return Diagnosis(subject, localisation.case, tuple(_findings(suspects)), _maxima(localisation), len(names), guilty)


@dataclass(frozen=True)
class Suspect:
    """A guilty operation, its error, and each cause that would explain it with the error that the cause leaves."""

    tap: str
    error: float
    causes: dict[Cause, float]


def _explain(op: Operation, given: Operations, error: float, limit: float) -> dict[Cause, float]:
    """Return the confirmed hypotheses of the first guess that has any, those that are about equally good."""
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
    """Return as few causes as explain all suspects.

    The cause that explains most is taken first. If several explain as many, the one that was tried first is taken. Two
    hypotheses can be the same in one layer (a scale of 1/√4, and division by the number of layer 2), but not in all.
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
    """Describe the wrong output when no hypothesis explains it."""
    expected = op.compute()
    if op.misshapen(expected):
        found, wanted = list(op.output.shape), [*op.real.shape, expected.shape[-1]]
        return Cause("shape", f"{op.tap} has the shape {found}; its input gives {wanted}")
    lost = ~op.output[op.real].isfinite()
    if not bool(lost.any()):
        why = "has another output than its inputs and weights give, and no known cause explains it"
        return Cause(UNEXPLAINED, f"{op.tap} ({op.sort}) {why}")
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
    """Return the largest absolute value of each layer."""
    largest: dict[str, float] = {}
    for tap in localisation.taps:
        place = "model" if tap.layer is None else f"h.{tap.layer}"
        largest[place] = max(largest.get(place, 0.0), tap.largest)
    return largest
