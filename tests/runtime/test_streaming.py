"""Tokens one by one, and how likely each was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from converter.data import CHECKPOINT
from converter.errors import PromptError
from converter.folder.convert import convert
from converter.runtime.opening import load
from converter.runtime.session import Model
from tests.conftest import Save

PROMPT = "The following statement"


@pytest.fixture(scope="module")
def model(bundled: Path) -> Model:
    return load(bundled)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0, "seed": 4},
        {"stop": ["the"]},
        {"stop": ["zzz", "the interp"]},
        {"speculate": 6},
        {"repetition_penalty": 1.4, "logprobs": 2},
    ],
)
def test_a_stream_is_the_text_of_generate_token_by_token(model: Model, options: dict[str, Any]) -> None:
    whole = model.generate(PROMPT, max_new_tokens=40, **options)
    tokens = list(model.stream(PROMPT, max_new_tokens=40, **options))
    assert tuple(tokens) == whole.tokens[0]
    assert [token.id for token in tokens] == whole.new_ids[0]
    assert "".join(map(str, tokens)) == whole.texts[0]
    assert [token.ended for token in tokens] == [""] * (len(tokens) - 1) + whole.ended


def test_a_token_is_there_before_the_next_is_computed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, step = list[int](), Model.step
    monkeypatch.setattr(Model, "step", lambda self, *given: steps.append(1) or step(self, *given))
    for number, _ in enumerate(model.stream(PROMPT, max_new_tokens=5), 1):
        assert len(steps) == number
    assert next(model.stream(PROMPT)).id == model.generate(PROMPT, max_new_tokens=1).new_ids[0][0]
    assert len(steps) == 7  # to leave the loop ends the generation


def test_the_end_of_text_is_the_last_token_and_has_no_text(save: Save, tmp_path: Path) -> None:
    convert(save(eos_token_id=list(range(60))), tmp_path / "out")
    tokens = list(load(tmp_path / "out").stream([5, 6, 7]))
    assert tokens[-1].ended == "end of text"
    assert len(tokens) == len(load(tmp_path / "out").generate([5, 6, 7]).new_ids[0]) + 1


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (["One", "Two"], {}, "stream gives one text of one prompt"),
        ("One", {"beams": 2}, "stream gives one text of one prompt"),
        ("One", {"num_return_sequences": 2, "do_sample": True}, "stream gives one text of one prompt"),
        ("One", {"max_tokens": 2}, "generate has no option max_tokens; give max_new_tokens"),
        ("word " * 300, {}, "leave no room for a new one"),
    ],
)
def test_what_cannot_be_streamed_is_refused_at_once(
    model: Model, prompt: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        model.stream(prompt, **options)


# --- log-probabilities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_k": 9, "seed": 1}, {"speculate": 5}])
def test_log_probabilities_are_those_of_transformers_before_options_change_them(
    model: Model, options: dict[str, Any]
) -> None:
    done = model.generate(
        [PROMPT, "In a class"][: 1 if "speculate" in options else 2], max_new_tokens=20, logprobs=4, **options
    )
    theirs = transformers.GPT2LMHeadModel.from_pretrained(CHECKPOINT, dtype=torch.float32)
    for old, new, tokens in zip(done.prompt_ids, done.new_ids, done.tokens, strict=True):
        with torch.no_grad():
            logits = theirs(torch.tensor([old + new])).logits[0, len(old) - 1 : -1]
        expected = logits.double().log_softmax(-1)
        np.testing.assert_allclose(
            [t.log_prob for t in tokens], expected.gather(1, torch.tensor(new)[:, None])[:, 0], atol=1e-4
        )
        values, ids = expected.topk(4)
        assert [[i for i, _ in token.best] for token in tokens] == ids.tolist()
        np.testing.assert_allclose([[p for _, p in token.best] for token in tokens], values, atol=1e-4)


def test_log_probabilities_are_those_that_score_gives(model: Model) -> None:
    done = model.generate(PROMPT, max_new_tokens=30, logprobs=0)
    scored = model.score(done.prompt_ids[0] + done.new_ids[0])[0].log_probs[-30:]
    np.testing.assert_allclose([token.log_prob for token in done.tokens[0]], scored, atol=1e-4)
    assert {token.best for token in done.tokens[0]} == {()}


def test_as_many_as_there_are_tokens_can_be_asked_for_and_none_is_kept_unasked(save: Save, tmp_path: Path) -> None:
    convert(save(), tmp_path / "out")
    model = load(tmp_path / "out")
    token = model.generate([1, 2], max_new_tokens=1, logprobs=1000).tokens[0][0]
    assert sorted(i for i, _ in token.best) == list(range(61))
    assert sum(np.exp(p) for _, p in token.best) == pytest.approx(1)
    assert model.generate([1, 2], max_new_tokens=1).tokens[0][0].log_prob is None


# --- logits -----------------------------------------------------------------------------------------------------------


def test_logits_take_a_text_or_its_ids(model: Model) -> None:
    (ids,) = model.encode(PROMPT)
    expected = model.logits(ids)
    assert expected.shape == (len(ids), 2048)
    for given in (PROMPT, np.array(ids), torch.tensor(ids)):
        np.testing.assert_array_equal(model.logits(given), expected)
    np.testing.assert_allclose(model.logits([PROMPT, PROMPT]), np.stack([expected] * 2), atol=1e-4)
    with pytest.raises(PromptError, match="rows of unequal length"):
        model.logits([PROMPT, "In"])
