"""Errors, the yardstick, and what counts as another decision."""

from __future__ import annotations

import math

import numpy as np
import pytest

from converter.parity.metrics import FLOAT32_EPSILON, Error, compare, scale

RNG = np.random.default_rng(0)


def test_errors_are_those_of_numpy_over_real_positions_only() -> None:
    truth = RNG.normal(size=(3, 100, 17))
    noise = RNG.normal(size=truth.shape) * 1e-3
    real = RNG.random((3, 100)) < 0.7
    spoiled = np.where(real[..., None], truth + noise, 1e9)
    error = compare(truth, spoiled, real)
    assert error.rms == pytest.approx(np.sqrt((noise[real] ** 2).mean()))
    assert error.maximum == pytest.approx(np.abs(noise[real]).max())
    assert error.positions == real.sum()


def test_errors_add_up_over_cases() -> None:
    truth = RNG.normal(size=(1, 10, 5))
    logits = truth + RNG.normal(size=truth.shape)
    first, second = np.zeros((1, 10), bool), np.zeros((1, 10), bool)
    first[:, :3], second[:, 3:] = True, True
    whole = compare(truth, logits, first | second)
    total = compare(truth, logits, first) + compare(truth, logits, second)
    assert total.rms == pytest.approx(whole.rms)
    assert (total.maximum, total.positions, sorted(total.flips)) == (whole.maximum, 10, sorted(whole.flips))


def test_a_flip_is_recorded_with_the_truths_margin() -> None:
    truth = np.array([[[5.0, 4.0, 1.0], [2.0, 0.0, 1.0], [1.0, 7.0, 3.0]]])
    logits = np.array([[[5.0, 4.0, 1.0], [0.5, 0.0, 0.6], [1.0, 7.0, 9.0]]])
    assert compare(truth, logits, np.ones((1, 3), bool)).flips == [1.0, 4.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_is_an_infinite_error(bad: float) -> None:
    truth = RNG.normal(size=(1, 4, 6))
    logits = truth.copy()
    logits[0, 2, 3] = bad
    error = compare(truth, logits, np.ones((1, 4), bool))
    assert error.rms == error.maximum == math.inf
    assert compare(truth, logits, np.array([[True, True, False, True]])).maximum == 0  # at padding nobody cares


def test_logits_of_another_shape_are_an_infinite_error() -> None:
    error = compare(np.zeros((1, 4, 6)), np.zeros((1, 4, 5)), np.ones((1, 4), bool))
    assert error.misshapen
    assert error.maximum == math.inf
    assert (error + Error()).misshapen


def test_the_scale_does_not_see_an_offset_that_all_logits_share() -> None:
    logits = RNG.normal(0, 3, size=(1, 50, 400))
    real = {"case": np.ones((1, 50), bool)}
    assert (
        scale({"case": logits - 100}, real)
        == pytest.approx(scale({"case": logits}, real))
        == pytest.approx(3, rel=0.05)
    )


def test_the_scale_of_logits_that_are_all_alike_is_not_zero() -> None:
    assert scale({"case": np.ones((1, 2, 3))}, {"case": np.ones((1, 2), bool)}) == FLOAT32_EPSILON


def test_no_error_is_zero() -> None:
    assert Error().rms == 0
