"""Megatron-LM's GPT-2s convert to what Megatron-LM computes, whatever order their joint projection is in."""

from __future__ import annotations

import os
import pickle
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from converter.checkpoint import formats, megatron
from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.options import SourceOptions
from converter.errors import CheckpointError, ConfigError
from converter.weights.ledger import account
from tests.checkpoint.writers.megatron import (
    IDS,
    INNER,
    NEW,
    OLD,
    SPLITS,
    E,
    L,
    V,
    checkpoint,
    embeddings,
    forward,
    layers,
    save,
)

TANH = partial(F.gelu, approximate="tanh")

CORE = {
    "norm": "input_layernorm", "qkv": "self_attention.linear_qkv", "proj": "self_attention.linear_proj",
    "norm2": "pre_mlp_layernorm", "fc1": "mlp.linear_fc1", "fc2": "mlp.linear_fc2",
}  # fmt: skip


@pytest.mark.parametrize("version", [None, *SPLITS])
def test_every_order_of_query_key_and_value_is_read(
    tmp_path: Path, converted_logits: Any, version: float | None
) -> None:
    names, key = (NEW, "encoder") if version else (OLD, "transformer")
    state = layers(names)
    expected = forward(state, names, version or 0.0, TANH)
    file = save(checkpoint(state, key, version), tmp_path)
    torch.testing.assert_close(converted_logits(file, IDS), expected, atol=2e-5, rtol=1e-5)
    for other in {0.0, 1.0, 2.0} - {version or 0.0} - ({2.0} if version == 3.0 else set()):
        assert (expected - forward(state, names, other, TANH)).abs().max() > 1e-2  # orders are told apart


@pytest.mark.parametrize("head", [None, torch.randn(V, E)], ids=["tied", "untied"])
@pytest.mark.parametrize("bias", [True, False])
def test_models_without_biases_and_with_a_head_of_their_own_are_read(
    tmp_path: Path, converted_logits: Any, bias: bool, head: torch.Tensor | None
) -> None:
    state = layers(NEW, bias)
    saved = checkpoint(state, add_bias_linear=bias, bias_gelu_fusion=False)
    if head is not None:
        saved["model"]["language_model"]["output_layer"] = {"weight": head}
    expected = forward(state, NEW, 3.0, F.gelu, head)
    found = converted_logits(save(saved, tmp_path), IDS)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("fused_norms", [False, True])
