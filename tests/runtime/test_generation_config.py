"""``generation_config.json`` counts as it does in transformers, and what is given wins."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from converter.errors import ConfigError, PromptError
from converter.folder.convert import convert
from converter.runtime.generation import options_of
from converter.runtime.history import History
from converter.runtime.opening import load
from converter.runtime.session import Model
from tests.conftest import Save

PROMPT = [5, 6, 7, 5]
Pair = tuple[Model, Callable[[], transformers.GPT2LMHeadModel]]
MakePair = Callable[..., Pair]


@pytest.fixture
def pair(save: Save, tmp_path: Path) -> MakePair:
    """``pair(said, in_config=False, **config)``: both programs on a checkpoint whose files say this of generation."""

    def make(said: dict[str, Any], in_config: bool = False, **config: Any) -> Pair:
        source = save(**{"eos_token_id": 9} | config)
        file = source / ("config.json" if in_config else "generation_config.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | said))
        if in_config:
            (source / "generation_config.json").unlink()
        convert(source, tmp_path / "out")
        return load(tmp_path / "out"), lambda: transformers.GPT2LMHeadModel.from_pretrained(source)

    return make


def their_ids(theirs: Callable[[], transformers.GPT2LMHeadModel], model: Model, **given: Any) -> list[list[int]]:
    """The new tokens of each text of transformers, without the end of text and what follows it."""
    rows = theirs().generate(torch.tensor([PROMPT]), pad_token_id=60, **given)[:, len(PROMPT) :].tolist()
    return [row[: next((i for i, token in enumerate(row) if token in model.end_ids), len(row))] for row in rows]


@pytest.mark.parametrize(
    "said",
    [
        {"max_new_tokens": 7},
        {"max_length": 9},
        {"max_length": 9, "max_new_tokens": 7},
        {"max_new_tokens": 12, "repetition_penalty": 1.7},
        {"max_new_tokens": 16, "no_repeat_ngram_size": 2},
        {"max_new_tokens": 12, "no_repeat_ngram_size": 1},
        {"max_new_tokens": 12, "suppress_tokens": list(range(30))},
        {"max_new_tokens": 12, "bad_words_ids": [[n] for n in range(40)] + [[50, 51], [7, 5, 44]]},
        {"max_new_tokens": 15, "eos_token_id": [38, 55], "min_new_tokens": 6},
        {"max_new_tokens": 15, "eos_token_id": [38, 55], "min_length": 9},
        {"max_new_tokens": 15, "eos_token_id": [30, 31, 32, 33, 34, 35]},
        {"max_new_tokens": 9, "num_beams": 3},
        {"max_new_tokens": 9, "num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.2, "early_stopping": True},
        {"max_new_tokens": 9, "num_beams": 3, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
        {"max_new_tokens": 9, "temperature": 0.3, "top_k": 4, "top_p": 0.5},  # nothing is drawn
        {"max_new_tokens": 9, "length_penalty": 2.0, "early_stopping": True},  # there are no beams
        {"max_new_tokens": 9, "prompt_lookup_num_tokens": 3},
    ],
    ids=lambda said: "-".join(said),
)
def test_the_tokens_are_those_of_transformers_with_the_same_file(pair: MakePair, said: dict[str, Any]) -> None:
    model, theirs = pair(said)
    assert model.generate([PROMPT]).new_ids == their_ids(theirs, model)
    free = model.generate([PROMPT], generation_config=False, max_new_tokens=20).new_ids
    assert free != model.generate([PROMPT]).new_ids


@pytest.mark.parametrize(
    ("said", "given"),
    [
        ({"max_length": 9}, {"max_new_tokens": 8}),
        ({"max_new_tokens": 12, "repetition_penalty": 1.7}, {"repetition_penalty": 1.0}),
        ({"max_new_tokens": 12, "no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 3, "max_new_tokens": 15}),
        ({"max_new_tokens": 9, "do_sample": True, "top_k": 3}, {"do_sample": False}),
        ({"max_new_tokens": 9, "num_beams": 3, "num_return_sequences": 3}, {"num_return_sequences": 1}),
        ({"max_new_tokens": 9, "num_beams": 3}, {"num_beams": 1}),
        ({"max_new_tokens": 9}, {"num_beams": 3, "num_return_sequences": 2}),
    ],
)
def test_what_is_given_wins_as_in_transformers(pair: MakePair, said: dict[str, Any], given: dict[str, Any]) -> None:
    model, theirs = pair(said)
    assert model.generate([PROMPT], **given).new_ids == their_ids(theirs, model, **given)


@pytest.mark.parametrize(
    ("said", "given"),
    [
        ({"do_sample": True}, {}),  # with transformers' 50 likeliest tokens
        ({"do_sample": True, "temperature": 0.7, "top_k": 7, "repetition_penalty": 1.3}, {}),
        ({"do_sample": True, "top_p": 0.8, "top_k": 0}, {}),
        ({"do_sample": True, "min_p": 0.1}, {"temperature": 1.5}),
        ({"temperature": 0.6, "top_k": 9}, {"do_sample": True}),
        ({}, {"do_sample": True}),
        ({"do_sample": True, "top_k": 5}, {"top_k": 11, "no_repeat_ngram_size": 2}),
    ],
)
def test_tokens_are_drawn_with_the_probabilities_of_transformers(
    pair: MakePair, said: dict[str, Any], given: dict[str, Any]
) -> None:
    model, theirs = pair(said, eos_token_id=None)
    torch.manual_seed(0)
    found = theirs().generate(
        torch.tensor([PROMPT]), pad_token_id=60, max_new_tokens=8, output_scores=True, output_logits=True,
        return_dict_in_generate=True, **given,
    )  # fmt: skip
    asked, history = options_of(model, given), History(PROMPT, 8)
    steps = zip(found.logits, found.scores, found.sequences[0, len(PROMPT) :].tolist(), strict=True)
    for logits, scores, token in steps:
        ours = asked.probabilities(asked.penalise(logits[0].numpy(), history)[None])[0]
        np.testing.assert_allclose(ours, scores[0].double().softmax(-1).numpy(), rtol=1e-4, atol=1e-7)
        history.add(token)


def test_what_old_files_say_in_config_json_counts_too(pair: MakePair) -> None:
    model, theirs = pair({"num_beams": 3, "max_length": 11, "no_repeat_ngram_size": 2}, in_config=True)
    assert model.generate([PROMPT]).new_ids == their_ids(theirs, model)


def test_the_length_that_the_first_versions_of_transformers_wrote_everywhere_does_not(pair: MakePair) -> None:
    model, _ = pair({"max_length": 20, "do_sample": False, "temperature": 1.0, "top_k": 50}, in_config=True)
    assert options_of(model, {}).max_length is None


def test_stop_strings_of_the_file_end_a_text(bundled: Path, tmp_path: Path) -> None:
    free = load(bundled).generate("The following", max_new_tokens=40).texts[0]
    folder = shutil.copytree(bundled, tmp_path / "out", symlinks=True)
    said = {"eos_token_id": 0, "stop_strings": [free[12:18]], "max_new_tokens": 40}
    (folder / "generation_config.json").write_text(json.dumps(said))
    assert load(folder).generate("The following").texts == [free[: free.index(free[12:18])]]


@pytest.mark.parametrize(
    ("said", "given", "kept"),
    [
        ({"do_sample": True, "top_p": 0.5}, {"beams": 3}, {"beams": 3, "temperature": 0.0}),
        ({"do_sample": True}, {"speculate": 4}, {"speculate": 4, "temperature": 0.0}),
        ({"do_sample": True, "num_return_sequences": 3}, {"temperature": 0}, {"best": 1, "temperature": 0}),
        ({"num_beams": 4, "num_return_sequences": 2}, {"temperature": 0.8}, {"beams": 1, "best": 2, "top_k": 0}),
        ({"num_beams": 4, "length_penalty": 2.0}, {"logprobs": 2}, {"beams": 1, "length_penalty": 1.0}),
        ({"num_beams": 4, "num_return_sequences": 4}, {"beams": 2}, {"beams": 2, "best": 1}),
        ({"max_new_tokens": 5}, {"max_length": 10}, {"max_new_tokens": None, "max_length": 10}),
        ({"num_return_sequences": 2}, {}, {"best": 1}),  # transformers refuses it
    ],
)
def test_what_of_the_file_does_not_go_with_what_is_given_is_left_aside(
    pair: MakePair, said: dict[str, Any], given: dict[str, Any], kept: dict[str, Any]
) -> None:
    model, _ = pair(said)
    asked = options_of(model, given)
    assert {name: getattr(asked, name) for name in kept} == kept


def test_what_is_not_to_be_had_is_said_once(pair: MakePair) -> None:
    model, _ = pair({"do_sample": True, "typical_p": 0.9, "max_time": 5.0, "num_beams": 2, "diversity_penalty": 0.0})
    with pytest.warns(
        UserWarning, match=r"generation_config\.json asks for max_time 5\.0, typical_p 0\.9, num_beams 2"
    ):
        model.generate([PROMPT], max_new_tokens=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate([PROMPT], max_new_tokens=2)


def test_what_changes_nothing_is_not_said(pair: MakePair) -> None:
    model, _ = pair({"typical_p": 0.9, "use_cache": False, "guidance_scale": 1.0, "of_another_program": 7})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate([PROMPT], max_new_tokens=2)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"repetition_penalty": 0}, r"generation_config\.json: repetition_penalty is 0; expected above 0: mend it, or"),
        ({"num_beams": "four"}, "num_beams is 'four'; expected 1 or more"),
        ({"do_sample": True, "temperature": "hot"}, "temperature is 'hot'; expected 0 or more"),
        ({"bad_words_ids": [[]]}, "bad_words_ids is .*; expected lists of token ids"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_with_the_name_of_the_file(
    pair: MakePair, said: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model, _ = pair({})
    (tmp_path / "out" / "generation_config.json").write_text(json.dumps(said))
    model = load(tmp_path / "out")
    with pytest.raises(ConfigError, match=message):
        model.generate([PROMPT])
    assert model.generate([PROMPT], generation_config=False, max_new_tokens=2).new_ids


def test_a_prompt_as_long_as_the_files_max_length_is_refused_as_in_transformers(pair: MakePair) -> None:
    model, theirs = pair({"max_length": 4})
    with pytest.raises(ValueError, match="max_length"):
        their_ids(theirs, model)
    with pytest.raises(PromptError, match=r"a prompt has 4 tokens, and max_length is 4, the prompt included: give max"):
        model.generate([PROMPT])
    assert len(model.generate([PROMPT], max_new_tokens=3).new_ids[0]) == 3
