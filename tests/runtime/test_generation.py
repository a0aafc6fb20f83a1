"""Generation in ONNX Runtime against transformers' generate, and what ends it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from converter.data import CHECKPOINT, HELD_OUT
from converter.errors import PromptError
from converter.folder.convert import convert
from converter.runtime.opening import load
from converter.runtime.options import GenerationOptions
from converter.runtime.rows import Row
from converter.runtime.session import Model

Save = Callable[..., Path]


@pytest.fixture(scope="module")
def model(bundled: Path) -> Model:
    return load(bundled)


@pytest.fixture(scope="module")
def theirs() -> transformers.GPT2LMHeadModel:
    return transformers.GPT2LMHeadModel.from_pretrained(CHECKPOINT, dtype=torch.float32)


def test_two_hundred_greedy_tokens_are_those_of_transformers(
    model: Model, theirs: transformers.GPT2LMHeadModel
) -> None:
    prompt = "If an exception occurs during execution of the"
    ours = model.generate([prompt], max_new_tokens=200)
    ids = torch.tensor(ours.prompt_ids)
    expected = theirs.generate(ids, max_new_tokens=200, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
    assert ours.new_ids[0] == expected
    assert len(expected) == 200


def test_a_batch_of_unequal_prompts_gives_what_each_gives_alone(model: Model) -> None:
    prompts = ["The", "A class definition is an executable statement that may", "object.__getattr__(self, name)", ""]
    together = model.generate(prompts, max_new_tokens=30)
    for prompt, text in zip(prompts, together.texts, strict=True):
        assert model.generate([prompt], max_new_tokens=30).texts == [text]


def test_text_is_streamed_piece_by_piece_and_adds_up(model: Model) -> None:
    pieces: list[tuple[int, str]] = []
    done = model.generate(["The", "In a"], max_new_tokens=25, on_text=lambda row, text: pieces.append((row, text)))
    assert ["".join(text for row, text in pieces if row == number) for number in (0, 1)] == done.texts
    assert len(pieces) > 20
    assert model.tokenizer is not None
    assert done.texts[0] == model.tokenizer.decode(done.prompt_ids[0] + done.new_ids[0]).removeprefix("The")


def test_characters_of_several_tokens_are_streamed_whole(model: Model) -> None:
    assert model.tokenizer is not None

    text = "größer 😀 ≥"
    row = Row(model, model.tokenizer.encode("x").ids, GenerationOptions())
    pieces = [row.take(token) for token in model.tokenizer.encode(text).ids]
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert "" in pieces


def test_the_same_seed_draws_the_same_tokens_and_another_one_others(model: Model) -> None:
    def draw(seed: int) -> list[int]:
        return model.generate(["The"], max_new_tokens=30, temperature=1.0, seed=seed).new_ids[0]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_generation_stops_at_the_end_of_text(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "free")
    free = load(tmp_path / "free").generate([[5, 6]], max_new_tokens=8)
    assert free.ended == ["max_new_tokens"]
    end = free.new_ids[0][3]
    (source / "generation_config.json").write_text(f'{{"eos_token_id": [{end}, 60]}}')
    convert(source, tmp_path / "ending")
    ended = load(tmp_path / "ending").generate([[5, 6]], max_new_tokens=8)
    assert ended.new_ids[0] == free.new_ids[0][: free.new_ids[0].index(end)]
    assert ended.ended == ["end of text"]


def test_rows_that_end_early_do_not_disturb_the_others(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "free")
    prompts = [[5, 6], [7, 8, 9], [10]]
    free = load(tmp_path / "free").generate(prompts, max_new_tokens=12)
    end = free.new_ids[0][1]
    (source / "generation_config.json").write_text(f'{{"eos_token_id": {end}}}')
    convert(source, tmp_path / "ending")
    ended = load(tmp_path / "ending").generate(prompts, max_new_tokens=12)
    for ours, unbounded in zip(ended.new_ids, free.new_ids, strict=True):
        assert ours == (unbounded[: unbounded.index(end)] if end in unbounded else unbounded)
    assert ended.ended[0] == "end of text"


def test_every_position_is_used_and_none_beyond(save: Save, tmp_path: Path) -> None:
    convert(save(eos_token_id=None), tmp_path / "out")
    model = load(tmp_path / "out")
    done = model.generate([[1, 2, 3], [4] * 10], max_new_tokens=100)
    assert [len(old) + len(new) for old, new in zip(done.prompt_ids, done.new_ids, strict=True)] == [24, 24]
    assert done.ended == ["n_positions", "n_positions"]
    alone = model.generate([[1, 2, 3]])
    assert alone.new_ids[0] == done.new_ids[0]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "there is no prompt"),
        ([[]], "a prompt is empty"),
        ([[1] * 24], "a prompt has 24 tokens; the model's 24 positions leave no room"),
        ([[1], [61]], r"token id 61 is not one of the model's 61 tokens \(0 to 60\)"),
        ([[-1]], "token id -1 is not one"),
        (["text"], "has no tokenizer; give the prompt as token ids"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused(
    save: Save, tmp_path: Path, prompts: list[list[int]], message: str
) -> None:
    convert(save(), tmp_path / "out")
    with pytest.raises(PromptError, match=message):
        load(tmp_path / "out").generate(prompts)


def test_the_bundled_model_was_really_trained(model: Model) -> None:
    assert model.tokenizer is not None
    ids = np.array(model.tokenizer.encode(HELD_OUT.read_text(encoding="utf-8")).ids[:2560]).reshape(10, 256)
    logits = model.logits(ids)[:, :-1].astype(np.float64)
    top = logits.max(axis=-1, keepdims=True)
    log_probabilities = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(log_probabilities, ids[:, 1:, None], axis=-1)
    assert np.exp(-chosen.mean()) < 90  # of text it has not seen; an untrained one has 2048


def test_a_text_is_one_prompt_and_not_a_prompt_a_letter(model: Model) -> None:
    assert model.generate("The following", max_new_tokens=3).new_ids == (
        model.generate(["The following"], max_new_tokens=3).new_ids
    )
    with pytest.raises(PromptError, match="a prompt is 5; expected a text, or a list of token ids"):
        model.generate(["The", 5], max_new_tokens=3)


def test_a_prompt_may_be_token_ids_of_any_kind(model: Model) -> None:
    (ids,) = model.encode("The following")
    expected = model.generate("The following", max_new_tokens=3).new_ids
    for prompt in (ids, tuple(ids), np.array(ids), np.array([ids]), torch.tensor(ids), torch.tensor([ids]), [ids]):
        assert model.generate(prompt, max_new_tokens=3).new_ids == expected
    with pytest.raises(PromptError, match=r"a prompt is \[2\.7\]; expected a text, or a list of token ids"):
        model.generate([[2.7]])
    with pytest.raises(PromptError, match="prompts are 5; expected a text, a list of token ids, or several of either"):
        model.generate(5)


def test_a_character_cut_off_at_the_end_is_not_dropped(model: Model) -> None:

    assert model.tokenizer is not None
    first_bytes = model.tokenizer.encode("😀").ids[:2]
    row = Row(model, model.tokenizer.encode("x").ids, GenerationOptions(max_new_tokens=2))
    shown = "".join(row.take(token) for token in first_bytes)
    assert shown == row.text == "\ufffd"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_new_tokens": 3.5}, "max_new_tokens is 3.5"), ({"seed": -1}, "seed is -1; expected 0 or more")],
)
def test_options_of_the_wrong_kind_are_refused(model: Model, options: dict[str, float], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        model.generate(["The"], **options)


def test_the_smallest_temperature_is_still_the_likeliest_token(model: Model) -> None:
    greedy = model.generate(["The"], max_new_tokens=5).new_ids
    assert model.generate(["The"], max_new_tokens=5, temperature=1e-310, seed=0).new_ids == greedy


def test_truncation_and_padding_that_training_left_in_the_tokenizer_are_off(tmp_path: Path, bundled: Path) -> None:
    folder = shutil.copytree(bundled, tmp_path / "out", symlinks=True)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=32)
    tokenizer.save(str(folder / "tokenizer.json"))
    prompt = "If an exception occurs during execution of the try clause"
    assert load(folder).generate(prompt, max_new_tokens=3).prompt_ids == (
        load(bundled).generate(prompt, max_new_tokens=3).prompt_ids
    )


# --- what ends a text, and what of it is shown ------------------------------------------------------------------------


def test_the_text_ends_before_a_stop_string_wherever_its_tokens_begin(model: Model) -> None:
    free = model.generate("The following", max_new_tokens=60).texts[0]
    for stop in ("item", "tem", "of the", "\n", free[7:19], free[30:31]):
        done = model.generate("The following", max_new_tokens=60, stop=[stop])
        assert done.texts == [free[: free.index(stop)] if stop in free else free]
        assert done.ended == ["stop string" if stop in free else "max_new_tokens"]


def test_nothing_of_a_stop_string_is_streamed_and_the_rest_is(model: Model) -> None:
    free = model.generate(["The", "In a"], max_new_tokens=40).texts
    stop = free[0][20:27]
    pieces: list[tuple[int, str]] = []
    done = model.generate(
        ["The", "In a"], max_new_tokens=40, stop=stop, on_text=lambda row, text: pieces.append((row, text))
    )
    assert done.texts[0] == free[0][: free[0].index(stop)]
    assert ["".join(text for row, text in pieces if row == number) for number in (0, 1)] == done.texts
    assert all(text for _, text in pieces)


def test_a_stop_string_without_a_tokenizer_is_refused(save: Save, tmp_path: Path) -> None:
    convert(save(), tmp_path / "out")
    with pytest.raises(PromptError, match="has no tokenizer; stop strings need one"):
        load(tmp_path / "out").generate([[1]], stop="x")


# --- batches and seeds ------------------------------------------------------------------------------------------------


def test_rows_that_have_ended_leave_the_batch_and_the_others_do_not_notice(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(save(eos_token_id=None), tmp_path / "out")
    model, sizes = load(tmp_path / "out"), list[tuple[int, int]]()
    step = Model.step

    def watched(self: Model, ids: np.ndarray, mask: np.ndarray, *rest: object) -> object:
        sizes.append(mask.shape)
        return step(self, ids, mask, *rest)

    prompts = [[1] * 20, [2, 3], [4] * 11]
    alone = [model.generate([prompt]).new_ids[0] for prompt in prompts]
    monkeypatch.setattr(Model, "step", watched)
    assert model.generate(prompts).new_ids == alone
    assert [rows for rows, _ in sizes] == [3] * 4 + [2] * 9 + [1] * 9
    assert sizes[4] == (2, 15)  # with the longest prompt goes the padding that it had forced on the others


def test_what_a_prompt_draws_does_not_depend_on_its_company(model: Model) -> None:
    def draw(*prompts: str) -> dict[str, str]:
        done = model.generate(list(prompts), max_new_tokens=20, temperature=1.0, seed=3)
        return dict(zip(prompts, done.texts, strict=True))

    together = draw("The", "In a class", "def")
    assert draw("def", "The") == {prompt: together[prompt] for prompt in ("def", "The")}


def test_several_texts_of_one_prompt_differ_and_the_first_is_the_one_it_has_alone(model: Model) -> None:
    asked = {"max_new_tokens": 20, "temperature": 1.0, "seed": 3}
    done = model.generate(["The", "In a class"], best=3, **asked)
    assert len(set(done.texts[:3])) == len(set(done.texts[3:])) == 3
    assert [done.texts[0], done.texts[3]] == model.generate(["The", "In a class"], **asked).texts
    assert done.prompt_ids[:3] == [done.prompt_ids[0]] * 3
    assert model.generate(["The"] * 3, **asked).texts == done.texts[:3]


def test_penalised_greedy_tokens_are_those_of_transformers(model: Model, theirs: transformers.GPT2LMHeadModel) -> None:
    ours = model.generate(["The following", "In a class definition"], max_new_tokens=60, repetition_penalty=1.3)
    for old, new in zip(ours.prompt_ids, ours.new_ids, strict=True):
        expected = theirs.generate(
            torch.tensor([old]), max_new_tokens=60, do_sample=False, pad_token_id=0, repetition_penalty=1.3
        )
        assert new == [token for token in expected[0, len(old) :].tolist() if token]


def test_a_frequency_penalty_makes_a_loop_end(model: Model) -> None:
    def variety(**options: float) -> int:
        return len(set(model.generate("The following", max_new_tokens=100, **options).new_ids[0]))

    assert variety(frequency_penalty=1.0) > variety() < variety(presence_penalty=1.0)
