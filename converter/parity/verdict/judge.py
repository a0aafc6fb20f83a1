"""Judge whether logits match: compare every leg with its limits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

import numpy as np

from converter.parity.legs.cases import Case
from converter.parity.legs.identity import FLOAT32, LOSSY, Identity, LegKind
from converter.parity.verdict.limits import Limits
from converter.parity.verdict.metrics import FLOAT32_EPSILON, Distance, joined
from converter.weights.precisions import Budget


class Status(StrEnum):
    """The verdict on a leg in a word, the same in every view of a report."""

    PASS = "pass"
    FAULT = "FAIL"
    IN_BUDGET = "in budget"
    OVER_BUDGET = "over budget"
    YARDSTICK = "yardstick"  # a measure for other legs, not judged itself


@dataclass(frozen=True)
class LegReport(Identity):
    """One leg and its verdict. Errors are shares of the scale of the logits, probabilities are absolute.

    Attributes:
        cases: the cases that it was run on.
        rms, maximum: its distance from the float64 truth.
        p50, p99, p999: the errors that 50 %, 99 % and 99.9 % of all logits do not exceed.
        rms_floors, maximum_floors: RMS and maximum as multiples of the noise floor.
        worst_case: the case with the maximum.
        positions: the number of positions that were compared.
        flips: the number of positions whose likeliest token is not the truth's; near ties are not counted.
        near_ties: the number of those where the two candidates are closer than the allowed error.
        top_k: the share of the truth's five likeliest tokens that are also among the leg's.
        kl_mean, kl_99, kl_999, kl_maximum: the KL divergence KL(truth‖leg) at a position, in nats.
        dp_rms, dp_99, dp_maximum: the error in the probability of the token that follows.
        scored: the number of tokens that perplexity was measured on.
        perplexity, perplexity_error: the perplexity of the text, and its standard error.
        perplexity_ratio, perplexity_ratio_error: the ratio to the truth's perplexity, with the standard error of the
            paired difference.
        within_budget: whether it keeps its budget; True if it has none.
        allowed: the budget in force; None if it has none.
        fault: why it fails; empty if it passes.
        seconds: the time that it took.
    """

    cases: tuple[str, ...]
    rms: float
    maximum: float
    p50: float
    p99: float
    p999: float
    rms_floors: float
    maximum_floors: float
    worst_case: str
    positions: int
    flips: int
    near_ties: int
    top_k: float
    kl_mean: float
    kl_99: float
    kl_999: float
    kl_maximum: float
    dp_rms: float
    dp_99: float
    dp_maximum: float
    scored: int
    perplexity: float
    perplexity_error: float
    perplexity_ratio: float
    perplexity_ratio_error: float
    within_budget: bool
    allowed: Budget | None
    fault: str
    seconds: float

    @property
    def costs_more(self) -> bool:
        """Tell whether the leg exceeds its budget, and nothing worse is wrong with it."""
        return self.kind is LegKind.LOSSY and not self.within_budget and math.isfinite(self.maximum)

    @property
    def status(self) -> Status:
        """Return the verdict on the leg in a word."""
        if self.fault:
            return Status.OVER_BUDGET if self.costs_more else Status.FAULT
        if self.kind is LegKind.HALF:
            return Status.IN_BUDGET if self.within_budget else Status.OVER_BUDGET
        return Status.YARDSTICK if self.kind is LegKind.NOISE else Status.PASS


@dataclass(frozen=True)
class MeasuredLeg(Identity):
    """A leg's distances from the truth, case by case, and its limit.

    Attributes:
        distances: case → distance.
        scored: the cases on which perplexity is measured.
        seconds: the time that it took.
        limit: for ``LegKind.SEMANTICS``, the largest error that is allowed, as a share of the logits' scale.
    """

    distances: Mapping[str, Distance]
    scored: tuple[str, ...]
    seconds: float
    limit: float = 0.0

    @cached_property
    def total(self) -> Distance:
        """Return all cases as one distance."""
        return joined(self.distances.values())

    @property
    def worst_case(self) -> str:
        """Return the case with the largest error."""
        return max(self.distances, key=lambda case: self.distances[case].total_maximum)


@dataclass(frozen=True)
class Judge:
    """The scale and the noise floor that every leg is compared with, both in units of the logits.

    Attributes:
        scale: the scale of the logits; see ``metrics.scale``.
        noise: case → RMS and maximum of the worse of Hugging Face's own ways to compute in float32.
        limits: the limits of the check.
    """

    scale: float
    noise: Mapping[str, tuple[float, float]]
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def from_legs(cls, scale: float, legs: Iterable[MeasuredLeg], limits: Limits, cases: Sequence[Case] = ()) -> Judge:
        """Return a judge with the noise of these legs, but no less than float32's epsilon.

        Legs that are not finite give no noise; they are faults themselves.

        Args:
            cases: some of which are parts of others, whose noise is theirs.
        """
        parts = {case.name: case.part_of for case in cases if case.part_of is not None}
        noise: dict[str, tuple[float, float]] = {}

        def add(case: str, rms: np.ndarray, maximum: np.ndarray) -> None:
            if np.isfinite(maximum).all():
                least = noise.get(case, (FLOAT32_EPSILON * scale,) * 2)
                found = math.sqrt(float(np.mean(rms**2))), float(maximum.max())
                noise[case] = max(least[0], found[0]), max(least[1], found[1])

        for leg in (leg for leg in legs if leg.kind is LegKind.NOISE):
            for case, distance in leg.distances.items():
                add(case, distance.rms, distance.maximum)
            for case, (whole, at) in parts.items():
                if case not in leg.distances and whole in leg.distances and not leg.distances[whole].misshapen:
                    distance = leg.distances[whole]
                    add(case, distance.rms[at], distance.maximum[at])
        return cls(scale, noise, limits)

    def floor(self, cases: Mapping[str, Distance]) -> tuple[float, float]:
        """Return RMS and maximum of the noise over these cases."""
        least = FLOAT32_EPSILON * self.scale
        known = [(*self.noise[case], len(distance.rms)) for case, distance in cases.items() if case in self.noise]
        if not known:
            return least, least
        square = sum(rms**2 * positions for rms, _, positions in known) / sum(positions for *_, positions in known)
        return max(least, math.sqrt(square)), max(least, *(maximum for _, maximum, _ in known))

    def fault(self, leg: MeasuredLeg) -> str:
        """Return why a leg fails; empty if it passes."""
        total, worst = leg.total, leg.worst_case
        floor_rms, floor_maximum = self.floor(leg.distances)
        limits = self.limits
        if total.misshapen:
            return f"gives logits of another shape than the truth ({worst})"
        if leg.kind is LegKind.HALF:
            return ""
        if not math.isfinite(total.total_maximum):
            why = f": the model overflows {leg.budget or 'float32'}" if leg.kind is not LegKind.SEMANTICS else ""
            return f"gives logits that are NaN or infinite ({worst}){why}"
        if leg.kind is LegKind.LOSSY:
            return self.over_budget(leg)
        if leg.kind is LegKind.NOISE and not total.total_rms <= limits.noise * self.scale:
            share = total.total_rms / self.scale
            return f"is {share:.1e} of the logits' scale from the truth in RMS: float32 does not hold this model"
        if leg.kind is LegKind.SEMANTICS and not total.total_maximum <= leg.limit * self.scale:
            share = total.total_maximum / self.scale
            return f"is {share:.1e} of the logits' scale from the truth ({worst}); at most {leg.limit:.0e} is rounding"
        if leg.kind in FLOAT32 and not total.total_rms <= limits.rms * floor_rms:
            times = total.total_rms / floor_rms
            return (
                f"is {times:.1f} × the noise floor from the truth in RMS ({worst}); "
                f"at most {limits.rms:g} × is rounding"
            )
        if leg.kind in FLOAT32 and not total.total_maximum <= limits.maximum * floor_maximum:
            times = total.total_maximum / floor_maximum
            return (
                f"is {times:.1f} × the noise floor from the truth ({worst}); at most {limits.maximum:g} × is rounding"
            )
        flips = self.flips(leg)
        if flips:
            return f"prefers another token at {flips} of {len(total.rms)} positions, and not by a near tie"
        return ""

    def over_budget(self, leg: MeasuredLeg) -> str:
        """Return by how much a lossy leg exceeds its budget; empty if it does not.

        A ratio of perplexities exceeds it only by more than two standard errors, because a short text says little about
        it.
        """
        budget = self.limits.budgets[leg.budget]
        kl = float(leg.total.kl.mean())
        if not kl <= budget.kl_mean:
            allowed = f"its budget, {leg.budget}.kl_mean, is {budget.kl_mean:.0e}"
            return f"is {kl:.1e} nats a token from the truth (KL); {allowed}"
        rms = leg.total.total_rms / self.scale
        if not rms <= budget.rms:
            allowed = f"its budget, {leg.budget}.rms, is {budget.rms:g}"
            return f"is {rms:.1e} of the logits' scale from the truth in RMS; {allowed}"
        ratio, error = self.perplexity_ratio(leg)
        if ratio - 2 * (0.0 if math.isnan(error) else error) > budget.perplexity_ratio:
            return (
                f"has {ratio:.4f} ± {error:.4f} times the truth's perplexity; its budget, "
                f"{leg.budget}.perplexity_ratio, is {budget.perplexity_ratio:g}"
            )
        return ""

    @staticmethod
    def perplexity_ratio(leg: MeasuredLeg) -> tuple[float, float]:
        """Return a leg's perplexity divided by the truth's, with the standard error of the paired difference."""
        scored = joined(distance for case, distance in leg.distances.items() if case in leg.scored)
        return _perplexity(scored.log_p_true - scored.log_p)

    def flips(self, leg: MeasuredLeg) -> int:
        """Return the number of positions with another likeliest token.

        Two candidates that an allowed error could swap do not count. Each may move by that error, in opposite
        directions.
        """
        total = leg.total
        tie = 2 * self.limits.maximum * self.floor(leg.distances)[1]
        if leg.kind in LOSSY:  # its own error is allowed, as float32's says nothing about it
            tie = 2 * total.percentile(0.999)
        return int((total.flips > tie).sum())

    def report(self, leg: MeasuredLeg) -> LegReport:
        """Return the report on a leg."""
        total = leg.total
        scored = joined(distance for case, distance in leg.distances.items() if case in leg.scored)
        floor_rms, floor_maximum = self.floor(leg.distances)
        flips = self.flips(leg)
        shift = np.exp(total.log_p) - np.exp(total.log_p_true)
        shift = np.abs(shift[~np.isnan(shift)])
        perplexity, perplexity_error = _perplexity(-scored.log_p)
        ratio, ratio_error = self.perplexity_ratio(leg)
        kl_mean = float(total.kl.mean())
        budget = self.limits.budgets.get(leg.budget)
        return LegReport(
            **leg.identity(),
            cases=tuple(leg.distances),
            rms=total.total_rms / self.scale,
            maximum=total.total_maximum / self.scale,
            p50=total.percentile(0.5) / self.scale,
            p99=total.percentile(0.99) / self.scale,
            p999=total.percentile(0.999) / self.scale,
            rms_floors=total.total_rms / floor_rms,
            maximum_floors=total.total_maximum / floor_maximum,
            worst_case=leg.worst_case,
            positions=len(total.rms),
            flips=flips,
            near_ties=len(total.flips) - flips,
            top_k=float(total.overlap.mean()),
            kl_mean=kl_mean,
            kl_99=_quantile(total.kl, 0.99),
            kl_999=_quantile(total.kl, 0.999),
            kl_maximum=float(total.kl.max()),
            dp_rms=float(np.sqrt(np.mean(shift**2))) if len(shift) else math.nan,
            dp_99=_quantile(shift, 0.99),
            dp_maximum=float(shift.max()) if len(shift) else math.nan,
            scored=int((~np.isnan(scored.log_p)).sum()),
            perplexity=perplexity,
            perplexity_error=perplexity_error,
            perplexity_ratio=ratio,
            perplexity_ratio_error=ratio_error,
            within_budget=budget is None or not self.over_budget(leg),
            allowed=budget,
            fault=self.fault(leg),
            seconds=leg.seconds,
        )


def _quantile(values: np.ndarray, share: float) -> float:
    """Return a quantile without interpolation, which would turn infinities into NaN."""
    return float(np.quantile(values, share, method="higher")) if len(values) else math.nan


def _perplexity(surprise: np.ndarray) -> tuple[float, float]:
    """Return exp of the mean of these nats, and its standard error by the delta method; NaN if there are none."""
    known = surprise[~np.isnan(surprise)]
    if not len(known):
        return math.nan, math.nan
    if not np.isfinite(known).all():
        return math.inf, math.nan
    mean = math.exp(min(float(known.mean()), 700.0))  # e^700 is about the largest float64
    return mean, mean * float(known.std(ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else math.nan
