"""A tensor that safetensors' ``save_model`` wrote under one of its names is found under the others, too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file, save_model

import converter
from converter.checkpoint.open import open_checkpoint
from converter.errors import CheckpointError
from converter.weights.ledger import Role, account

Save = Callable[..., Path]


def saved(model: torch.nn.Module, folder: Path, metadata: dict[str, str] | None = None, **config: Any) -> Path:
    """Save a model by ``save_model``, and its config with other values; None takes a value out."""
    values = json.loads((folder / "config.json").read_text()) | config
    values = {key: value for key, value in values.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values))
    save_model(model, str(folder / "model.safetensors"), metadata)
    return folder


def tied_by_hand(save: Save) -> tuple[Path, Any]:
    """A model whose config unties its head, and whose owner tied it."""
    folder = save(tie_word_embeddings=False)
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    model.lm_head.weight = model.transformer.wte.weight
    return folder, model.eval()


def numbers(source: Path) -> dict[str, bytes]:
    return {name: tensor.memmap().tobytes() for name, tensor in account(open_checkpoint(source)).weights.items()}


def assert_same_logits(source: Path, out: Path, model: Any) -> None:
    converter.convert(source, out)
    ids = np.array([[5, 17, 60, 0, 33]])
    with torch.inference_mode():
        expected = model(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(converter.load(out).logits(ids), expected, atol=2e-5 * np.abs(expected).max())
    assert converter.check(source, out).passed


@pytest.mark.parametrize("tie", [None, True])
def test_a_config_that_does_not_untie_needs_no_metadata(save: Save, head_model: Any, tmp_path: Path, tie: Any) -> None:
    model = head_model("lm")
    source = saved(model, save(), tie_word_embeddings=tie)
    found = open_checkpoint(source)
    assert "transformer.wte.weight" not in found.tensors
    assert (found.transformers_reads, found.notes) == (True, ())
    assert_same_logits(source, tmp_path / "out", model)


def test_a_head_that_was_tied_by_hand_is_tied_whatever_the_config_says(save: Save, tmp_path: Path) -> None:
    folder, model = tied_by_hand(save)
    source = saved(model, folder)
    with safe_open(source / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"transformer.wte.weight": "lm_head.weight"}
    found = open_checkpoint(source)
    assert found.notes == ("model.safetensors says that transformer.wte.weight is its lm_head.weight, which was taken",)
    assert not found.transformers_reads
    ledger = account(found)
    assert ledger.config.tie_word_embeddings
    roles = {entry.tensor.name: entry.role for entry in ledger.entries}
    assert (roles["transformer.wte.weight"], roles["lm_head.weight"]) == (Role.USED, Role.TIED)
    assert_same_logits(source, tmp_path / "out", model)


def test_the_embedding_may_be_the_name_that_was_kept(save: Save, tmp_path: Path) -> None:
    folder, model = tied_by_hand(save)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(state, folder / "model.safetensors", {"lm_head.weight": "transformer.wte.weight", "format": "pt"})
    assert account(open_checkpoint(folder)).config.tie_word_embeddings
    assert_same_logits(folder, tmp_path / "out", model)


def test_a_wrapped_model_and_a_file_of_another_name_are_no_different(save: Save) -> None:
    folder, model = tied_by_hand(save)
    expected = numbers(saved(model, folder))
    wrapper = torch.nn.Module()
    wrapper.net = model
    (folder / "model.safetensors").unlink()
    save_model(wrapper, str(folder / "mine.safetensors"))
    assert numbers(folder) == expected


def test_layers_that_share_their_weights_are_whole_layers(save: Save, tmp_path: Path) -> None:
    folder = save()
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    for name, parameter in model.transformer.h[0].named_parameters():
        module, _, attribute = name.rpartition(".")
        setattr(model.transformer.h[2].get_submodule(module), attribute, parameter)
    source = saved(model, folder)
    assert " (and 11 more)" in open_checkpoint(source).notes[0]
    assert_same_logits(source, tmp_path / "out", model)


def test_a_module_that_is_there_by_two_names_is_one_model(save: Save) -> None:
    folder = save()
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    expected = numbers(folder)
    model.again = model.transformer
    assert open_checkpoint(saved(model, folder)).notes == ()
    assert numbers(folder) == expected


@pytest.mark.parametrize(
    "metadata",
    [None, {"format": "pt"}, {"transformer.wte.weight": "no such tensor"}, {"gate.weight": "lm_head.weight"}],
)
def test_metadata_that_names_no_tensor_of_a_gpt2_changes_nothing(save: Save, metadata: dict[str, str] | None) -> None:
    folder, model = tied_by_hand(save)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "transformer.wte.weight"}
    save_file(state, folder / "model.safetensors", metadata)
    with pytest.raises(CheckpointError, match=r"has no tensor wte\.weight .*; if lm_head\.weight is both, set"):
        account(open_checkpoint(folder))
