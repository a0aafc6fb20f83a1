"""Folders of every kind, read by ``GPT2.from_pretrained`` and compared with what transformers wrote."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, GPT2Model

from reference import GPT2, ConfigError, Conv1D, WeightsError
from reference.model import Projection

Save = Callable[..., Path]
Tokens = Callable[..., Tensor]
Hub = Callable[..., GPT2LMHeadModel]
Write = Callable[[dict[str, Tensor], Path], None]


def logits_of(model: GPT2 | GPT2LMHeadModel, ids: Tensor) -> Tensor:
    return model.eval().double()(ids).logits


def assert_same_model(ours: GPT2, theirs: GPT2LMHeadModel, ids: Tensor) -> None:
    torch.testing.assert_close(logits_of(ours, ids), logits_of(theirs, ids), rtol=1e-12, atol=1e-12)


def change_config(folder: Path, *without: str, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    kept = {name: value for name, value in config.items() if name not in without}
    (folder / "config.json").write_text(json.dumps(kept | values))


def write_bin(weights: dict[str, Tensor], folder: Path) -> None:
    torch.save(weights, folder / "pytorch_model.bin")


def write_legacy_bin(weights: dict[str, Tensor], folder: Path) -> None:
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def write_safetensors(weights: dict[str, Tensor], folder: Path) -> None:
    save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / "model.safetensors")


def write_sharded_bin(weights: dict[str, Tensor], folder: Path) -> None:
    weight_map = {name: f"pytorch_model-{i % 3 + 1:05}-of-00003.bin" for i, name in enumerate(weights)}
    for file in set(weight_map.values()):
        torch.save({name: weights[name] for name in weights if weight_map[name] == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


every_format = pytest.mark.parametrize("write", [write_safetensors, write_bin, write_legacy_bin, write_sharded_bin])
mapped_formats = pytest.mark.parametrize("write", [write_safetensors, write_bin, write_sharded_bin])


@pytest.fixture
def folder(save: Save) -> Path:
    """A folder with a ``config.json`` whose weights the test is to write."""
    source = save()
    (source / "model.safetensors").unlink()
    return source


# Formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", [nn.Linear, Conv1D])
@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_of_transformers_gives_its_logits(
    save: Save, tokens: Tokens, tied: bool, projection: Projection
) -> None:
    source = save(tie_word_embeddings=tied)
    ours = GPT2.from_pretrained(source, projection=projection)
    assert_same_model(ours, GPT2LMHeadModel.from_pretrained(source), tokens(2, 9))
    assert (ours.lm_head.weight is ours.wte.weight) is tied
    assert {type(block.mlp.c_fc) for block in ours.h} == {projection}


def test_a_sharded_folder_gives_its_logits(save: Save, tokens: Tokens) -> None:
    source = save(max_shard_size="8KB")
    assert len(list(source.glob("model-*.safetensors"))) > 1
    assert_same_model(GPT2.from_pretrained(source), GPT2LMHeadModel.from_pretrained(source), tokens(2, 9))


@every_format
@pytest.mark.parametrize("tied", [True, False])
def test_a_state_dict_in_every_format_gives_its_logits(
    folder: Path, random_gpt2: Hub, tokens: Tokens, tied: bool, write: Write
) -> None:
    theirs = random_gpt2(tie_word_embeddings=tied)
    write(theirs.state_dict(), folder)
    change_config(folder, tie_word_embeddings=tied)
    ours = GPT2.from_pretrained(folder)
    assert_same_model(ours, theirs, tokens(2, 9))
    assert (ours.lm_head.weight is ours.wte.weight) is tied


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("write", [write_bin, write_legacy_bin])
def test_a_pickle_is_read_without_running_what_it_holds(folder: Path, random_gpt2: Hub, write: Write) -> None:
    write(random_gpt2().state_dict() | {"bomb": Bomb(folder / "crater")}, folder)
    with pytest.raises(pickle.UnpicklingError):
        GPT2.from_pretrained(folder)
    assert not (folder / "crater").exists()


def test_safetensors_come_before_a_pickle(save: Save, random_gpt2: Hub, tokens: Tokens) -> None:
    source = save(seed=0)
    write_bin(random_gpt2(seed=1).state_dict(), source)
    assert_same_model(GPT2.from_pretrained(source), random_gpt2(seed=0), tokens(2, 9))


@pytest.mark.parametrize("as_type", [str, Path])
def test_the_path_is_a_string_or_a_path(save: Save, as_type: type) -> None:
    assert isinstance(GPT2.from_pretrained(as_type(save())), GPT2)


# What the model is once it is open -----------------------------------------------------------------------------


def test_an_opened_model_evaluates(save: Save) -> None:
    model = GPT2.from_pretrained(save())
    assert not any(module.training for module in model.modules())


def test_opening_a_model_draws_nothing(save: Save) -> None:
    source, before = save(), torch.get_rng_state()
    GPT2.from_pretrained(source)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_model_keeps_the_dtype_of_its_file_until_asked_for_another(save: Save, stored: torch.dtype) -> None:
    source = save(dtype=stored)
    assert {parameter.dtype for parameter in GPT2.from_pretrained(source).parameters()} == {stored}
    asked = GPT2.from_pretrained(source, dtype=torch.float32)
    assert {parameter.dtype for parameter in asked.parameters()} == {torch.float32}
    assert asked.lm_head.weight is asked.wte.weight


def mapped_files(address: int) -> set[str]:
    """The file that lies in memory at ``address``, as Linux tells it."""
    files = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _mode, _offset, _device, _inode, *path = line.split(maxsplit=5)
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= address < high:
            files.update(path)
    return files


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mappings")
@mapped_formats
@pytest.mark.parametrize("projection", [nn.Linear, Conv1D])
def test_every_parameter_lies_in_the_mapped_file(
    folder: Path, random_gpt2: Hub, write: Write, projection: Projection
) -> None:
    write(random_gpt2(tie_word_embeddings=False).state_dict(), folder)
    files = {str(file) for file in folder.glob("*model*") if file.suffix != ".json"}
    model = GPT2.from_pretrained(folder, projection=projection)
    found = {name: mapped_files(parameter.data_ptr()) for name, parameter in model.named_parameters()}
    assert {name for name, at in found.items() if not (len(at) == 1 and at <= files)} == set()
    assert set().union(*found.values()) == files


@every_format
def test_writing_to_a_model_leaves_its_files_as_they_are(
    folder: Path, random_gpt2: Hub, tokens: Tokens, write: Write
) -> None:
    theirs = random_gpt2()
    write(theirs.state_dict(), folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    model = GPT2.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert model.ln_f.weight.min() > 0.1
    del model
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert_same_model(GPT2.from_pretrained(folder), theirs, tokens(2, 9))


# Names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module."])
def test_a_wrapper_around_the_names_is_taken_off(folder: Path, random_gpt2: Hub, tokens: Tokens, prefix: str) -> None:
    theirs = random_gpt2(tie_word_embeddings=False)
    write_bin({prefix + name: tensor for name, tensor in theirs.state_dict().items()}, folder)
    assert_same_model(GPT2.from_pretrained(folder), theirs, tokens(2, 9))


def test_the_names_of_the_model_without_its_head_will_do(save: Save, tokens: Tokens) -> None:
    source = save()
    theirs = GPT2LMHeadModel.from_pretrained(source)
    GPT2Model.from_pretrained(source).save_pretrained(source)
    assert "wte.weight" in load_file(source / "model.safetensors")  # no prefix
    assert_same_model(GPT2.from_pretrained(source), theirs, tokens(2, 9))


def test_one_weight_under_two_names_is_refused_with_both(folder: Path, random_gpt2: Hub) -> None:
    weights = random_gpt2().state_dict()
    write_bin(weights | {"module.transformer.wpe.weight": weights["transformer.wpe.weight"]}, folder)
    with pytest.raises(WeightsError, match=r"holds wpe\.weight twice, once as module\.transformer\.wpe\.weight"):
        GPT2.from_pretrained(folder)


def test_the_buffers_of_old_checkpoints_are_ignored(folder: Path, random_gpt2: Hub, tokens: Tokens) -> None:
    theirs = random_gpt2()
    buffers = {}
    for layer in range(3):
        buffers[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 24, 24, dtype=torch.uint8).tril()
        buffers[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    write_bin(theirs.state_dict() | buffers, folder)
    assert_same_model(GPT2.from_pretrained(folder), theirs, tokens(2, 9))


@pytest.mark.parametrize(
    "name", ["h.0.attn.c_attn.scale", "h.0.attn.biases", "h.0.crossattention.bias", "score.weight"]
)
def test_a_weight_that_only_looks_like_a_buffer_is_refused_by_name(folder: Path, random_gpt2: Hub, name: str) -> None:
    write_bin(random_gpt2().state_dict() | {name: torch.zeros(12)}, folder)
    with pytest.raises(WeightsError, match=f"weight {name} has no place"):
        GPT2.from_pretrained(folder)


# The head ------------------------------------------------------------------------------------------------------


def test_a_head_of_its_own_is_used_whatever_the_flag_says(save: Save, random_gpt2: Hub, tokens: Tokens) -> None:
    source = save(tie_word_embeddings=False)
    change_config(source, tie_word_embeddings=True)
    ours = GPT2.from_pretrained(source)
    assert_same_model(ours, random_gpt2(tie_word_embeddings=False), tokens(2, 9))
    assert ours.config.tie_word_embeddings is False


def test_a_head_that_is_the_embedding_is_tied_whatever_the_flag_says(
    folder: Path, random_gpt2: Hub, tokens: Tokens
) -> None:
    theirs = random_gpt2()
    weights = dict(theirs.state_dict())
    head = weights.pop("lm_head.weight").clone()
    write_safetensors(weights | {"lm_head.weight": head}, folder)
    change_config(folder, tie_word_embeddings=False)
    ours = GPT2.from_pretrained(folder)
    assert_same_model(ours, theirs, tokens(2, 9))
    assert ours.lm_head.weight is ours.wte.weight
    assert ours.config.tie_word_embeddings is True


def test_a_head_that_the_config_unties_must_be_there(folder: Path, random_gpt2: Hub) -> None:
    weights = dict(random_gpt2().state_dict())
    del weights["lm_head.weight"]
    write_safetensors(weights, folder)
    change_config(folder, tie_word_embeddings=False)
    with pytest.raises(WeightsError, match=r"lm_head\.weight is missing"):
        GPT2.from_pretrained(folder)


# The config ----------------------------------------------------------------------------------------------------


def test_the_alias_keys_of_a_config_are_understood(save: Save, random_gpt2: Hub, tokens: Tokens) -> None:
    source = save()
    aliases = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 3, "max_position_embeddings": 24}
    change_config(source, "n_embd", "n_layer", "n_head", "n_positions", **aliases)
    assert_same_model(GPT2.from_pretrained(source), random_gpt2(), tokens(2, 9))


def test_every_field_of_the_config_is_read(save: Save) -> None:
    values = {
        "activation_function": "relu2",
        "layer_norm_epsilon": 1e-3,
        "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True,
        "reorder_and_upcast_attn": True,
        "embd_pdrop": 0.2,
        "attn_pdrop": 0.3,
        "resid_pdrop": 0.4,
        "initializer_range": 0.05,
    }
    shape = {"vocab_size": 61, "n_positions": 24, "n_embd": 12, "n_layer": 3, "n_head": 3, "n_inner": 20}
    config = GPT2.from_pretrained(save(**values)).config
    head = {"head": "lm", "num_labels": 2, "pad_token_id": None, "summary_activation": None}
    assert vars(config) == shape | values | head | {"tie_word_embeddings": True}


def test_a_config_that_does_not_say_its_type_is_a_gpt2(save: Save, random_gpt2: Hub, tokens: Tokens) -> None:
    source = save()
    change_config(source, "model_type")
    assert_same_model(GPT2.from_pretrained(source), random_gpt2(), tokens(2, 9))


def test_another_type_of_model_is_refused_by_name(save: Save) -> None:
    source = save()
    change_config(source, model_type="gpt_neo")
    with pytest.raises(ConfigError, match=r"config\.json describes a gpt_neo; expected gpt2"):
        GPT2.from_pretrained(source)


def test_a_config_that_the_weights_contradict_is_refused(save: Save) -> None:
    source = save()
    change_config(source, n_layer=4)
    with pytest.raises(WeightsError, match=r"weight h\.3\.ln_1\.weight is missing"):
        GPT2.from_pretrained(source)


# Missing files -------------------------------------------------------------------------------------------------


def test_a_folder_without_a_config_is_refused(save: Save) -> None:
    source = save()
    (source / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"source has no config\.json"):
        GPT2.from_pretrained(source)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        GPT2.from_pretrained(folder)


@pytest.mark.parametrize("pattern", ["model-00002-of-*.safetensors", "pytorch_model-00002-of-*.bin"])
def test_a_missing_shard_is_named(save: Save, random_gpt2: Hub, pattern: str) -> None:
    source = save(max_shard_size="8KB")
    if pattern.endswith(".bin"):
        (source / "model.safetensors.index.json").unlink()
        write_sharded_bin(random_gpt2().state_dict(), source)
    (shard,) = source.glob(pattern)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=shard.name):
        GPT2.from_pretrained(source)
