"""Speculation: the same tokens as plain greedy generation, in fewer runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.errors import PromptError
from converter.folder.convert import convert
from converter.runtime.batch import Batch
from converter.runtime.opening import load
from converter.runtime.session import Model
from converter.runtime.speculation import Lookup

SEEDS = range(4)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    """Small models that tend to loop: the fewer tokens there are, the more often a text repeats itself."""
    from tests.conftest import random_gpt2

    made = []
    for seed in SEEDS:
        folder = tmp_path_factory.mktemp("looping")
        model: transformers.GPT2LMHeadModel = random_gpt2(seed, vocab_size=7, n_positions=96, eos_token_id=6)
        model.save_pretrained(folder / "source")
        convert(folder / "source", folder / "out", opset=17 if seed % 2 else 23)  # the mask is written in two ways
        made.append(load(folder / "out", threads=1))
    return made


@settings(max_examples=60, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    period=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    times=st.integers(1, 5),
    proposals=st.integers(1, 12),
    new=st.integers(1, 70),
)
def test_the_tokens_are_those_of_plain_greedy_generation(
    models: list[Model], seed: int, period: list[int], times: int, proposals: int, new: int
) -> None:
    prompt = period * times
    plain = models[seed].generate([prompt], max_new_tokens=new)
    fast = models[seed].generate([prompt], max_new_tokens=new, speculate=proposals)
    assert (fast.new_ids, fast.ended) == (plain.new_ids, plain.ended)


def test_the_bundled_model_says_the_same_in_fewer_runs(bundled: Path) -> None:
    model = load(bundled)
    prompt = "The following identifiers are used as reserved words: the following identifiers are"
    plain, fast = (model.generate(prompt, max_new_tokens=150, speculate=count) for count in (0, 10))
    assert fast.texts == plain.texts
    assert plain.speculation is None
    found = fast.speculation
    assert found is not None
    assert found.runs < 100
    assert found.accepted + found.runs == found.tokens == 149
    assert 0 < found.acceptance <= 1 < found.tokens_per_run


def test_penalties_and_stop_strings_are_heeded(bundled: Path) -> None:
    model, asked = load(bundled), {"max_new_tokens": 60, "repetition_penalty": 1.1, "stop": ["statement", "\n\n\n"]}
    plain, fast = (model.generate("The following", speculate=count, **asked) for count in (0, 10))
    assert (fast.new_ids, fast.texts, fast.ended) == (plain.new_ids, plain.texts, plain.ended)


def test_tokens_taken_back_leave_the_logits_as_if_they_had_never_been(models: list[Model]) -> None:
    prompt, wrong, right = [1, 2, 3], [4, 4, 5], [0, 2, 1]
    clean, dirty = (Batch(models[0], [prompt], 20) for _ in range(2))
    for batch in (clean, dirty):
        batch.prefill()
    dirty.run([right[0], *wrong])
    dirty.take_back(len(wrong))
    expected = [clean.run([token])[0] for token in right]
    np.testing.assert_allclose(dirty.run(right[1:]), expected[1:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dirty.run([3]), clean.run([3]), rtol=1e-4, atol=1e-5)


def test_what_followed_the_last_tokens_before_is_proposed() -> None:
    assert Lookup([1, 2, 3, 4, 5, 1, 2, 3]).propose(2) == [4, 5]
    assert Lookup([1, 2, 3]).propose(5) == []
    assert Lookup([]).propose(5) == []


def test_the_longest_match_counts_and_of_those_the_latest() -> None:
    assert Lookup([1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3]).propose(1) == [7]
    assert Lookup([2, 3, 7, 2, 3, 8, 2, 3]).propose(1) == [8]


def test_a_loop_is_taken_for_a_loop() -> None:
    assert Lookup([5, 1, 2, 3, 1, 2, 3]).propose(7) == [1, 2, 3, 1, 2, 3, 1]


def test_several_prompts_are_refused(models: list[Model]) -> None:
    with pytest.raises(PromptError, match="speculate is for one prompt at a time, and these are 2"):
        models[0].generate([[1], [2]], speculate=5)
