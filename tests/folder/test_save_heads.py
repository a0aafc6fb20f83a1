"""Every head is saved and converted, and its folder says which head it has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from converter import check, convert, load_head, to_huggingface, to_reference
from converter.errors import GPT2Error
from reference import GPT2
from reference.head import ASKED, HEADS
from reference.heads import CLASSES
from tests.conftest import Save
from tests.folder.saved import IDS, assert_same_bits, change, complaints, config_of, digest, every_dtype

OTHER_HEADS = [head for head in ASKED if head != "lm"]


def made_for(head: str) -> dict[str, Any]:
    labels = {"num_labels": 5} if head in ("sequence-classification", "token-classification") else {}
    return labels | {"summary_activation": "tanh", "pad_token_id": 5, "n_layer": 1}


@every_dtype
@pytest.mark.parametrize("head", OTHER_HEADS)
def test_each_head_becomes_a_folder_that_its_class_opens_without_a_word(
    save: Save, tmp_path: Path, head: str, dtype: torch.dtype
) -> None:
    source = save(head=head, dtype=dtype, **made_for(head))
    to_huggingface(source, tmp_path / "hf")
    klass = getattr(transformers, HEADS[head].class_name)
    with complaints() as said:
        model, found = klass.from_pretrained(tmp_path / "hf", output_loading_info=True, dtype="auto")
    assert said == []
    assert not any(found.values())
    assert config_of(tmp_path / "hf")["architectures"] == [HEADS[head].class_name]
    assert_same_bits(load_file(tmp_path / "hf" / "model.safetensors"), load_file(source / "model.safetensors"))
    expected = klass.from_pretrained(source, dtype="auto").state_dict()
    assert_same_bits(model.state_dict(), expected)
    assert model.dtype == dtype
    for name in ("num_labels", "id2label", "summary_activation", "pad_token_id"):
        assert getattr(model.config, name) == getattr(klass.from_pretrained(source).config, name)


@pytest.mark.parametrize("head", OTHER_HEADS)
def test_each_head_becomes_a_file_of_the_reference_and_comes_back(save: Save, tmp_path: Path, head: str) -> None:
    source = save(head=head, **made_for(head))
    if head == "double-heads":
        with pytest.raises(GPT2Error, match=r"has two heads.* choose one with --head lm"):
            to_reference(source, tmp_path / "reference")
        to_reference(source, tmp_path / "reference", head="lm")
        assert isinstance(GPT2.from_pretrained(tmp_path / "reference"), GPT2)
        return
    to_reference(source, tmp_path / "reference")
    model = CLASSES[head].from_pretrained(tmp_path / "reference")
    theirs = getattr(transformers, HEADS[head].class_name).from_pretrained(source)
    with torch.no_grad():
        ours, answer = model(IDS), theirs(IDS)
    expected = answer.start_logits if head == "question-answering" else answer[0]
    found = {"question-answering": ours[..., 0], "sequence-classification": ours[:, 0]}.get(head, ours)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    to_huggingface(tmp_path / "reference", tmp_path / "back")
    assert_same_bits(load_file(tmp_path / "back" / "model.safetensors"), load_file(source / "model.safetensors"))
    assert config_of(tmp_path / "back")["architectures"] == [HEADS[head].class_name]
    convert(tmp_path / "reference", tmp_path / "onnx")
    assert check(tmp_path / "reference", tmp_path / "onnx").passed


@pytest.mark.parametrize("head", OTHER_HEADS)
def test_a_converted_folder_opens_in_the_class_of_its_head(save: Save, tmp_path: Path, head: str) -> None:
    source = save(head=head, **made_for(head))
    convert(source, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_symlink()
    klass = getattr(transformers, HEADS[head].class_name)
    with complaints() as said:
        model, found = klass.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert said == []
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert_same_bits(model.state_dict(), klass.from_pretrained(source).state_dict())


def test_a_language_model_becomes_a_body_that_says_so(save: Save, tmp_path: Path) -> None:
    source = save(n_layer=1)
    for write, out in ((to_huggingface, "hf"), (to_reference, "reference"), (convert, "onnx")):
        write(source, tmp_path / out, head="base")
    assert config_of(tmp_path / "hf")["architectures"] == ["GPT2Model"]
    assert config_of(tmp_path / "onnx")["architectures"] == ["GPT2Model"]
    body = transformers.GPT2Model.from_pretrained(tmp_path / "hf")
    assert_same_bits(body.state_dict(), transformers.GPT2LMHeadModel.from_pretrained(source).transformer.state_dict())
    assert check(source, tmp_path / "onnx", head="base").passed


@pytest.mark.parametrize("head", OTHER_HEADS)
def test_each_head_is_converted_in_place(save: Save, tmp_path: Path, head: str) -> None:
    source = save(head=head, **made_for(head))
    before = digest(source)
    convert(source, in_place=True)
    after = digest(source)
    assert before.items() <= after.items()
    graphs = {"model.onnx"} | ({"model_multiple_choice.onnx"} if head == "double-heads" else set())
    assert {name for name in after if name.endswith(".onnx")} == graphs
    assert check(source, source).passed
    assert len(load_head(source).run([[1, 2, 3]])) == 1
    with pytest.raises(GPT2Error, match="exists; --force replaces"):
        convert(source, in_place=True)
    convert(source, in_place=True, force=True)


@pytest.mark.parametrize("head", ["lm", "sequence-classification"])
def test_in_place_a_head_that_config_json_does_not_name_is_refused(save: Save, head: str) -> None:
    source = save(head=head)
    if head == "sequence-classification":  # known by its tensors
        change(source / "config.json", "architectures")
    before = digest(source)
    with pytest.raises(GPT2Error, match=r"--in-place leaves config\.json as it is, by which the head is lm and not"):
        convert(source, in_place=True, head="base" if head == "lm" else None)
    assert digest(source) == before


TASKS = {
    "base": ("feature-extraction", "last_hidden_state"),
    "sequence-classification": ("text-classification", "one row a text"),
    "token-classification": ("token-classification", "one row a token"),
    "question-answering": ("question-answering", "`start_logits` and `end_logits`"),
    "double-heads": ("text-generation", "`mc_logits`"),
}


@pytest.mark.parametrize("head", OTHER_HEADS)
def test_the_model_card_says_what_a_head_does_and_the_manifest_which_file_does_it(
    save: Save, tmp_path: Path, head: str
) -> None:
    convert(save(head=head, n_layer=1), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    task, gives = TASKS[head]
    assert f"pipeline_tag: {task}\n" in card
    assert gives in card
    assert "gpt2onnx run . " in card
    assert ("gpt2onnx generate . " in card) is (head == "double-heads")
    assert not re.search(r"@\w+@", card)
    manifest = json.loads((tmp_path / "out" / "gpt2onnx.json").read_text())
    expected = {head: "onnx/model.onnx"}
    if head == "double-heads":
        expected = {"lm": "onnx/model.onnx", "multiple-choice": "onnx/model_multiple_choice.onnx"}
    assert manifest["heads"] == expected
    assert (tmp_path / "out" / "genai_config.json").exists() is (head == "double-heads")
