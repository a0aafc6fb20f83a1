"""What is let pass and what is not: every limit, at it and beyond it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.errors import CheckError
from converter.parity.legs.cases import Case
from converter.parity.legs.identity import LOSSY, LegKind
from converter.parity.verdict.judge import Judge, LegReport, MeasuredLeg, Status
from converter.parity.verdict.limits import BUDGETS, Limits
from converter.parity.verdict.metrics import FLOAT32_EPSILON, Distance, compare

# A scale and a floor that are powers of two, so that "at the limit" is exact.
SCALE, FLOOR_RMS, FLOOR_MAXIMUM = 4.0, 2.0**-20, 2.0**-18
JUDGE = Judge(SCALE, {"prefill": (FLOOR_RMS, FLOOR_MAXIMUM)})
MORE = 1 + 1e-9

JUDGED = [kind for kind in LegKind if kind not in LOSSY]


def apart(rms: float, maximum: float | None = None, positions: int = 4, **others: Any) -> Distance:
    """A distance of these figures at every position."""
    nothing = np.zeros((1, positions, 3))
    plain = compare(nothing, nothing, np.ones((1, positions), bool), np.full((1, positions), -1))
    largest = rms if maximum is None else maximum
    return replace(plain, rms=np.full(positions, rms), maximum=np.full(positions, largest), **others)


def lost(positions: int = 4) -> Distance:
    """That of a leg whose logits are NaN."""
    shape = (1, positions, 3)
    return compare(np.zeros(shape), np.full(shape, np.nan), np.ones(shape[:2], bool), np.ones(shape[:2], int))


def leg(kind: LegKind, distances: Mapping[str, Distance] | Distance, **others: Any) -> MeasuredLeg:
    cases = {"prefill": distances} if isinstance(distances, Distance) else distances
    return MeasuredLeg("a leg", kind, cases, others.pop("scored", ()), 0.0, **others)


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 0.0, -1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", list(Limits().named()))
def test_a_limit_that_cannot_limit_is_refused(name: str, value: float) -> None:
    with pytest.raises(CheckError, match=f"limit {name} is .*; expected a finite number above 0"):
        Limits.from_settings({name: value})


@pytest.mark.parametrize("name", ["RMS", "", "rms ", "_", "of"])
def test_an_unknown_limit_is_refused_and_the_known_ones_are_named(name: str) -> None:
    with pytest.raises(CheckError, match=f"there is no limit {name!r}; expected one of .*graph_float64.*rms, maximum"):
        Limits.from_settings({"rms": 2.0, name: 1.0})


def test_a_limit_of_ones_own_leaves_the_others_as_they_are() -> None:
    assert Limits.from_settings({}) == Limits()
    assert Limits.from_settings({"rms": 6}) == replace(Limits(), rms=6)
    assert Limits.from_settings(dict.fromkeys(Limits().named(), 3.5)).named() == dict.fromkeys(Limits().named(), 3.5)


# --- the floor --------------------------------------------------------------------------------------------------------


def test_the_floor_of_a_case_is_the_worse_of_what_measures_it() -> None:
    legs = [
        leg(LegKind.NOISE, {"prefill": apart(1e-3, 9e-3), "decode": apart(1e-3)}),
        leg(LegKind.NOISE, {"prefill": apart(2e-3, 5e-3)}),
        leg(LegKind.SEMANTICS, {"prefill": apart(1.0)}),
        leg(LegKind.HALF, {"prefill": apart(1.0)}),
        leg(LegKind.NUMERICS, {"padded": apart(1.0)}),
        leg(LegKind.NOISE, {"prefill": lost()}),
    ]
    judge = Judge.from_legs(SCALE, legs, Limits())
    assert judge.noise == {"prefill": (2e-3, 9e-3), "decode": (1e-3, 1e-3)}
    assert judge.floor({"prefill": apart(0)}) == pytest.approx((2e-3, 9e-3))


def test_the_floor_is_no_lower_than_float32s_step() -> None:
    least = FLOAT32_EPSILON * SCALE
    judge = Judge.from_legs(SCALE, [leg(LegKind.NOISE, apart(least / 8))], Limits())
    assert judge.floor({"prefill": apart(0)}) == (least, least)
    assert judge.floor({"never measured": apart(0)}) == (least, least)
    assert judge.floor({}) == (least, least)


def test_a_part_of_a_case_has_the_noise_of_that_part_unless_it_was_measured() -> None:
    figures = {"rms": np.array([8e-3, 1e-3, 3e-3, 4e-3]), "maximum": np.array([9e-3, 1e-3, 5e-3, 6e-3])}
    whole = replace(apart(1e-3), **figures)
    row = np.zeros((1, 1), int)
    parts = [
        Case("first", row, row, (1,), part_of=("prefill", np.array([0]))),
        Case("last two", row, row, (1,), part_of=("prefill", np.array([2, 3]))),
        Case("measured", row, row, (1,), part_of=("prefill", np.array([0]))),
        Case("of another", row, row, (1,), part_of=("never run", np.array([0]))),
    ]
    judge = Judge.from_legs(SCALE, [leg(LegKind.NOISE, {"prefill": whole, "measured": apart(1e-4)})], Limits(), parts)
    assert judge.noise["first"] == (8e-3, 9e-3)
    assert judge.noise["last two"] == pytest.approx((math.sqrt((3e-3**2 + 4e-3**2) / 2), 6e-3))
    assert judge.noise["measured"] == (1e-4, 1e-4)
    assert "of another" not in judge.noise
    misshapen = leg(LegKind.NOISE, replace(apart(1e-3, positions=1), misshapen=True))
    assert "first" not in Judge.from_legs(SCALE, [misshapen], Limits(), parts).noise


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=5), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_the_floor_of_several_cases_is_what_a_leg_as_noisy_as_the_yardstick_has(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    noisy = {
        f"case {i}": apart(rms, 3 * rms, size)
        for i, (size, rms) in enumerate(zip(sizes, rng.uniform(1e-6, 1.0, len(sizes)), strict=True))
    }
    judge = Judge.from_legs(SCALE, [leg(LegKind.NOISE, noisy)], Limits())
    some = dict(list(noisy.items())[: 1 + seed % len(sizes)])
    found = judge.report(leg(LegKind.NUMERICS, some))
    assert found.rms_floors == pytest.approx(1.0, rel=1e-12)
    assert found.maximum_floors == pytest.approx(1.0, rel=1e-12)


def test_a_leg_is_held_against_the_noise_of_its_own_cases_only() -> None:
    judge = Judge.from_legs(SCALE, [leg(LegKind.NOISE, {"calm": apart(1e-6), "rough": apart(1e-2)})], Limits())
    assert "noise floor" in judge.fault(leg(LegKind.NUMERICS, {"calm": apart(1e-3)}))
    assert judge.fault(leg(LegKind.NUMERICS, {"rough": apart(1e-3)})) == ""


# --- faults -----------------------------------------------------------------------------------------------------------

LIMITS = Limits()
AT_THE_LIMIT = {
    "RMS": (
        LegKind.NUMERICS,
        LIMITS.rms * FLOOR_RMS,
        0.0,
        r"is 4\.0 × the noise floor from the truth in RMS \(prefill\)",
    ),
    "maximum": (LegKind.NUMERICS, 0.0, LIMITS.maximum * FLOOR_MAXIMUM, r"is 8\.0 × the noise floor from the truth \("),
    "RMS of another file": (
        LegKind.OTHER,
        LIMITS.rms * FLOOR_RMS,
        0.0,
        r"is 4\.0 × the noise floor from the truth in RMS",
    ),
    "maximum of another file": (LegKind.OTHER, 0.0, LIMITS.maximum * FLOOR_MAXIMUM, r"is 8\.0 × the noise floor"),
    "meaning": (LegKind.SEMANTICS, 0.0, 1e-6 * SCALE, r"is 1\.0e-06 of the logits' scale from the truth \(prefill\)"),
    "noise": (
        LegKind.NOISE,
        LIMITS.noise * SCALE,
        0.0,
        r"is 1\.0e-02 of the logits' scale .* does not hold this model",
    ),
}


@pytest.mark.parametrize(("kind", "rms", "maximum", "sentence"), AT_THE_LIMIT.values(), ids=AT_THE_LIMIT)
def test_what_is_at_its_limit_passes_and_what_is_beyond_fails(
    kind: LegKind, rms: float, maximum: float, sentence: str
) -> None:
    assert JUDGE.fault(leg(kind, apart(rms, maximum), limit=1e-6)) == ""
    beyond = JUDGE.fault(leg(kind, apart(rms * MORE, maximum * MORE), limit=1e-6))
    assert re.match(sentence, beyond), beyond


@pytest.mark.parametrize(("kind", "rms", "maximum", "_"), AT_THE_LIMIT.values(), ids=AT_THE_LIMIT)
def test_limits_of_ones_own_are_those_that_decide(kind: LegKind, rms: float, maximum: float, _: str) -> None:
    wide, narrow = (Limits.from_settings({"rms": 4 * f, "maximum": 8 * f, "noise": 1e-2 * f}) for f in (2.0, 0.5))
    for limits, factor, passes in ((wide, 2, True), (wide, 2 * MORE, False), (narrow, 0.5, True), (narrow, 1, False)):
        share = 1e-6 * limits.rms / 4
        judge = replace(JUDGE, limits=limits)
        assert (judge.fault(leg(kind, apart(rms * factor, maximum * factor), limit=share)) == "") is passes


def test_one_position_among_many_is_enough() -> None:
    maximum = np.zeros(400)
    maximum[123] = LIMITS.maximum * FLOOR_MAXIMUM * MORE
    distance = replace(apart(0.0, positions=400), maximum=maximum)
    assert "noise floor" in JUDGE.fault(leg(LegKind.NUMERICS, distance))
    assert JUDGE.fault(leg(LegKind.SEMANTICS, distance, limit=1e-6))


@pytest.mark.parametrize("kind", JUDGED)
def test_logits_that_are_no_numbers_fail_and_the_case_is_named(kind: LegKind) -> None:
    found = JUDGE.fault(leg(kind, {"prefill": apart(0), "decode": lost()}, limit=1e-6))
    assert found.startswith("gives logits that are NaN or infinite (decode)")


@pytest.mark.parametrize("kind", LegKind)
def test_logits_of_another_shape_fail_whatever_the_leg_is_there_for(kind: LegKind) -> None:
    found = JUDGE.fault(leg(kind, {"prefill": apart(0), "decode": replace(lost(1), misshapen=True)}, limit=1e-6))
    assert found == "gives logits of another shape than the truth (decode)"


@pytest.mark.parametrize("distance", [apart(1e9), lost(), apart(0, flip=np.full(4, 9.0))], ids=["far", "NaN", "flips"])
def test_half_precision_is_shown_and_not_judged(distance: Distance) -> None:
    assert JUDGE.fault(leg(LegKind.HALF, distance, budget="float16")) == ""


def test_the_worst_case_is_where_the_largest_error_was_met() -> None:
    cases = {"prefill": apart(1.0, 2.0), "decode": apart(0.5, 3.0), "padded": apart(0.1)}
    assert leg(LegKind.NUMERICS, cases).worst_case == "decode"
    assert leg(LegKind.NUMERICS, cases | {"padded": lost()}).worst_case == "padded"


# --- decisions --------------------------------------------------------------------------------------------------------

TIE = 2 * LIMITS.maximum * FLOOR_MAXIMUM  # each of two candidates may move by what is allowed


def flipping(*margins: float) -> Distance:
    return apart(0, positions=len(margins), flip=np.array(margins))


def test_another_token_by_more_than_two_allowed_errors_is_a_fault() -> None:
    for kind in JUDGED:
        assert JUDGE.fault(leg(kind, flipping(TIE, math.nan, 0.0, math.nan), limit=1e-6)) == ""
        found = JUDGE.fault(leg(kind, flipping(TIE * MORE, math.nan, 0.0, 1.0), limit=1e-6))
        assert found == "prefers another token at 2 of 4 positions, and not by a near tie"


def test_flips_and_near_ties_are_counted_apart() -> None:
    found = JUDGE.report(leg(LegKind.NUMERICS, flipping(TIE, 0.0, TIE * MORE, math.nan, math.nan)))
    assert (found.flips, found.near_ties, found.positions) == (1, 2, 5)


def test_half_precision_ties_are_those_within_its_own_error() -> None:
    error = 0.25
    truth, logits = np.zeros((1, 4, 1000)), np.full((1, 4, 1000), error)
    plain = compare(truth, logits, np.ones((1, 4), bool), np.full((1, 4), -1))
    distance = replace(plain, flip=np.array([2 * error, 2 * error * MORE, TIE * 4, math.nan]))
    found = JUDGE.report(leg(LegKind.HALF, distance))
    assert (found.flips, found.near_ties) == (1, 2)


# --- what is said of a leg --------------------------------------------------------------------------------------------


def read(seed: int, off: float, vocab_size: int = 7, positions: int = 30) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(1, positions, vocab_size)) * 2
    following = rng.integers(-1, vocab_size, size=(1, positions))
    return truth, truth + rng.normal(size=truth.shape) * off, following


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def measured(
    kind: LegKind, texts: Mapping[str, tuple[Any, Any, Any]], scored: tuple[str, ...], **others: Any
) -> MeasuredLeg:
    cases = {
        name: compare(truth, logits, np.ones(following.shape, bool), following)
        for name, (truth, logits, following) in texts.items()
    }
    return leg(kind, cases, scored=scored, **others)


@given(seed=st.integers(0, 9999), off=st.sampled_from([1e-7, 0.05, 2.0]))
@settings(max_examples=20, deadline=None)
def test_perplexities_are_those_of_the_scored_text_with_their_standard_errors(seed: int, off: float) -> None:
    texts = {"prefill": read(seed, off), "decode": read(seed + 1, off), "full length": read(seed + 2, off)}
    found = JUDGE.report(measured(LegKind.NUMERICS, texts, ("prefill", "full length")))
    surprise, surprise_true = [], []
    for name in ("prefill", "full length"):
        truth, logits, following = texts[name]
        for position, token in enumerate(following[0]):
            if token >= 0:
                surprise.append(-log_softmax(logits)[0, position, token])
                surprise_true.append(-log_softmax(truth)[0, position, token])
    n, more = len(surprise), np.subtract(surprise, surprise_true)
    assert found.scored == n
    assert found.perplexity == pytest.approx(np.exp(np.mean(surprise)), rel=1e-10)
    assert found.perplexity_error == pytest.approx(
        np.exp(np.mean(surprise)) * np.std(surprise, ddof=1) / np.sqrt(n), rel=1e-10
    )
    assert found.perplexity_ratio == pytest.approx(np.exp(np.mean(more)), rel=1e-10)
    assert found.perplexity_ratio_error == pytest.approx(
        np.exp(np.mean(more)) * np.std(more, ddof=1) / np.sqrt(n), rel=1e-6
    )


def test_the_standard_error_is_how_far_perplexities_of_other_texts_scatter() -> None:
    texts = [
        measured(LegKind.NUMERICS, {"prefill": read(seed, 0.5, positions=300)}, ("prefill",)) for seed in range(40)
    ]
    found = [JUDGE.report(text) for text in texts]
    for value, error in (("perplexity", "perplexity_error"), ("perplexity_ratio", "perplexity_ratio_error")):
        scatter = np.std([getattr(report, value) for report in found], ddof=1)
        assert scatter == pytest.approx(np.mean([getattr(report, error) for report in found]), rel=0.35)


def test_where_nothing_is_scored_there_is_no_perplexity() -> None:
    found = JUDGE.report(measured(LegKind.NUMERICS, {"prefill": read(0, 0.1)}, ()))
    assert found.scored == 0
    assert np.isnan([found.perplexity, found.perplexity_error, found.perplexity_ratio]).all()
    assert found.dp_maximum > 0  # probabilities of what follows are known, scored or not


def test_one_scored_token_has_a_perplexity_without_an_error() -> None:
    truth, logits, following = read(1, 0.1, positions=2)
    following[:] = [[3, -1]]
    found = JUDGE.report(measured(LegKind.NUMERICS, {"prefill": (truth, logits, following)}, ("prefill",)))
    assert found.scored == 1
    assert found.perplexity == pytest.approx(math.exp(-log_softmax(logits)[0, 0, 3]))
    assert math.isnan(found.perplexity_error)


def test_probabilities_of_what_follows_differ_by_what_a_softmax_says() -> None:
    truth, logits, following = read(2, 1.0)
    found = JUDGE.report(measured(LegKind.NUMERICS, {"prefill": (truth, logits, following)}, ("prefill",)))
    known = following[0] >= 0
    rows, tokens = np.flatnonzero(known), following[0][known]
    shift = np.abs(np.exp(log_softmax(logits))[0, rows, tokens] - np.exp(log_softmax(truth))[0, rows, tokens])
    assert found.dp_rms == pytest.approx(np.sqrt(np.mean(shift**2)), rel=1e-9)
    assert found.dp_maximum == pytest.approx(shift.max(), rel=1e-9)
    assert np.sort(shift)[-2] * (1 - 1e-9) <= found.dp_99 <= found.dp_maximum


def test_errors_are_told_as_shares_of_the_scale_and_multiples_of_the_floor() -> None:
    truth, logits, following = read(3, 1e-6)
    found = JUDGE.report(measured(LegKind.NUMERICS, {"prefill": (truth, logits, following)}, ()))
    errors = np.abs(logits - truth)
    assert found.rms == pytest.approx(np.sqrt((errors**2).mean()) / SCALE)
    assert found.maximum == pytest.approx(errors.max() / SCALE)
    assert found.rms_floors == pytest.approx(np.sqrt((errors**2).mean()) / FLOOR_RMS)
    assert found.maximum_floors == pytest.approx(errors.max() / FLOOR_MAXIMUM)
    for told, share in ((found.p50, 0.5), (found.p99, 0.99), (found.p999, 0.999)):
        exact = np.quantile(errors, share, method="inverted_cdf") / SCALE
        assert exact * (1 - 1e-6) <= told <= exact * 1.0626
    assert found.kl_99 <= found.kl_999 <= found.kl_maximum


# --- budgets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUDGETS)
def test_a_budget_is_kept_up_to_its_divergence_and_its_perplexity_and_not_beyond(name: str) -> None:
    budget = BUDGETS[name]
    ratio = math.log(budget.perplexity_ratio)

    def within(kl: float, more: float) -> bool:
        distance = apart(0, kl=np.full(4, kl), log_p_true=np.full(4, -1.0), log_p=np.full(4, -1.0 - more))
        return JUDGE.report(leg(LegKind.HALF, distance, budget=name, scored=("prefill",))).within_budget

    assert within(budget.kl_mean * 0.999, ratio * 0.999)
    assert not within(budget.kl_mean * 1.001, 0.0)
    assert not within(0.0, ratio * 1.001)
    assert within(0.0, -1.0)  # a perplexity below the truth's costs nothing


@pytest.mark.parametrize("name", BUDGETS)
def test_numbers_without_probabilities_keep_a_budget_by_their_error(name: str) -> None:
    def judged(rms: float) -> LegReport:
        return JUDGE.report(leg(LegKind.LOSSY, apart(rms * SCALE, kl=np.zeros(4)), budget=name))

    budget = BUDGETS[name].rms
    assert judged(budget).within_budget
    beyond = judged(budget * MORE)
    assert beyond.status is Status.OVER_BUDGET
    assert f"its budget, {name}.rms, is {budget:g}" in beyond.fault


def test_a_budget_is_kept_where_nothing_is_scored_only_by_its_divergence() -> None:
    for kl, kept in ((0.0, True), (1.0, False)):
        assert JUDGE.report(leg(LegKind.HALF, apart(0, kl=np.full(4, kl)), budget="float16")).within_budget is kept


def test_a_leg_that_is_nan_keeps_no_budget_and_one_without_a_budget_cannot_exceed_it() -> None:
    assert not JUDGE.report(leg(LegKind.HALF, lost(), budget="int4", scored=("prefill",))).within_budget
    assert JUDGE.report(leg(LegKind.NUMERICS, lost(), scored=("prefill",))).within_budget


# --- a leg that is NaN ------------------------------------------------------------------------------------------------


def test_one_leg_that_is_nan_is_reported_whole_and_spoils_no_other() -> None:
    texts = {"prefill": read(4, 1e-7), "decode": read(5, 1e-7)}
    sound = measured(LegKind.NOISE, texts, ("prefill",))
    spoilt = {name: (truth, logits.copy(), following) for name, (truth, logits, following) in texts.items()}
    spoilt["decode"][1][0, 3] = np.nan
    broken = measured(LegKind.NOISE, spoilt, ("prefill", "decode"))
    alone, both = Judge.from_legs(1.0, [sound], Limits()), Judge.from_legs(1.0, [sound, broken], Limits())
    assert alone.report(sound) == both.report(sound)
    found = both.report(broken)
    assert found.fault.startswith("gives logits that are NaN or infinite (decode)")
    assert found.rms == found.maximum == found.p50 == found.rms_floors == found.kl_maximum == math.inf
    assert found.flips == 1
    assert found.perplexity == math.inf
    assert found.scored == both.report(measured(LegKind.NOISE, texts, ("prefill", "decode"))).scored
    assert 0 < found.dp_maximum <= 1
    json.dumps(asdict(found))


def test_a_leg_in_float64_is_not_said_to_overflow_float32() -> None:
    assert "float32" in JUDGE.fault(leg(LegKind.NUMERICS, lost()))
    assert "float32" not in JUDGE.fault(leg(LegKind.SEMANTICS, lost(), limit=1e-6))


def test_where_the_yardstick_is_nan_everywhere_others_are_held_against_float32s_step() -> None:
    judge = Judge.from_legs(1.0, [leg(LegKind.NOISE, lost())], Limits())
    assert judge.floor({"prefill": apart(0)}) == (FLOAT32_EPSILON, FLOAT32_EPSILON)
    assert judge.fault(leg(LegKind.NUMERICS, apart(LIMITS.rms * FLOAT32_EPSILON))) == ""
    assert judge.fault(leg(LegKind.NUMERICS, apart(1e-3)))
