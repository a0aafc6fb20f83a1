"""nanoGPT's checkpoints convert to what nanoGPT computes; what does not say enough is refused."""

from __future__ import annotations

import os
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from converter import convert
from converter.checkpoint import formats, nanogpt
from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.tensor import Computed, LazyTensor
from converter.errors import CheckpointError, ConfigError
from converter.weights.ledger import Role, account
from tests.checkpoint.writers.nanogpt import ARGS, E, H, L, State, T, V, checkpoint, save, state_dict

IDS = torch.tensor([5, 60, 0, 17, 17, 3, 42])
GELUS = {"gelu": F.gelu, "gelu_new": partial(F.gelu, approximate="tanh")}


@pytest.mark.parametrize("activation", GELUS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_the_converted_model_computes_what_nanogpt_does(
    tmp_path: Path, linear_gpt: Any, converted_logits: Any, tied: bool, bias: bool, activation: str
) -> None:
    state = state_dict(bias, tied)
    file = save(checkpoint(state, bias=bias), tmp_path)
    expected = linear_gpt(state, IDS[None], H, GELUS[activation])[0]
    torch.testing.assert_close(converted_logits(file, IDS, activation=activation), expected, atol=2e-5, rtol=1e-5)
    assert (expected - linear_gpt(state, IDS[None], H, F.relu)[0]).abs().max() > 1e-2  # activations are told apart


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_prefixes_masks_and_containers_change_nothing(
    tmp_path: Path, linear_gpt: Any, converted_logits: Any, prefix: str, container: str
) -> None:
    state = state_dict(mask=True)
    file = save(checkpoint(state, prefix), tmp_path, _use_new_zipfile_serialization=container == "zip")
    expected = linear_gpt(state, IDS[None], H, F.gelu)[0]
    torch.testing.assert_close(converted_logits(file, IDS, activation="gelu"), expected, atol=2e-5, rtol=1e-5)
    ledger = account(open_checkpoint(file, SourceOptions(activation="gelu")))
    assert sum(entry.role == Role.BUFFER for entry in ledger.entries) == L
    assert sum(entry.role == Role.TIED for entry in ledger.entries) == 1
    assert ledger.warnings == ()
    assert ledger.weights["h.1.attn.c_proj.weight"].name == f"model.{prefix}transformer.h.1.attn.c_proj.weight"


def test_a_folder_with_a_checkpoint_is_read_and_bfloat16_widened(
    tmp_path: Path, linear_gpt: Any, converted_logits: Any
) -> None:
    state = {name: tensor.bfloat16() for name, tensor in state_dict(tied=False).items()}
    (tmp_path / "out").mkdir()
    save(checkpoint(state), tmp_path / "out")
    expected = linear_gpt(state, IDS[None], H, F.gelu)[0]
    found = converted_logits(tmp_path / "out", IDS, activation="gelu")
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_the_first_checkpoints_had_no_bias_among_their_arguments(tmp_path: Path) -> None:
    saved = checkpoint(state_dict(tied=False))
    del saved["model_args"]["bias"]
    ledger = account(open_checkpoint(save(saved, tmp_path), SourceOptions(activation="gelu_new")))
    assert not ledger.config.tie_word_embeddings
    assert ledger.config.activation_function == "gelu_new"


def test_a_bias_that_is_missing_from_a_model_with_biases_is_not_made_up(tmp_path: Path) -> None:
    state = state_dict()
    del state["transformer.h.1.ln_2.bias"]
    with pytest.raises(CheckpointError, match=r"ckpt\.pt has no tensor h\.1\.ln_2\.bias"):
        convert(save(checkpoint(state), tmp_path), tmp_path / "out", activation="gelu")


def test_the_config_is_put_together(tmp_path: Path) -> None:
    source = formats.read(save(checkpoint(state_dict()), tmp_path), SourceOptions(activation="gelu"))
    assert (source.format, source.weight_file, source.transformers_reads) == ("nanoGPT", "ckpt.pt", False)
    assert source.values == {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": V, "n_positions": T, "n_embd": E,
        "n_layer": L, "n_head": H, "layer_norm_epsilon": 1e-5, "activation_function": "gelu",
        "tie_word_embeddings": True,
    }  # fmt: skip
    assert all(tensor.memmap().shape == tensor.shape for tensor in source.tensors.values())


def test_the_activation_must_be_said(tmp_path: Path) -> None:
    file = save(checkpoint(state_dict()), tmp_path)
    message = r"ckpt\.pt does not record its activation.*--activation gelu if .*nn\.GELU.*--activation gelu_new if"
    with pytest.raises(ConfigError, match=message):
        convert(file, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"activation_function 'swoosh' is unknown"):
        convert(file, tmp_path / "out", activation="swoosh")


@pytest.mark.parametrize("key", ["n_layer", "n_head", "n_embd", "block_size", "vocab_size"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "lacks {}"), ("12", "has a str for {}"), (12.0, "has a float for {}"), (True, "has a bool for {}"),
        (torch.tensor(12), "has a LazyTensor for {}"), ([1], "has a list for {}"), (0, "expected a positive integer"),
    ],
    ids=str,
)  # fmt: skip
def test_a_malformed_size_is_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    file = save(checkpoint(state_dict(), **{key: value}), tmp_path)
    with pytest.raises(ConfigError, match=rf"ckpt\.pt.*{message.format(key)}"):
        open_checkpoint(file, SourceOptions(activation="gelu"))


