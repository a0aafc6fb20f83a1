"""Sampling against transformers' own logits processors on the same logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from converter.errors import PromptError
from converter.runtime.sampling import Sampling

LOGITS = np.random.default_rng(0).normal(0, 3, (5, 97)).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 5, 1000])
@pytest.mark.parametrize("top_p", [0.05, 0.6, 0.95, 1.0])
def test_probabilities_are_those_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    theirs = warpers(torch.zeros(5, 1, dtype=torch.long), torch.tensor(LOGITS, dtype=torch.float64)).softmax(-1)
    ours = Sampling(temperature, top_k, top_p).probabilities(LOGITS)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-9, atol=1e-12)


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], np.float32)).repeat(20_000, axis=0)
    drawn = Sampling(temperature=1.0).choose(logits, np.random.default_rng(0))
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.15, 0.05], atol=0.015)  # four standard deviations


def test_temperature_zero_takes_the_likeliest_token() -> None:
    chosen = Sampling().choose(LOGITS, np.random.default_rng(0))
    np.testing.assert_array_equal(chosen, LOGITS.argmax(axis=-1))


def test_tokens_left_out_are_never_drawn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        drawn = Sampling(temperature=5.0, top_k=3).choose(LOGITS, rng)
        assert all(token in np.argsort(-row)[:3] for token, row in zip(drawn, LOGITS, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; expected 0 or more"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0; expected above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Sampling(**options)