def test_megatron_core_is_read(tmp_path: Path, converted_logits: Any, fused_norms: bool) -> None:
    state = layers(CORE)
    expected = forward(state, CORE, 3.0, TANH)
    if fused_norms:  # Transformer Engine's
        within = {".input_layernorm.": ".self_attention.linear_qkv.layer_norm_"}
        within |= {".pre_mlp_layernorm.": ".mlp.linear_fc1.layer_norm_"}
        for old, new in within.items():
            state = {name.replace(old, new): tensor for name, tensor in state.items()}
    wte, wpe = embeddings()
    model = {"embedding.word_embeddings.weight": wte, "embedding.position_embeddings.weight": wpe}
    model |= {f"decoder.{name}": tensor for name, tensor in state.items()}
    model |= {"decoder.layers.0.mlp.linear_fc1._extra_state": torch.ones(5, dtype=torch.uint8)}
    model |= {"decoder.layers.0.self_attention.linear_qkv._extra_state": None}
    file = save(checkpoint({}) | {"model": model}, tmp_path)
    torch.testing.assert_close(converted_logits(file, IDS), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("version", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(tmp_path: Path, converted_logits: Any, dtype: torch.dtype, version: float) -> None:
    state = {name: tensor.to(dtype) for name, tensor in layers(NEW).items()}
    found = converted_logits(save(checkpoint(state, version=version), tmp_path), IDS)
    torch.testing.assert_close(found, forward(state, NEW, version, TANH), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("version", SPLITS)
def test_the_permuted_projection_reads_alike_mapped_and_in_pieces(tmp_path: Path, version: float) -> None:
    state = layers(NEW)
    source = formats.read(save(checkpoint(state, version=version), tmp_path), SourceOptions())
    joint = state["layers.1.self_attention.query_key_value.weight"]
    expected = torch.cat([part.reshape(-1, E) for part in SPLITS[version](joint.T)], 1)  # [E, 3·E]
    found = source.tensors["transformer.h.1.attn.c_attn.weight"]
    assert found.shape == (E, 3 * E)
    assert np.array_equal(found.memmap(), expected.numpy())
    assert np.array_equal(np.concatenate(list(found.chunks())), expected.numpy().ravel())
    assert found.name == "model.language_model.encoder.layers.1.self_attention.query_key_value.weight"


@pytest.mark.parametrize(
    ("args", "activation"),
    [
        ({"bias_gelu_fusion": True, "openai_gelu": False}, "gelu_fast"),
        ({"bias_gelu_fusion": True, "openai_gelu": True}, "gelu_fast"),
        ({"bias_gelu_fusion": False, "openai_gelu": True}, "gelu_new"),
        ({"bias_gelu_fusion": False, "openai_gelu": False}, "gelu"),
    ],
)
def test_the_activation_is_what_the_arguments_make_of_it(
    tmp_path: Path, args: dict[str, bool], activation: str
) -> None:
    found = open_checkpoint(save(checkpoint(layers(NEW), layernorm_epsilon=1e-6, **args), tmp_path))
    assert found.config.activation_function == activation
    assert (found.config.n_inner, found.config.layer_norm_epsilon) == (INNER, 1e-6)
    assert (found.format, found.notes) == ("Megatron-LM", ())


def test_an_activation_that_is_not_recorded_must_be_said(tmp_path: Path) -> None:
    saved = checkpoint(layers(NEW))
    for key in ("openai_gelu", "bias_gelu_fusion"):
        delattr(saved["args"], key)
    file = save(saved, tmp_path)
    with pytest.raises(ConfigError, match=r"model_optim_rng\.pt does not record its activation: give --activation"):
        open_checkpoint(file)
    assert open_checkpoint(file, SourceOptions(activation="gelu_new")).config.activation_function == "gelu_new"


def test_the_model_that_was_released_without_arguments_is_known(tmp_path: Path) -> None:
    width, one = 1024, torch.zeros(1, dtype=torch.float16)  # expanded: 24 layers that take two bytes
    shapes = {"norm": (width,), "qkv": (3 * width, width), "proj": (width, width), "norm2": (width,)}
    shapes |= {"fc1": (4 * width, width), "fc2": (width, 4 * width)}
    state = {}
    for i in range(24):
        for part, shape in shapes.items():
            state[f"layers.{i}.{OLD[part]}.weight"] = one.expand(shape)
            state[f"layers.{i}.{OLD[part]}.bias"] = one.expand(shape[0])
    state |= {"final_layernorm.weight": one.expand(width), "final_layernorm.bias": one.expand(width)}
    embedding = {"word_embeddings": {"weight": one.expand(50304, width)}}
    embedding |= {"position_embeddings": {"weight": one.expand(1024, width)}}
    file = save({"model": {"language_model": {"embedding": embedding, "transformer": state}}}, tmp_path)
    found = open_checkpoint(file)
    assert account(found).parameters == 354_823_168
    assert (found.config.n_head, found.config.activation_function) == (16, "gelu_new")
    assert "records no args" in found.notes[0]


def test_another_model_without_arguments_is_refused(tmp_path: Path) -> None:
    saved = checkpoint(layers(OLD), "transformer", 0)
    del saved["args"]
    message = r"query_key_value\.weight is \[36, 12\]; args, or megatron_gpt2_345m .* ask for \[3072, 1024\]"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(save(saved, tmp_path))


def test_folders_of_checkpoints_are_read(tmp_path: Path) -> None:
    save(checkpoint(layers(NEW)), tmp_path / "all" / "iter_0000100" / "mp_rank_00")
    (tmp_path / "all" / "latest_checkpointed_iteration.txt").write_text("100\n")
    for folder in ("all", "all/iter_0000100", "all/iter_0000100/mp_rank_00"):
        found = open_checkpoint(tmp_path / folder)
        assert found.format == "Megatron-LM"
        assert (found.folder / found.weight_file).is_file()
    (tmp_path / "all" / "iter_0000100").rename(tmp_path / "all" / "release")
    (tmp_path / "all" / "latest_checkpointed_iteration.txt").write_text("release")
    assert open_checkpoint(tmp_path / "all").weight_file == str(Path("release", "mp_rank_00", "model_optim_rng.pt"))


@pytest.mark.parametrize("how", ["tensor", "pipeline", "siblings", "rank", "virtual"])
def test_parts_of_a_model_are_refused(tmp_path: Path, how: str) -> None:
    args = {f"{how}_model_parallel_size": 2} if how in ("tensor", "pipeline") else {}
    saved = checkpoint(layers(NEW), **args)
    if how == "virtual":
        saved["model0"] = saved.pop("model")
    file = save(saved, tmp_path / "release" / ("mp_rank_01" if how == "rank" else "mp_rank_00"))
    if how == "siblings":
        (tmp_path / "release" / "mp_rank_01").mkdir()
    with pytest.raises(CheckpointError, match=r"model_optim_rng\.pt is one of the parts of a model .*tools/checkpoint"):
        open_checkpoint(file)


@pytest.mark.parametrize("key", megatron.REFUSED)
def test_what_gpt2_does_not_have_is_refused(tmp_path: Path, key: str) -> None:
    file = save(checkpoint(layers(NEW), **{key: True}), tmp_path)
    with pytest.raises(ConfigError, match=rf"model_optim_rng\.pt is not a GPT-2: it was trained with {key}"):
        open_checkpoint(file)


@pytest.mark.parametrize(
    "args",
    [{"normalization": "RMSNorm"}, {"position_embedding_type": "rope"}, {"add_position_embedding": False}],
    ids=str,
)
def test_another_kind_of_norm_or_position_is_refused(tmp_path: Path, args: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"model_optim_rng\.pt is not a GPT-2: its \w+ is not \w+"):
        open_checkpoint(save(checkpoint(layers(NEW), **args), tmp_path))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"hidden_size": None}, "args lacks hidden_size"),
        ({"hidden_size": "12"}, "args has a str for hidden_size"),
        ({"num_attention_heads": 5}, "n_head to divide n_embd"),
        ({"num_attention_heads": 0}, "expected positive integers"),
        ({"num_attention_heads": 2}, "kv_channels in args is not 6"),
        ({"kv_channels": 8}, "kv_channels in args is not 4"),
    ],
    ids=str,
)
def test_malformed_arguments_are_refused(tmp_path: Path, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"model_optim_rng\.pt.*{message}"):
        open_checkpoint(save(checkpoint(layers(NEW), **args), tmp_path))


