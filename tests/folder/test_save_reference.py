"""The from-scratch model opens the state dict that was saved for it, and a Hugging Face folder is made of it again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from converter import check, convert, to_huggingface, to_reference
from converter.checkpoint.open import open_checkpoint
from converter.errors import GPT2Error
from reference import GPT2, GPT2Config
from reference.config import STATE_FILE
from tests.conftest import Save
from tests.folder.saved import IDS, assert_same_bits, config_of, digest, either_head, every_dtype


@either_head
@every_dtype
@pytest.mark.parametrize("inner", [20, 12], ids=["oblong", "square"])
def test_there_and_back_is_the_same_folder(
    save: Save, tmp_path: Path, tied: bool, dtype: torch.dtype, inner: int
) -> None:
    source = save(tie_word_embeddings=tied, dtype=dtype, n_inner=inner)
    to_reference(source, tmp_path / "ref")
    to_huggingface(tmp_path / "ref", tmp_path / "back")
    to_huggingface(source, tmp_path / "direct")
    assert digest(tmp_path / "back") == digest(tmp_path / "direct")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    to_reference(tmp_path / "back", tmp_path / "ref again")
    assert digest(tmp_path / "ref again") == digest(tmp_path / "ref")


@either_head
@pytest.mark.parametrize("inner", [20, 12], ids=["oblong", "square"])
def test_plain_torch_loads_the_state_dict(save: Save, tmp_path: Path, tied: bool, inner: int) -> None:
    source = save(tie_word_embeddings=tied, n_inner=inner)
    to_reference(source, tmp_path / "ref")
    weights = load_file(tmp_path / "ref" / STATE_FILE)
    config = GPT2Config.from_dict(config_of(source))
    model = GPT2(config)
    loose = GPT2(config).load_state_dict(weights, strict=False)
    assert (loose.missing_keys, loose.unexpected_keys) == ((["lm_head.weight"] if tied else []), [])
    if tied:
        weights["lm_head.weight"] = weights["wte.weight"]
    model.load_state_dict(weights)  # strict
    assert (model.lm_head.weight is model.wte.weight) == tied
    theirs = transformers.GPT2LMHeadModel.from_pretrained(source).double()
    with torch.no_grad():
        torch.testing.assert_close(model.eval().double()(IDS).logits, theirs(IDS).logits, rtol=1e-12, atol=1e-12)


@either_head
def test_the_from_scratch_model_opens_its_folder(save: Save, tmp_path: Path, tied: bool) -> None:
    source = save(tie_word_embeddings=tied, activation_function="prelu", layer_norm_epsilon=1e-3)
    to_reference(source, tmp_path / "ref")
    ours, theirs = GPT2.from_pretrained(tmp_path / "ref"), GPT2.from_pretrained(source)
    assert ours.config == theirs.config
    assert (ours.lm_head.weight is ours.wte.weight) == tied
    assert_same_bits(ours.state_dict(), theirs.state_dict())


def test_a_folder_that_the_from_scratch_model_cannot_open_is_refused(save: Save, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(GPT2Error, match=r"has no config\.json; expected .* or one with reference\.safetensors"):
        GPT2.from_pretrained(tmp_path / "empty")
    save_file({"w": torch.ones(2)}, tmp_path / "empty" / STATE_FILE)
    with pytest.raises(GPT2Error, match=r"has no gpt2onnx\.reference in its metadata"):
        GPT2.from_pretrained(tmp_path / "empty")


def test_nobody_takes_the_state_dict_for_hugging_faces(save: Save, tmp_path: Path) -> None:
    source, out = save(n_inner=12), tmp_path / "ref"
    to_reference(source, out)
    assert not (out / "config.json").exists()
    (out / "config.json").write_bytes((source / "config.json").read_bytes())
    assert open_checkpoint(out).format == "from-scratch reference"
    (out / STATE_FILE).rename(out / "model.safetensors")
    with pytest.raises(GPT2Error, match=r"model\.safetensors is a state dict of reference/model\.py"):
        open_checkpoint(out)


def test_a_model_folder_is_made_of_the_state_dict(save: Save, tmp_path: Path) -> None:
    source = save(n_inner=12)
    to_reference(source, tmp_path / "ref")
    convert(tmp_path / "ref", tmp_path / "out")
    assert check(source, tmp_path / "out").passed
    assert check(tmp_path / "ref", tmp_path / "out").passed
