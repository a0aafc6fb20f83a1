"""Sampling against transformers' own logits processors on the same logits, and in transformers' own order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from converter.errors import PromptError
from converter.runtime.history import History
from converter.runtime.sampling import Sampling

Save = Callable[..., Path]

LOGITS = np.random.default_rng(0).normal(0, 3, (5, 97)).astype(np.float32)


def histories(count: int, seed: int = 0) -> list[History]:
    return [History([1], 4, seed, copy) for copy in range(count)]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 5, 1000])
@pytest.mark.parametrize("top_p", [0.05, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.02, 0.3, 1.0])
def test_probabilities_are_those_of_transformers(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    theirs = warpers(torch.zeros(5, 1, dtype=torch.long), torch.tensor(LOGITS, dtype=torch.float64)).softmax(-1)
    ours = Sampling(temperature, top_k, top_p, min_p).probabilities(LOGITS)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    prompt, text = [3, 5, 3, 90], [7, 5, 8]
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + text]), torch.tensor(LOGITS[:1]).double())
    history = History(prompt, 10)
    for token in text:
        history.add(token)
    np.testing.assert_allclose(Sampling(repetition_penalty=penalty).penalise(LOGITS[0], history), theirs[0].numpy())


def test_frequency_and_presence_penalties_count_the_text_and_not_the_prompt() -> None:
    history = History([3, 5], 10)
    for token in (7, 5, 7):
        history.add(token)
    less = LOGITS[0] - Sampling(frequency_penalty=0.5, presence_penalty=0.25).penalise(LOGITS[0], history)
    assert {int(token): round(float(less[token]), 6) for token in np.flatnonzero(less)} == {5: 0.75, 7: 1.25}


def test_every_step_of_sampling_is_transformers_own_in_its_order(save: Save) -> None:
    model = transformers.GPT2LMHeadModel.from_pretrained(save(eos_token_id=None))
    asked = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.4}
    prompt = [5, 6, 7, 5]
    torch.manual_seed(0)
    theirs = model.generate(
        torch.tensor([prompt]), do_sample=True, max_new_tokens=12, pad_token_id=0, output_scores=True,
        output_logits=True, return_dict_in_generate=True, **asked,
    )  # fmt: skip
    sampling, history = Sampling(**asked), History(prompt, 12)
    steps = zip(theirs.logits, theirs.scores, theirs.sequences[0, len(prompt) :].tolist(), strict=True)
    for logits, scores, token in steps:
        ours = sampling.probabilities(sampling.penalise(logits[0].numpy(), history)[None])[0]
        np.testing.assert_allclose(ours, scores[0].double().softmax(-1).numpy(), rtol=1e-4, atol=1e-7)
        history.add(token)


# Few tokens, so that runs come again and again.
few = st.integers(0, 5)


@given(
    ids=st.lists(few, min_size=1, max_size=12),
    size=st.integers(1, 4),
    words=st.lists(st.lists(few, min_size=1, max_size=3), min_size=1, max_size=4),
    suppressed=st.lists(few, max_size=3),
)
def test_the_tokens_that_may_not_come_are_those_of_transformers(
    ids: list[int], size: int, words: list[list[int]], suppressed: list[int]
) -> None:
    history = History(ids, 4, end_ids=frozenset([0, 3]))
    sampling = Sampling(no_repeat_ngram_size=size, bad_words_ids=words, suppress_tokens=suppressed)
    theirs = LogitsProcessorList([NoRepeatNGramLogitsProcessor(size)])
    if [word for word in words if word not in ([0], [3])]:  # of ends of text alone it refuses to hear
        theirs.append(NoBadWordsLogitsProcessor(words, torch.tensor([0, 3])))
    theirs.append(SuppressTokensLogitsProcessor(suppressed))
    expected = theirs(torch.tensor([ids]), torch.tensor(LOGITS[:1, :6]).double())[0].numpy()
    np.testing.assert_array_equal(sampling.penalise(LOGITS[0, :6], history), expected)


# Those that differ do so by enough to differ as probabilities; of equally probable tokens any may be left out.
floats = st.integers(-30 * 2**10, 30 * 2**10).map(lambda number: number / 2**10)
samplings = st.builds(
    Sampling,
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
)


@given(logits=st.lists(floats, min_size=1, max_size=30), sampling=samplings)
def test_probabilities_sum_to_one_and_keep_the_order_of_the_logits(logits: list[float], sampling: Sampling) -> None:
    scores = np.array(logits, np.float32)
    probabilities = sampling.probabilities(scores[None])[0]
    assert probabilities.sum() == pytest.approx(1)
    assert probabilities[scores.argmax()] == probabilities.max() > 0
    left_out, kept = scores[probabilities == 0], scores[probabilities > 0]
    if sampling.temperature > 0.5:  # below, what is kept may be too rare for a number
        assert not left_out.size or left_out.max() <= kept.min()


@given(logits=st.lists(floats, min_size=1, max_size=30), data=st.data())
def test_a_stricter_option_keeps_no_token_that_a_looser_one_leaves_out(
    logits: list[float], data: st.DataObject
) -> None:
    scores = np.array(logits, np.float32)[None]
    name, strategy = data.draw(
        st.sampled_from([("top_k", st.integers(1, 30)), ("top_p", st.floats(0.01, 1)), ("min_p", st.floats(0, 1))])
    )
    few, many = sorted([data.draw(strategy), data.draw(strategy)], reverse=name == "min_p")
    strict, loose = (Sampling(temperature=1.0, **{name: value}).probabilities(scores) > 0 for value in (few, many))
    assert not (strict & ~loose).any()


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], np.float32)).repeat(5_000, axis=0)
    drawn = Sampling(temperature=1.0).choose(logits, histories(len(logits)))
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.15, 0.05], atol=0.03)  # four standard deviations


def test_temperature_zero_takes_the_likeliest_token() -> None:
    assert Sampling().choose(LOGITS, histories(5)) == LOGITS.argmax(axis=-1).tolist()


def test_temperature_zero_takes_the_likeliest_of_what_the_penalties_leave() -> None:
    history = History([int(LOGITS[0].argmax())], 4)
    assert Sampling(repetition_penalty=100.0).choose(LOGITS[:1], [history]) == [int(np.argsort(LOGITS[0])[-2])]


def test_tokens_left_out_are_never_drawn() -> None:
    streams = histories(5)
    for _ in range(200):
        drawn = Sampling(temperature=5.0, top_k=3).choose(LOGITS, streams)
        assert all(token in np.argsort(-row)[:3] for token, row in zip(drawn, LOGITS, strict=True))


def test_rows_draw_from_streams_of_their_own() -> None:
    alone, together = histories(3, seed=7)[1], histories(3, seed=7)
    sampling = Sampling(temperature=1.0)
    for _ in range(5):
        assert sampling.choose(LOGITS[:3], together)[1] == sampling.choose(LOGITS[1:2], [alone])[0]
    assert histories(1, seed=8)[0].random() != histories(1, seed=7)[0].random()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; expected 0 or more"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0; expected above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 1.1}, "min_p is 1.1; expected 0 to 1"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; expected above 0"),
        ({"frequency_penalty": float("inf")}, "frequency_penalty is inf; expected a number"),
        ({"presence_penalty": float("nan")}, "presence_penalty is nan; expected a number"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Sampling(**options)