def test_arguments_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"args are a list; expected an argparse\.Namespace"):
        open_checkpoint(save(checkpoint(layers(NEW)) | {"args": [1]}, tmp_path))


@pytest.mark.parametrize(
    "args", [{"num_layers": 2}, {"num_layers": 10**12}, {"ffn_hidden_size": None}, {"hidden_size": 15}]
)
def test_arguments_of_another_model_are_refused(tmp_path: Path, args: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"model_optim_rng\.pt"):
        account(open_checkpoint(save(checkpoint(layers(NEW), **args, kv_channels=None), tmp_path)))


@pytest.mark.parametrize("version", [-1, 1.5, 4, float("nan"), "3", [3]], ids=str)
def test_an_unknown_version_is_refused(tmp_path: Path, version: Any) -> None:
    with pytest.raises(CheckpointError, match=r"is of checkpoint_version .*; expected one of 0, 1, 2, 3"):
        open_checkpoint(save(checkpoint(layers(NEW), version=version), tmp_path))


def test_a_tensor_that_no_gpt2_has_is_refused(tmp_path: Path) -> None:
    saved = checkpoint(layers(NEW))
    saved["model"]["language_model"]["pooler"] = {"dense.weight": torch.ones(E, E)}  # a BERT's
    checkpoint_ = open_checkpoint(save(saved, tmp_path))
    with pytest.raises(CheckpointError, match=r"pooler\.dense\.weight is not part of a GPT-2"):
        account(checkpoint_)
    account(checkpoint_, ignore=["*pooler*"])


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    saved = checkpoint(layers(NEW))
    saved["model"]["language_model"]["transformer"] = layers(OLD)
    with pytest.raises(CheckpointError, match=r"holds transformer\.h\.0\.ln_1\.weight twice: as .*encoder.* and as .*"):
        open_checkpoint(save(saved, tmp_path))


def test_a_model_of_something_else_than_tensors_is_refused(tmp_path: Path) -> None:
    saved = checkpoint(layers(NEW))
    saved["model"]["language_model"]["encoder"]["layers.0.x"] = [1]
    with pytest.raises(CheckpointError, match=r"model\.language_model\.encoder\.layers\.0\.x is a list; expected"):
        open_checkpoint(save(saved, tmp_path))


def test_dicts_that_hold_themselves_a_billion_times_are_refused(tmp_path: Path) -> None:
    nested: dict[str, Any] = {}
    for _ in range(60):
        nested = {"a": nested, "b": nested}
    with pytest.raises(CheckpointError, match=r"is a dict; expected dicts of tensors"):
        open_checkpoint(save(checkpoint({}) | {"model": {"language_model": nested}}, tmp_path))


class Attack:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("place", ["args", "optimizer", "model"])
def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path, place: str, container: str) -> None:
    attack = Attack(f"touch {tmp_path / 'marker'}")
    saved = checkpoint(layers(NEW), data_path=attack if place == "args" else None)
    if place != "args":
        saved[place]["x"] = attack
    file = save(saved, tmp_path, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(CheckpointError, match=r"asks to import .*system; only plain tensors are read"):
        open_checkpoint(file)
    assert not (tmp_path / "marker").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "marker").exists()  # the attack is a real one


def test_megatrons_own_classes_are_described_and_never_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("megatron.enums")
    kind = type("ModelType", (), {"__module__": "megatron.enums", "__reduce__": lambda self: (type(self), (1,))})
    module.ModelType = kind
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "megatron", types.ModuleType("megatron"))
        patched.setitem(sys.modules, "megatron.enums", module)
        file = save(checkpoint(layers(NEW), model_type=kind()), tmp_path)
    with pytest.raises((ModuleNotFoundError, pickle.UnpicklingError)):
        torch.load(file, weights_only=False)
    assert account(open_checkpoint(file)).config.n_layer == L


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    file = save(checkpoint(layers(NEW)), tmp_path)
    sound = file.read_bytes()
    for end in (*range(0, len(sound), len(sound) // 30), len(sound) - 1):
        file.write_bytes(sound[:end])
        with pytest.raises((CheckpointError, ConfigError), match=r"model_optim_rng\.pt"):
            open_checkpoint(file)
