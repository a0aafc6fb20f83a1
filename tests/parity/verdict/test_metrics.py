"""Distances between logits: as numbers, as decisions, and as distributions."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from converter.parity.verdict.metrics import (
    BIN_SHIFT,
    BINS,
    BLOCK_POSITIONS,
    FLOAT32_EPSILON,
    TOP_K,
    Distance,
    bin_edges,
    compare,
    joined,
    scale,
)

BIN_WIDTH = 1 + 2.0**-4  # 16 bins to an octave

seeds = st.integers(0, 2**32 - 1)


def distance(truth: Any, logits: Any, following: Any = None, real: Any = None) -> Distance:
    """``compare`` for logits ``[positions, vocab_size]`` of one row."""
    truth, logits = np.asarray(truth, np.float64)[None], np.asarray(logits)[None]
    positions = truth.shape[:2]
    following = np.full(positions, -1) if following is None else np.asarray(following)[None]
    return compare(truth, logits, np.ones(positions, bool) if real is None else np.asarray(real)[None], following)


def drawn(seed: int, positions: int = 5, vocab_size: int = 9, off: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Logits with an offset that differs by position, and others that are ``off`` by about that much."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(positions, vocab_size)) * 3 + rng.normal(size=(positions, 1)) * 40
    return truth, truth + rng.normal(size=truth.shape) * off


@given(seed=seeds, positions=st.integers(1, 2 * BLOCK_POSITIONS + 3), off=st.sampled_from([1e-9, 0.01, 4.0]))
@settings(max_examples=20, deadline=None)
def test_errors_are_those_over_the_vocabulary_position_by_position(seed: int, positions: int, off: float) -> None:
    truth, logits = drawn(seed, positions, off=off)
    found = distance(truth, logits)
    np.testing.assert_allclose(found.rms, np.sqrt(((logits - truth) ** 2).mean(axis=1)), rtol=1e-12)
    np.testing.assert_array_equal(found.maximum, np.abs(logits - truth).max(axis=1))
    assert found.total_maximum == np.abs(logits - truth).max()
    assert found.total_rms == pytest.approx(math.sqrt(((logits - truth) ** 2).mean()), rel=1e-12)
    assert found.histogram.sum() == truth.size


def test_float32_logits_are_not_rounded_again() -> None:
    truth = np.array([[1 / 3, 2 / 3, 1e-12]])
    found = distance(truth, truth.astype(np.float32))
    assert found.total_maximum == np.abs(truth - truth.astype(np.float32).astype(np.float64)).max()
    assert 0 < found.total_maximum < FLOAT32_EPSILON


def test_only_real_positions_count_whatever_the_others_hold() -> None:
    truth, logits = drawn(1, positions=4)
    real = np.array([True, False, True, False])
    logits[~real] = np.nan
    whole, alone = distance(truth, logits, [3, 3, -1, 3], real), distance(truth[real], logits[real], [3, -1])
    assert len(whole.rms) == 2
    assert whole.histogram.sum() == 2 * truth.shape[1]
    for name in ("rms", "maximum", "flip", "overlap", "kl", "log_p_true", "log_p"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(alone, name), err_msg=name)


def test_rows_of_a_batch_follow_one_another() -> None:
    truth, logits = drawn(2, positions=6)
    batch = compare(truth.reshape(2, 3, -1), logits.reshape(2, 3, -1), np.ones((2, 3), bool), np.full((2, 3), 4))
    np.testing.assert_array_equal(batch.rms, distance(truth, logits).rms)
    np.testing.assert_array_equal(batch.log_p, distance(truth, logits, [4] * 6).log_p)


# --- percentiles ------------------------------------------------------------------------------------------------------


@given(seed=seeds, share=st.floats(0.01, 1.0), spread=st.floats(0.0, 6.0), size=st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_a_percentile_is_at_most_a_sixteenth_above_the_exact_one(
    seed: int, share: float, spread: float, size: int
) -> None:
    errors = 10 ** np.random.default_rng(seed).normal(-3, spread, size=size)
    found = distance(np.zeros((1, size)), errors[None]).percentile(share)
    exact = float(np.quantile(errors, share, method="inverted_cdf"))
    assert exact * (1 - 1e-7) <= found <= exact * BIN_WIDTH * (1 + 1e-7)
    assert found <= errors.max()


def test_the_largest_percentile_is_the_maximum_and_of_no_error_all_are_0() -> None:
    truth, logits = drawn(3, positions=80)
    assert distance(truth, logits).percentile(1.0) == distance(truth, logits).total_maximum
    assert distance(truth, truth).percentile(0.5) == distance(truth, truth).percentile(1.0) == 0.0


def test_percentiles_grow_with_their_share_and_rare_errors_show_only_in_the_high_ones() -> None:
    errors = np.full((10, 1000), 1e-6)
    errors[7, 3] = 1.0
    found = distance(np.zeros_like(errors), errors)
    assert found.percentile(0.5) == found.percentile(0.9998) == pytest.approx(1e-6, rel=1 / 16)
    assert found.percentile(0.99999) == 1.0


def test_bins_are_a_sixteenth_of_an_octave_wide() -> None:
    edges = bin_edges()
    assert len(edges) == BINS + 1
    usual = edges[(edges > 1e-30) & (edges < 1e30)]
    assert (usual[1:] / usual[:-1]).max() == BIN_WIDTH
    assert 2**-BIN_SHIFT * 2**23 == 16


def test_percentiles_of_errors_that_float32_cannot_hold_are_numbers() -> None:
    assert distance(np.zeros((1, 3)), [[1e60, 1e-3, 1e-3]]).percentile(0.999) == 1e60


# --- distributions ----------------------------------------------------------------------------------------------------


@given(seed=seeds, off=st.sampled_from([1e-3, 0.3, 0.9, 3.0, 50.0]), positions=st.sampled_from([1, 5, 70]))
@settings(max_examples=25, deadline=None)
def test_the_divergence_is_that_of_the_leg_from_the_truth(seed: int, off: float, positions: int) -> None:
    truth, logits = drawn(seed, positions, off=off)
    expected = kl_divergence(Categorical(logits=torch.tensor(truth)), Categorical(logits=torch.tensor(logits)))
    np.testing.assert_allclose(distance(truth, logits).kl, expected, rtol=1e-8, atol=1e-13)


def exact_divergence(truth: np.ndarray, logits: np.ndarray) -> float:
    """KL(truth‖logits) of one position with fifty digits."""
    with mpmath.workdps(50):
        p, q = ([mpmath.exp(mpmath.mpf(float(x))) for x in row] for row in (truth, logits))
        p, q = ([x / mpmath.fsum(row) for x in row] for row in (p, q))
        return float(mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True)))


@pytest.mark.parametrize("off", [1e-3, 1e-5, 1e-7, 1e-8])
def test_divergences_far_below_float64s_step_keep_their_digits(off: float) -> None:
    truth, logits = drawn(4, positions=3, off=off)
    expected = [exact_divergence(*rows) for rows in zip(truth, logits, strict=True)]
    assert max(expected) < 2 * off**2
    # What is left of a cancellation of δ against δ²: a share of 1e-16 / δ.
    np.testing.assert_allclose(distance(truth, logits).kl, expected, rtol=1e-14 / off)


def test_a_shared_offset_changes_no_distribution() -> None:
    truth, _ = drawn(5)
    for offset in (-7.0, 0.25, 1000.0):
        found = distance(truth, truth + offset, [2] * 5)
        np.testing.assert_allclose(found.maximum, abs(offset), rtol=1e-12)
        assert found.kl.max() < 1e-13 * max(1, abs(offset))
        np.testing.assert_allclose(found.log_p, found.log_p_true, atol=1e-13 * max(1, abs(offset)))


def test_the_divergence_of_a_position_does_not_depend_on_its_neighbours() -> None:
    truth, logits = drawn(6, positions=4, off=1e-7)
    alone = distance(truth, logits).kl
    logits[2] += np.linspace(0, 9, logits.shape[1])
    others = [0, 1, 3]
    np.testing.assert_allclose(distance(truth, logits).kl[others], alone[others], rtol=1e-6)


def test_a_leg_that_is_certain_of_another_token_is_far_away_but_not_infinitely() -> None:
    found = distance([[0.0, 0.0]], [[0.0, 2000.0]], [0])
    assert found.kl[0] == pytest.approx(1000 - math.log(2))
    assert found.log_p[0] == -2000.0


@given(seed=seeds, off=st.sampled_from([1e-6, 0.5, 8.0]))
@settings(max_examples=15, deadline=None)
def test_the_tokens_that_follow_have_the_log_probabilities_of_a_softmax(seed: int, off: float) -> None:
    truth, logits = drawn(seed, positions=70, off=off)
    following = np.random.default_rng(seed).integers(-1, truth.shape[1], size=70)
    found = distance(truth, logits, following)
    known = following >= 0
    for ours, theirs in ((found.log_p_true, truth), (found.log_p, logits)):
        expected = torch.tensor(theirs).log_softmax(dim=-1).numpy()[np.arange(70), following]
        np.testing.assert_allclose(ours[known], expected[known], rtol=1e-11, atol=1e-12)
        assert np.isnan(ours[~known]).all()


def test_the_likeliest_tokens_come_with_the_legs_own_probabilities() -> None:
    truth, logits = drawn(7, positions=66, off=2.0)
    found = distance(truth, logits)
    p, tokens = torch.tensor(logits).softmax(dim=-1).topk(TOP_K)
    np.testing.assert_array_equal(found.likeliest, tokens)
    np.testing.assert_allclose(found.p_likeliest, p, rtol=1e-10)


# --- decisions --------------------------------------------------------------------------------------------------------


def test_a_flip_is_measured_by_the_margin_that_the_truth_gives_it() -> None:
    truth = [[3.0, 1.0, 2.5], [3.0, 1.0, 2.5], [3.0, 1.0, 2.5], [0.0, 5.0, 1.0]]
    logits = [[9.0, 1.0, 2.5], [3.0, 1.0, 3.5], [0.0, 1.0, 0.5], [0.0, 5.0, 4.9]]
    found = distance(truth, logits)
    np.testing.assert_array_equal(found.flip, [np.nan, 0.5, 2.0, np.nan])
    np.testing.assert_array_equal(found.flips, [0.5, 2.0])


def test_a_flip_between_two_tokens_that_are_alike_has_no_margin() -> None:
    found = distance([[1.0, 1.0, 0.0]], [[1.0, 1.0 + 1e-6, 0.0]])
    assert (np.nan_to_num(found.flip) == 0).all()


def test_the_overlap_is_the_share_of_the_five_likeliest_tokens_in_any_order() -> None:
    truth = np.arange(8.0)
    logits = [truth, truth[[0, 1, 2, 7, 6, 5, 4, 3]], truth[[3, 1, 2, 0, 4, 5, 6, 7]], truth[::-1]]
    np.testing.assert_array_equal(distance([truth] * 4, logits).overlap, [1.0, 1.0, 0.8, 0.4])


@pytest.mark.parametrize("vocab_size", [1, 2, 4, 5])
def test_a_vocabulary_of_no_more_than_five_is_its_own_likeliest(vocab_size: int) -> None:
    truth, logits = drawn(8, positions=3, vocab_size=vocab_size, off=3.0)
    found = distance(truth, logits, [0] * 3)
    np.testing.assert_array_equal(found.overlap, 1.0)
    assert found.likeliest.shape == found.p_likeliest.shape == (3, TOP_K)
    assert (np.sort(found.likeliest[:, :vocab_size]) == np.arange(vocab_size)).all()
    assert (found.likeliest[:, vocab_size:] == -1).all()
    assert np.isnan(found.p_likeliest[:, vocab_size:]).all()
    np.testing.assert_allclose(found.p_likeliest[:, :vocab_size].sum(axis=1), 1.0)


# --- what is no number ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_position_with_one_logit_that_is_no_number_is_lost_and_it_alone(value: float, dtype: Any) -> None:
    truth, logits = drawn(9, positions=5)
    logits = logits.astype(dtype)
    following = [1, 1, 1, -1, 1]
    whole = distance(truth, logits, following)
    logits[[1, 3], 4] = value
    found = distance(truth, logits, following)
    lost, others = [1, 3], [0, 2, 4]
    for name in ("rms", "maximum", "flip", "kl"):
        assert (getattr(found, name)[lost] == math.inf).all(), name
        np.testing.assert_array_equal(getattr(found, name)[others], getattr(whole, name)[others], err_msg=name)
    assert (found.overlap[lost] == 0).all()
    assert found.log_p[1] == -math.inf
    assert np.isnan([found.log_p[3], found.log_p_true[3]]).all()
    np.testing.assert_array_equal(found.log_p_true, whole.log_p_true)
    assert (found.likeliest[lost] == -1).all()
    assert np.isnan(found.p_likeliest[lost]).all()
    assert len(found.flips) >= len(lost)
    assert found.total_rms == found.total_maximum == found.percentile(0.01) == math.inf
    assert found.histogram.sum() == len(others) * truth.shape[1]


@pytest.mark.parametrize("shape", [(1, 4, 9), (1, 5, 8), (2, 5, 9), (5, 9)])
def test_logits_of_another_shape_are_infinitely_far_away(shape: tuple[int, ...]) -> None:
    truth, _ = drawn(10)
    found = compare(truth[None], np.zeros(shape), np.ones((1, 5), bool), np.zeros((1, 5), int))
    assert found.misshapen
    assert found.total_rms == found.total_maximum == found.percentile(0.5) == math.inf
    assert found.flips.size
    assert found.kl.max() == math.inf
    assert not distance(truth, truth).misshapen


# --- several cases ----------------------------------------------------------------------------------------------------


def test_several_cases_are_the_positions_of_all() -> None:
    truth, logits = drawn(11, positions=9, off=0.2)
    truth[7:], logits[7:] = truth[7:] / 8, logits[7:] / 8  # so that no case stands for the others
    following = list(range(9))
    parts = [distance(truth[a:b], logits[a:b], following[a:b]) for a, b in ((0, 1), (1, 7), (7, 9))]
    whole, found = distance(truth, logits, following), joined(parts)
    for name in vars(whole):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name), err_msg=name)
    assert found.total_rms == whole.total_rms
    assert found.percentile(0.3) == whole.percentile(0.3)


def test_a_case_of_another_shape_is_not_lost_among_others() -> None:
    truth, logits = drawn(12)
    wrong = compare(truth[None], logits[None, :2], np.ones((1, 5), bool), np.zeros((1, 5), int))
    found = joined([distance(truth, logits), wrong])
    assert found.misshapen
    assert found.total_maximum == math.inf


def test_no_case_at_all_is_no_error() -> None:
    found = joined([])
    assert len(found.rms) == len(found.likeliest) == 0
    assert found.total_rms == found.total_maximum == found.percentile(0.99) == 0.0
    assert not found.misshapen


# --- the yardstick ----------------------------------------------------------------------------------------------------


def test_the_scale_knows_no_shared_offset() -> None:
    logits = np.random.default_rng(13).normal(size=(1, 7, 50)) * 3
    everywhere = {"a": np.ones((1, 7), bool)}
    assert scale({"a": logits - 35.0}, everywhere) == pytest.approx(scale({"a": logits}, everywhere))
    assert scale({"a": logits}, everywhere) == pytest.approx(3, rel=0.1)


def test_the_scale_counts_every_position_once_and_padding_not_at_all() -> None:
    rng = np.random.default_rng(14)
    truths = {"a": rng.normal(size=(1, 2, 11)), "b": rng.normal(size=(3, 4, 11)) * 5}
    real = {"a": np.ones((1, 2), bool), "b": rng.random((3, 4)) < 0.5}
    variances = [truths[name][i, j].var() for name in truths for i, j in np.argwhere(real[name])]
    assert scale(truths, real) == pytest.approx(math.sqrt(np.mean(variances)), rel=1e-12)


def test_the_scale_of_constant_logits_is_float32s_epsilon() -> None:
    assert scale({"a": np.full((1, 3, 5), -35.0)}, {"a": np.ones((1, 3), bool)}) == FLOAT32_EPSILON
