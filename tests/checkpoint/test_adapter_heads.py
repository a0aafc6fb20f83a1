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
from converter.errors import CheckpointError
from converter.weights.ledger import account
from tests.checkpoint.adapters import SIZES, assert_rounded, expected_of, merged, weights_of
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


@pytest.mark.parametrize("head", [None, "sequence-classification"])
def test_a_head_that_the_base_lacks_is_refused_and_never_made_up(base: Path, tmp_path: Path, head: str | None) -> None:
    score = np.zeros((3, 32), np.float32)
    adapter = write(tmp_path / "adapter", pairs(MODULES) | {"base_model.model.score.weight": score}, **SCORE)
    with pytest.raises(CheckpointError, match=r"stands for score\.weight, which base lacks"):
        open_checkpoint(base, SourceOptions(adapter=adapter, head=head))


def test_an_update_of_a_head_is_refused(tmp_path: Path) -> None:
    source = save_classifier(tmp_path / "base")
    tensors = pairs(MODULES) | {
        "base_model.model.score.lora_A.weight": np.ones((3, 32), np.float32),
        "base_model.model.score.lora_B.weight": np.ones((3, 3), np.float32),
    }
    adapter = write(tmp_path / "adapter", tensors, target_modules=["c_attn", "mlp.c_proj", "score"])
    with pytest.raises(CheckpointError, match="an update of score, which no LoRA adapter of a GPT-2 can update"):
        account(open_checkpoint(source, SourceOptions(adapter=adapter)))


def test_an_embedding_of_a_classifier_is_replaced_and_ties_nothing(tmp_path: Path) -> None:
    source = save_classifier(tmp_path / "base")
    wte = np.random.default_rng(0).standard_normal((61, 32), np.float32)
    tensors = pairs(MODULES) | {"base_model.model.transformer.wte.weight": wte}
    adapter = write(tmp_path / "adapter", tensors, task_type="SEQ_CLS", modules_to_save=["wte"])
    found = merged(source, adapter)
    np.testing.assert_array_equal(found["wte.weight"], wte)
    assert "lm_head.weight" not in found
    assert found.keys() == weights_of(source).keys()
