"""Beam search against transformers' own on the same model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from converter.data import CHECKPOINT
from converter.folder.convert import convert
from converter.runtime.opening import load
from converter.runtime.session import Model

Save = Callable[..., Path]

PROMPTS = [[5, 6, 7], [40], [9, 8, 9, 8, 30]]


def beams_of_transformers(
    model: transformers.GPT2LMHeadModel, prompts: list[list[int]], end: int | None, **options: Any
) -> tuple[list[list[int]], list[float]]:
    """The new tokens, without the end-of-text token, and the scores; padded on the left as transformers wants it."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    done = model.generate(
        ids, attention_mask=mask, do_sample=False, pad_token_id=0, eos_token_id=end, return_dict_in_generate=True,
        output_scores=True, **options,
    )  # fmt: skip
    new = [row[longest:].tolist() for row in done.sequences]
    if end is not None:
        new = [row[: row.index(end)] if end in row else row for row in new]
    return new, done.sequences_scores.tolist()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("beams", "best"), [(2, 1), (3, 3), (5, 2)])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -0.7, 2.5])
def test_beams_are_those_of_transformers(
    save: Save, tmp_path: Path, seed: int, beams: int, best: int, early_stopping: bool | str, length_penalty: float
) -> None:
    source = save(seed=seed)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(source)
    end = ends_often(theirs)
    (source / "generation_config.json").write_text(f'{{"eos_token_id": {end}, "pad_token_id": 0}}')
    convert(source, tmp_path / "out")
    shared = {"max_new_tokens": 12, "early_stopping": early_stopping, "length_penalty": length_penalty}
    expected, scores = beams_of_transformers(theirs, PROMPTS, end, num_beams=beams, num_return_sequences=best, **shared)
    ours = load(tmp_path / "out").generate(PROMPTS, beams=beams, best=best, **shared)
    assert ours.new_ids == expected
    np.testing.assert_allclose(ours.scores, scores, rtol=1e-4, atol=1e-5)
    assert {"end of text", "max_new_tokens"} >= set(ours.ended)


def ends_often(model: transformers.GPT2LMHeadModel) -> int:
    """A token that greedy generation comes by: as the end of text it ends beams at different lengths."""
    return model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=6, do_sample=False, pad_token_id=0)[0, -1].item()


def test_beams_of_the_bundled_model_are_those_of_transformers(bundled: Path) -> None:
    model = load(bundled)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(CHECKPOINT, dtype=torch.float32)
    assert model.tokenizer is not None
    prompts = [model.tokenizer.encode(text).ids for text in ("If an exception occurs", "The", "A class definition is")]
    expected, scores = beams_of_transformers(theirs, prompts, 0, num_beams=4, num_return_sequences=2, max_new_tokens=40)
    ours = model.generate(prompts, beams=4, best=2, max_new_tokens=40)
    assert ours.new_ids == expected
    np.testing.assert_allclose(ours.scores, scores, rtol=1e-4)


@pytest.mark.parametrize("penalty", [1.3, 0.8])
@pytest.mark.parametrize("prompts", [PROMPTS, [[7, 7, 7, 7]]])
def test_penalised_beams_are_those_of_transformers(
    save: Save, tmp_path: Path, penalty: float, prompts: list[list[int]]
) -> None:
    source = save(eos_token_id=None)
    convert(source, tmp_path / "out")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(source)
    for prompt in prompts:  # one by one: transformers counts padding among the tokens that are penalised
        shared = {"max_new_tokens": 12, "repetition_penalty": penalty}
        expected, scores = beams_of_transformers(theirs, [prompt], None, num_beams=4, num_return_sequences=3, **shared)
        ours = load(tmp_path / "out").generate([prompt], beams=4, best=3, **shared)
        assert ours.new_ids == expected
        np.testing.assert_allclose(ours.scores, scores, rtol=1e-4, atol=1e-5)


def test_each_beam_is_penalised_for_its_own_text(bundled: Path) -> None:
    model = load(bundled)
    free, penalised = (
        model.generate("The following", beams=3, max_new_tokens=40, frequency_penalty=p) for p in (0.0, 2.0)
    )
    assert len(set(penalised.new_ids[0])) > len(set(free.new_ids[0]))


@pytest.mark.parametrize("stop", [["\n\n"], [" of the", "statement"], ["ed", "\n"]])
def test_stop_strings_end_beams_as_in_transformers(bundled: Path, stop: list[str]) -> None:
    model, text = load(bundled), "A class definition is"
    theirs = transformers.GPT2LMHeadModel.from_pretrained(CHECKPOINT, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    ids = tokenizer(text).input_ids
    shared = {"max_new_tokens": 30, "length_penalty": 0.5}
    expected, scores = beams_of_transformers(
        theirs, [ids], 0, num_beams=4, num_return_sequences=3, stop_strings=stop, tokenizer=tokenizer, **shared
    )
    ours = model.generate([text], beams=4, best=3, stop=stop, **shared)
    assert ours.new_ids == [trimmed(row) for row in expected]
    np.testing.assert_allclose(ours.scores, scores, rtol=1e-4)
    assert "stop string" in ours.ended
    assert not any(string in text for text in ours.texts for string in stop)


def trimmed(row: list[int]) -> list[int]:
    """Without the padding that makes rows equally long; it is the end of text here, too."""
    while row and row[-1] == 0:
        row = row[:-1]
    return row


@pytest.fixture
def model(save: Save, tmp_path: Path) -> Model:
    convert(save(eos_token_id=None), tmp_path / "out")
    return load(tmp_path / "out")


def test_searches_side_by_side_find_what_each_finds_alone(model: Model) -> None:
    together = model.generate(PROMPTS, beams=3, best=2)  # to the last position: they end at different times
    alone = [model.generate([prompt], beams=3, best=2).new_ids for prompt in PROMPTS]
    assert together.new_ids == [ids for found in alone for ids in found]
    assert together.ended == ["n_positions"] * 6


def test_the_best_beam_comes_first_and_greedy_is_no_likelier(model: Model) -> None:
    done = model.generate([[5, 6]], beams=4, best=4, max_new_tokens=8, length_penalty=0.0)
    assert list(done.scores) == sorted(done.scores, reverse=True)
    assert done.best == len(done.new_ids) == 4
    assert len({tuple(ids) for ids in done.new_ids}) == 4
    greedy = model.generate([[5, 6]], max_new_tokens=8).new_ids[0]
    logits = model.logits([5, 6, *greedy]).astype(np.float64)[1:-1]
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    assert done.scores[0] >= np.take_along_axis(log_probabilities, np.array(greedy)[:, None], axis=1).sum() - 1e-4


@pytest.mark.parametrize("end", [0, 1, 3])
def test_more_beams_than_tokens_are_no_trouble(save: Save, tmp_path: Path, end: int) -> None:
    source = save(vocab_size=5, eos_token_id=end)
    convert(source, tmp_path / "out")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(source)
    prompts = [[2, 1, 0], [1, 4, 2, 3]]
    expected, _ = beams_of_transformers(theirs, prompts, end, num_beams=6, num_return_sequences=6, max_new_tokens=9)
    assert load(tmp_path / "out").generate(prompts, beams=6, best=6, max_new_tokens=9).new_ids == expected


def test_the_text_of_beams_is_handed_over_when_the_search_is_over(bundled: Path) -> None:
    pieces: list[tuple[int, str]] = []
    done = load(bundled).generate(
        ["The"], beams=3, best=2, max_new_tokens=10, on_text=lambda row, text: pieces.append((row, text))
    )
    assert ["".join(text for row, text in pieces if row == number) for number in (0, 1)] == done.texts
