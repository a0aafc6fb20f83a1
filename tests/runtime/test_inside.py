"""What a graph returns beside its answer, in Python: one text without a dimension for the batch, several with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from converter.errors import PromptError
from converter.folder.convert import convert
from converter.graph.outputs import WORDS
from converter.runtime import heads
from converter.runtime.cache import GrowingCache
from converter.runtime.opening import load

Save = Callable[..., Path]


@pytest.mark.parametrize("opset", [22, 23])
def test_a_language_model_returns_what_transformers_returns(save: Save, tmp_path: Path, opset: int) -> None:
    source = save()
    convert(source, tmp_path / "out", opset=opset, outputs=WORDS)
    model, ids = load(tmp_path / "out"), np.random.default_rng(0).integers(61, size=(2, 9))
    theirs = transformers.GPT2LMHeadModel.from_pretrained(source, attn_implementation="eager")
    with torch.inference_mode():
        out = theirs(torch.tensor(ids), output_hidden_states=True, output_attentions=True)
    expected = {"logits": out.logits}
    expected |= {f"hidden_states.{i}": value for i, value in enumerate(out.hidden_states)}
    expected |= {f"attentions.{i}": value for i, value in enumerate(out.attentions)}
    both, one = model.outputs(ids), model.outputs(ids[1])
    assert both.keys() == one.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(both[name], value.numpy(), rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(one[name], value[1].numpy(), rtol=1e-4, atol=2e-5)
    with pytest.raises(PromptError, match="25 tokens are more than"):
        model.outputs([1] * 25)


def test_without_outputs_there_are_the_logits(save: Save, tmp_path: Path) -> None:
    convert(save(), tmp_path / "out")
    model = load(tmp_path / "out")
    assert model.inside == []
    assert list(model.outputs([1, 2])) == ["logits"]
    np.testing.assert_array_equal(model.outputs([1, 2])["logits"], model.logits([1, 2]))


@pytest.mark.parametrize("asked", ["attentions.1", "hidden_states", "h.*.attn.sdpa"])
def test_a_graph_that_returns_more_runs_as_it_is_and_generates_the_same(save: Save, tmp_path: Path, asked: str) -> None:
    source = save(n_embd=24)
    convert(source, tmp_path / "plain")
    convert(source, tmp_path / "inside", outputs=asked)
    plain, inside = load(tmp_path / "plain"), load(tmp_path / "inside")
    assert (plain.in_place, inside.in_place) == (True, False)
    assert isinstance(inside.empty_cache(1), GrowingCache)
    prompts = [[5, 60, 0, 17], [3]]
    assert inside.generate(prompts, max_new_tokens=8).tokens == plain.generate(prompts, max_new_tokens=8).tokens
    assert len(inside.outputs([1, 2])) == 1 + len(inside.inside)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_of_every_precision_float32_is_returned(save: Save, tmp_path: Path, precision: str) -> None:
    convert(save(n_layer=1), tmp_path / "out", precision=precision, outputs="*")
    found = load(tmp_path / "out").outputs([1, 2, 3])
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    assert found["attentions.0"].shape == (3, 3, 3)
    np.testing.assert_allclose(found["attentions.0"].sum(axis=-1), 1, atol=2e-3)


@pytest.mark.parametrize("head", ["base", "sequence-classification", "question-answering"])
def test_of_another_head_the_answer_comes_with_what_is_inside(save: Save, tmp_path: Path, head: str) -> None:
    convert(save(head=head), tmp_path / "out", outputs=["attentions", "h.0.mlp.act"])
    model = heads.load(tmp_path / "out")
    one, both = model.outputs([1, 2, 3]), model.outputs([[1, 2, 3], [4]])
    answers = list(model.config.head_spec.outputs)
    assert model.inside == ["attentions.0", "attentions.1", "attentions.2", "h.0.mlp.act"]
    assert list(one) == [*answers, *model.inside]
    assert (one["attentions.0"].shape, both["attentions.0"].shape) == ((3, 3, 3), (2, 3, 3, 3))
    for name, array in one.items():
        np.testing.assert_allclose(both[name][0], array, rtol=1e-4, atol=1e-5)
    assert model.run([[1, 2, 3], [4]])
    with pytest.raises(PromptError, match="there is no text"):
        model.outputs([])


def test_of_choices_each_has_a_row(save: Save, tmp_path: Path) -> None:
    convert(save(head="double-heads"), tmp_path / "out", outputs=["hidden_states.3", "pool"])
    found: dict[str, Any] = heads.load(tmp_path / "out").outputs([[1, 2, 3], [4]])
    assert {name: array.shape for name, array in found.items()} == {
        "mc_logits": (2,), "hidden_states.3": (2, 3, 12), "pool": (2, 1, 12),
    }  # fmt: skip
    assert load(tmp_path / "out").inside == ["hidden_states.3"]  # the language model pools nothing
