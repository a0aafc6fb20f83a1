"""Whatever is generated on a GPU is what the same model generates elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from converter.data import CHECKPOINT
from converter.folder.convert import convert
from converter.runtime.generation import generate_each, options_of
from converter.runtime.opening import load
from converter.runtime.session import Model
from converter.runtime.slots import GpuSlots, slots_of
from tests.conftest import random_gpt2

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"logprobs": 2},
        {"beams": 3, "best": 2},
        {"repetition_penalty": 1.3},
        {"min_new_tokens": 5},
    ],
)
def test_texts_are_those_of_the_shipped_graph(gpu: Model, plain: Model, options: dict[str, Any]) -> None:
    ours, theirs = (model.generate(PROMPTS, max_new_tokens=25, **options) for model in (gpu, plain))
    assert ours.new_ids == theirs.new_ids
    if "logprobs" in options:
        likely = [[token.log_prob for row in found.tokens for token in row] for found in (ours, theirs)]
        np.testing.assert_allclose(*likely, atol=0.02)


def test_the_texts_of_one_prompt_are_drawn_side_by_side(gpu: Model) -> None:
    """They are more rows than the prompt was run with."""
    drawn = gpu.generate([[1, 2, 3]], max_new_tokens=12, temperature=1.0, seed=3, best=5)
    assert len({tuple(row) for row in drawn.new_ids}) > 1
    assert drawn.new_ids == gpu.generate([[1, 2, 3]], max_new_tokens=12, temperature=1.0, seed=3, best=5).new_ids


def test_speculation_changes_nothing(gpu: Model) -> None:
    whole = gpu.generate([[1, 2, 1, 2, 1, 2]], max_new_tokens=40)
    assert gpu.generate([[1, 2, 1, 2, 1, 2]], max_new_tokens=40, speculate=4).new_ids == whole.new_ids


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 1}, {"logprobs": 0}])
def test_rows_that_join_and_leave_are_those_that_run_alone(gpu: Model, options: dict[str, Any]) -> None:
    prompts = [[i % 61, *PROMPTS[i % 3]] for i in range(9)]
    asked = options_of(gpu, {"max_new_tokens": 12} | options)
    found = [each.new_ids[0] for each in generate_each(gpu, prompts, asked, 4)]
    assert found == [gpu.generate([prompt], max_new_tokens=12, **options).new_ids[0] for prompt in prompts]


def test_a_row_that_is_copied_is_the_same_row(gpu: Model) -> None:
    slots = slots_of(gpu, 3, 50)
    assert isinstance(slots, GpuSlots)
    expected = slots.run(0, [1, 2, 3, 4])
    slots.run(2, [9, 9])
    slots.copy(0, 1, 3)
    found = slots.run(1, [4])
    assert expected is not None
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)
    both = slots.step({0: 5, 1: 5})
    np.testing.assert_allclose(both[0], both[1], rtol=1e-2, atol=1e-2)
    assert slots.used.tolist() == [5, 5, 2]


def test_a_chosen_token_is_that_of_its_logits(gpu: Model) -> None:
    some, others = slots_of(gpu, 3, 50), slots_of(gpu, 3, 50)
    for slots in (some, others):
        slots.run(0, [1, 2, 3, 4])
        slots.run(2, [7, 8])  # and nobody in between
    chosen, logits = some.likeliest({0: 5, 2: 6}), others.step({0: 5, 2: 6})
    assert chosen is not None
    assert {row: chosen[row] for row in (0, 2)} == {row: int(logits[row].argmax()) for row in (0, 2)}


NO_GPU = pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="no GPU")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in fp16 with heads of 64, as GPT-2 has them: a GPU has other kernels for them than for smaller ones."""
    place = tmp_path_factory.mktemp("wide")
    random_gpt2(n_embd=128, n_head=2, n_positions=200).save_pretrained(place / "source")
    convert(place / "source", place / "out", precision="fp16")
    return place / "out"


@pytest.mark.parametrize("provider", ["cpu", pytest.param("cuda", marks=NO_GPU)])
def test_each_step_gives_the_logits_of_the_whole_text(wide: Path, captures: None, provider: str) -> None:
    """Tokens are given, as near ties may be decided in another way by another machine."""
    steps, plain = load(wide, provider=provider, cuda_graphs=True), load(wide)
    slots, texts = slots_of(steps, 3, 50), [list(prompt) for prompt in PROMPTS]
    for row, text in enumerate(texts):
        slots.run(row, text)
    for token in np.random.default_rng(0).integers(0, 61, 20).tolist():  # captured, and replayed
        found = slots.step(dict.fromkeys(range(3), token))
        for row, text in enumerate(texts):
            text.append(token)
            expected = plain.logits(text)[-1]
            np.testing.assert_allclose(found[row], expected, atol=2e-2 * expected.std())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint in fp16."""
    out = tmp_path_factory.mktemp("trained") / "out"
    convert(CHECKPOINT, out, precision="fp16")
    return out


SURE = ["The syntax of", "This can lead to errors", "The following list"]  # what follows is far from any tie


@pytest.mark.parametrize("provider", ["cpu", pytest.param("cuda", marks=NO_GPU)])
@pytest.mark.parametrize("options", [{}, {"logprobs": 0}, {"beams": 3, "best": 2}])
def test_captured_and_replayed_steps_give_the_texts_of_the_shipped_graph(
    trained: Path, captures: None, provider: str, options: dict[str, Any]
) -> None:
    captured, plain = load(trained, provider=provider, cuda_graphs=True), load(trained)
    expected = plain.generate(SURE, max_new_tokens=10, **options).new_ids
    for _ in range(2):
        assert captured.generate(SURE, max_new_tokens=10, **options).new_ids == expected
