"""An adapter of a classifier replaces the head of its base, and is refused where the base has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import converter
from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.options import SourceOptions
from converter.weights.ledger import Role, account
from tests.checkpoint.adapters import (
    SIZES,
    assert_close,
    assert_rounded,
    expected_of,
    merged,
    randomize,
    state_of,
    weights_of,
)
from tests.checkpoint.writers.lora import MODULES, pairs, write


def save_classifier(folder: Path, **config: Any) -> Path:
    torch.manual_seed(1)
    model = transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**SIZES | {"num_labels": 3} | config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


SCORE = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}


def test_a_head_that_was_trained_with_the_adapter_takes_the_place_of_the_bases(tmp_path: Path) -> None:
    source = save_classifier(tmp_path / "base")
    score = np.random.default_rng(0).standard_normal((3, 32), np.float32)
    updates = pairs(MODULES)
    adapter = write(tmp_path / "adapter", updates | {"base_model.model.score.weight": score}, **SCORE)
    found = merged(source, adapter)
    expected = expected_of(source, updates, lambda module: 7 / 3) | {"score.weight": score.astype(np.float64)}
    assert_rounded(found, expected)
    converter.convert(source, tmp_path / "out", adapter=adapter)
    assert converter.check(source, tmp_path / "out", adapter=adapter).passed


# head → what its config is told of labels, and the modules that PEFT saves by the task's name
HEADS = {
    "GPT2ForSequenceClassification": ("SEQ_CLS", {"num_labels": 5, "pad_token_id": 3}),
    "GPT2ForTokenClassification": ("TOKEN_CLS", {"num_labels": 4}),
    "GPT2ForQuestionAnswering": ("QUESTION_ANS", {}),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_the_base_lacks_comes_with_the_adapter_as_peft_puts_it_there(
    base: Path, tmp_path: Path, name: str
) -> None:
    """The base is a language model, opened as a classifier and trained; PEFT's merge of the two is the truth."""
    peft = pytest.importorskip("peft")
    task, config = HEADS[name]
    opened = getattr(transformers, name).from_pretrained(base, **config)
    trained = peft.get_peft_model(opened, peft.LoraConfig(task, r=3, target_modules=["c_attn"], fan_in_fan_out=True))
    randomize(trained)
    trained.save_pretrained(tmp_path / "adapter")
    whole = trained.merge_and_unload().eval()
    assert_close(merged(base, tmp_path / "adapter"), state_of(whole))
    converted = converter.convert(base, tmp_path / "out", adapter=tmp_path / "adapter")
    assert converted.ledger.config.head_spec.class_name == name
    again = getattr(transformers, name).from_pretrained(tmp_path / "out")
    assert (again.config.num_labels, type(again)) == (config.get("num_labels", 2), type(whole))
    assert converter.check(base, tmp_path / "out", adapter=tmp_path / "adapter").passed


def test_the_language_model_that_is_asked_for_leaves_the_adapter_s_head_aside(base: Path, tmp_path: Path) -> None:
    score = {"base_model.model.score.weight": np.zeros((3, 32), np.float32)}
    adapter = write(tmp_path / "adapter", pairs(MODULES) | score, **SCORE)
    ledger = account(open_checkpoint(base, SourceOptions(adapter=adapter, head="lm")))
    assert ledger.config.head == "lm"
    assert [entry.name for entry in ledger.entries if entry.role is Role.OTHER_HEAD] == ["score.weight"]


def test_the_base_s_own_labels_stay_if_the_adapter_has_as_many(tmp_path: Path) -> None:
    source = save_classifier(tmp_path / "base", id2label={0: "bad", 1: "so-so", 2: "good"})
    for count, names in ((3, ["bad", "so-so", "good"]), (4, ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"])):
        score = {"base_model.model.score.weight": np.ones((count, 32), np.float32)}
        adapter = write(tmp_path / "adapter", pairs(MODULES) | score, **SCORE)
        found = open_checkpoint(source, SourceOptions(adapter=adapter))
        assert list(found.config_values["id2label"].values()) == names
        assert account(found).config.num_labels == count


# head → the module of it that an adapter may update
UPDATED = {
    "GPT2ForSequenceClassification": "score",
    "GPT2ForTokenClassification": "classifier",
    "GPT2ForQuestionAnswering": "qa_outputs",
    "GPT2DoubleHeadsModel": "multiple_choice_head.summary",
}


@pytest.mark.parametrize("name", UPDATED)
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_head_may_be_updated_as_peft_updates_it(tmp_path: Path, name: str, dora: bool) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(2)
    klass = getattr(transformers, name)
    klass(transformers.GPT2Config(**SIZES, num_labels=1 if "Double" in name else 2)).save_pretrained(tmp_path / "base")
    settings = peft.LoraConfig(r=3, target_modules=["c_attn", UPDATED[name]], use_dora=dora)
    trained = peft.get_peft_model(klass.from_pretrained(tmp_path / "base"), settings)
    randomize(trained)
    trained.save_pretrained(tmp_path / "adapter")
    assert_close(merged(tmp_path / "base", tmp_path / "adapter"), state_of(trained.merge_and_unload()))


def test_an_embedding_of_a_classifier_is_replaced_and_ties_nothing(tmp_path: Path) -> None:
    source = save_classifier(tmp_path / "base")
    wte = np.random.default_rng(0).standard_normal((61, 32), np.float32)
    tensors = pairs(MODULES) | {"base_model.model.transformer.wte.weight": wte}
    adapter = write(tmp_path / "adapter", tensors, task_type="SEQ_CLS", modules_to_save=["wte"])
    found = merged(source, adapter)
    np.testing.assert_array_equal(found["wte.weight"], wte)
    assert "lm_head.weight" not in found
    assert found.keys() == weights_of(source).keys()
