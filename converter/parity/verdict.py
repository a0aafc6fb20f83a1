"""When logits match: the limits, with their reasons, and the report that holds each leg against its own."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from converter.parity.metrics import FLOAT32_EPSILON, Error

# Hugging Face and the reference in float64, at most this share of the logits' scale apart anywhere. Both only round,
# at 1e-15; what is wrong about the mathematics (an epsilon of 1e-5 for 1e-6, tanh for erf) shows from 1e-7 on.
HUGGINGFACE_FLOAT64_LIMIT = 1e-9

# The graph widened to float64. Its constants (attention scale, epsilon) stay as they were shipped, rounded to float32,
# which accounts for some 1e-8 to 1e-7.
GRAPH_FLOAT64_LIMIT = 1e-6

# A float32 leg may be this many times as far from the truth as Hugging Face's own float32 is. Other kernels sum in
# another order and approximate tanh and exp otherwise: factors below 2 in RMS were seen, more in the maximum, which is
# one number among millions. Errors of meaning are larger by thousands.
RMS_LIMIT = 4.0
MAXIMUM_LIMIT = 8.0

# Hugging Face's own float32 may be this share of the logits' scale from the truth, in RMS. Trained models are at 1e-7
# to 1e-5; beyond this one, float32 does not hold the model, and no other leg can be measured by it.
NOISE_LIMIT = 1e-2


class Kind(StrEnum):
    """What a leg is there for."""

    SEMANTICS = "semantics"  # float64 against float64: does it mean the same
    NOISE = "noise floor"  # Hugging Face in float32: how far rounding alone leads
    NUMERICS = "numerics"  # a float32 leg: is it as close as rounding allows


@dataclass(frozen=True)
class LegReport:
    """One leg and its verdict; errors relative to the scale of the logits.

    Attributes:
        name, kind: which leg, and what it is there for.
        rms, maximum: its distance from the float64 truth.
        rms_floors, maximum_floors: the same as multiples of the noise floor.
        worst_case: where the maximum was met.
        flips: positions whose likeliest token is another one than the truth's, near ties not counted.
        near_ties: those where the two candidates are closer than the error that is allowed for.
        positions: how many were compared.
        fault: why it fails; empty if it passes.
        seconds: that it took.
    """

    name: str
    kind: Kind
    rms: float
    maximum: float
    rms_floors: float
    maximum_floors: float
    worst_case: str
    flips: int
    near_ties: int
    positions: int
    fault: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """The verdict on a model folder.

    Attributes:
        source, out: what was compared with what.
        text: what the token ids are.
        scale: of the logits: RMS over positions of their standard deviation over the vocabulary.
        floor_rms, floor_maximum: the noise floor, relative to the scale.
        initializers: how many were compared bit for bit.
        exactness_faults: a sentence for each that differs.
        beside_faults: a sentence for each thing that the folder's config or tokenizer says otherwise than the source.
        legs: every leg.
        notes: sentences that qualify the verdict.
    """

    source: str
    out: str
    text: str
    provider: str
    scale: float
    floor_rms: float
    floor_maximum: float
    initializers: int
    exactness_faults: tuple[str, ...]
    beside_faults: tuple[str, ...]
    legs: tuple[LegReport, ...]
    notes: tuple[str, ...]

    @property
    def faults(self) -> tuple[str, ...]:
        """Every reason against a match, the most telling first."""
        return (
            self.exactness_faults
            + self.beside_faults
            + tuple(f"{leg.name} {leg.fault}" for leg in self.legs if leg.fault)
        )

    @property
    def passed(self) -> bool:
        """Whether the folder is the source."""
        return not self.faults

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.passed:
            return f"{self.out} is {self.source}: weights bit for bit, mathematics in float64, float32 within rounding"
        others = f" (and {len(self.faults) - 1} more)" if len(self.faults) > 1 else ""
        return f"{self.out} is NOT {self.source}: {self.faults[0]}{others}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"passed": self.passed, "verdict": self.verdict, "faults": list(self.faults), **asdict(self)}


@dataclass(frozen=True)
class Judge:
    """Scale and noise floor, against which every leg is held; both in units of the logits."""

    scale: float
    floor_rms: float
    floor_maximum: float

    @classmethod
    def of(cls, scale: float, noise: list[Error]) -> Judge:
        """The floor is the worse of Hugging Face's own ways to compute in float32, and no lower than float32's step."""
        least = FLOAT32_EPSILON * scale
        finite = [error for error in noise if math.isfinite(error.maximum)]  # the others are faults of their own
        return cls(scale, max([least, *(e.rms for e in finite)]), max([least, *(e.maximum for e in finite)]))

    def report(self, name: str, kind: Kind, errors: dict[str, Error], limit: float, seconds: float) -> LegReport:
        """Hold one leg's errors, case by case, against its limit (used for ``Kind.SEMANTICS``)."""
        total = sum(errors.values(), Error())
        # Two candidates that an allowed error could swap: each may move by it, in opposite directions.
        tie = 2 * MAXIMUM_LIMIT * self.floor_maximum
        flips = sum(margin > tie for margin in total.flips)
        worst = max(errors, key=lambda case: errors[case].maximum)
        fault = ""
        if total.misshapen:
            fault = f"gives logits of another shape than the truth ({worst})"
        elif not math.isfinite(total.maximum):
            fault = f"gives logits that are NaN or infinite ({worst}): the model overflows float32"
        elif kind is Kind.NOISE and not total.rms <= NOISE_LIMIT * self.scale:
            share = total.rms / self.scale
            fault = f"is {share:.1e} of the logits' scale from the truth in RMS: float32 does not hold this model"
        elif kind is Kind.SEMANTICS and not total.maximum <= limit * self.scale:
            share = total.maximum / self.scale
            fault = f"is {share:.1e} of the logits' scale from the truth ({worst}); at most {limit:.0e} is rounding"
        elif kind is Kind.NUMERICS and not total.rms <= RMS_LIMIT * self.floor_rms:
            times = total.rms / self.floor_rms
            fault = (
                f"is {times:.1f} × the noise floor from the truth in RMS ({worst}); at most {RMS_LIMIT:g} × is rounding"
            )
        elif kind is Kind.NUMERICS and not total.maximum <= MAXIMUM_LIMIT * self.floor_maximum:
            times = total.maximum / self.floor_maximum
            fault = (
                f"is {times:.1f} × the noise floor from the truth ({worst}); at most {MAXIMUM_LIMIT:g} × is rounding"
            )
        elif flips:
            fault = f"prefers another token at {flips} of {total.positions} positions, and not by a near tie"
        return LegReport(
            name=name,
            kind=kind,
            rms=total.rms / self.scale,
            maximum=total.maximum / self.scale,
            rms_floors=total.rms / self.floor_rms,
            maximum_floors=total.maximum / self.floor_maximum,
            worst_case=worst,
            flips=flips,
            near_ties=len(total.flips) - flips,
            positions=total.positions,
            fault=fault,
            seconds=seconds,
        )