@pytest.mark.parametrize("key", ["n_layer", "n_embd", "block_size", "vocab_size"])
@pytest.mark.parametrize("bias", [True, False])
def test_an_absurd_size_is_refused_at_once(tmp_path: Path, key: str, bias: bool) -> None:
    file = save(checkpoint(state_dict(bias), bias=bias, **{key: 3 * 10**12}), tmp_path)
    with pytest.raises(CheckpointError, match=r"ckpt\.pt"):
        convert(file, tmp_path / "out", activation="gelu")


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    state = state_dict()
    state["_orig_mod.transformer.wpe.weight"] = state["transformer.wpe.weight"]
    with pytest.raises(CheckpointError, match=r"ckpt\.pt holds transformer\.wpe\.weight twice: as .* and as _orig_mod"):
        open_checkpoint(save(checkpoint(state), tmp_path), SourceOptions(activation="gelu"))


def test_a_model_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    file = save({"model": {"transformer.wte.weight": 3}, "model_args": ARGS}, tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.transformer\.wte\.weight is not a tensor"):
        open_checkpoint(file, SourceOptions(activation="gelu"))


@pytest.mark.parametrize("names", [{}, {"module.h.0.attn.c_attn.weight": torch.ones(36, 12)}])
def test_a_plain_state_dict_is_refused_with_a_way_out(
    tmp_path: Path, linear_gpt: Any, converted_logits: Any, names: State
) -> None:
    state = state_dict(tied=False, mask=True)  # minGPT's model.pt
    file = save(names or state, tmp_path)
    with pytest.raises(CheckpointError, match=r"ckpt\.pt is a plain state dict, .*minGPT.*torch\.save\({'model'"):
        open_checkpoint(file, SourceOptions(activation="gelu_new"))
    file = save({"model": state, "model_args": ARGS}, tmp_path)  # as the message says
    expected = linear_gpt(state, IDS[None], H, GELUS["gelu_new"])[0]
    torch.testing.assert_close(converted_logits(file, IDS, activation="gelu_new"), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"state": {}, "epoch": 3}, "holds state, epoch;"),
        ([1], "holds list;"),
        ({}, "holds nothing;"),
        (5, "holds int;"),
    ],
    ids=str,
)
def test_another_torch_file_is_refused(tmp_path: Path, value: Any, found: str) -> None:
    with pytest.raises(CheckpointError, match=rf"ckpt\.pt {found} expected a checkpoint of nanoGPT"):
        open_checkpoint(save(value, tmp_path))


class Attack:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("place", ["config", "model_args", "model"])
def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path, place: str) -> None:
    saved = checkpoint(state_dict())
    saved[place]["x"] = Attack(f"touch {tmp_path / 'marker'}")
    file = save(saved, tmp_path)
    with pytest.raises(CheckpointError, match=r"ckpt\.pt asks to import .*system; only plain tensors are read"):
        open_checkpoint(file, SourceOptions(activation="gelu"))
    assert not (tmp_path / "marker").exists()


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    file = save(checkpoint(state_dict()), tmp_path)
    sound = file.read_bytes()
    for end in (*range(0, len(sound), len(sound) // 40), len(sound) - 1):
        file.write_bytes(sound[:end])
        with pytest.raises((CheckpointError, ConfigError), match=r"ckpt\.pt"):
            open_checkpoint(file, SourceOptions(activation="gelu"))


def test_no_weight_is_read_to_open_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = state_dict(bias=False)
    state["transformer.wte.weight"] = state["lm_head.weight"] = torch.zeros(2**19, E)  # 24 MiB
    file = save({"model": state, "model_args": ARGS | {"vocab_size": 2**19, "bias": False}}, tmp_path)
    for reader in ("memmap", "chunks"):
        monkeypatch.setattr(LazyTensor, reader, None)
        monkeypatch.setattr(Computed, reader, None)
    tracemalloc.start()
    assert account(open_checkpoint(file, SourceOptions(activation="gelu"))).config.vocab_size == 2**19
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20


def test_recognising_never_raises(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    for data in (b"", b"PK\x03\x04", b"PK\x03\x04/data.pkl", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x80"):
        file.write_bytes(data)
        assert not nanogpt.recognises(file)
    assert not nanogpt.recognises(tmp_path)
    assert not nanogpt.recognises(tmp_path / "absent")
