"""A Hugging Face folder holds what transformers would have written, and a config that is true of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from converter import convert, load, to_huggingface, to_reference
from converter.data import CHECKPOINT
from converter.errors import GPT2Error
from converter.folder.save import parse_size
from tests.conftest import Save
from tests.folder.saved import (
    Tensors,
    assert_same_bits,
    change,
    complaints,
    config_of,
    digest,
    either_head,
    every_dtype,
    open_quietly,
)


def test_what_transformers_says_is_heard(save: Save) -> None:
    source = save(bos_token_id=50256)
    with pytest.raises(AssertionError, match="bos_token_id must be `None` or an integer within the vocabulary"):
        open_quietly(source)
    source = save("temperature")
    change(source / "generation_config.json", temperature=0.5)
    with pytest.raises(AssertionError, match="generation flags are not valid"):
        open_quietly(source)


@every_dtype
@either_head
def test_what_transformers_wrote_comes_out_byte_for_byte(
    save: Save, tmp_path: Path, tied: bool, dtype: torch.dtype
) -> None:
    source, out = save(dtype=dtype, tie_word_embeddings=tied), tmp_path / "out"
    done = to_huggingface(source, out)
    for name in ("model.safetensors", "generation_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    theirs = config_of(source)
    assert config_of(out) | theirs == config_of(out)
    assert sorted(os.listdir(out)) == sorted([*os.listdir(source), "gpt2onnx.json"])
    assert done.bytes_written == sum(file.stat().st_size for file in out.iterdir())
    assert open_quietly(out).dtype == dtype


@pytest.mark.parametrize("size", ["10KB", "4kb", "0.002 MB", 3000, "1"])
def test_shards_are_those_of_transformers(save: Save, tmp_path: Path, size: int | str) -> None:
    limit = parse_size(size)
    theirs = save("theirs", max_shard_size=limit, tie_word_embeddings=False)
    to_huggingface(save("whole", tie_word_embeddings=False), tmp_path / "out", max_shard_size=size)
    names = {name for name in os.listdir(theirs) if name.startswith("model")}
    assert len(names) > 2
    assert names == {name for name in os.listdir(tmp_path / "out") if name.startswith("model")}
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (theirs / name).read_bytes(), name
    open_quietly(tmp_path / "out")


def test_shards_become_one_file_and_one_file_shards(save: Save, tmp_path: Path) -> None:
    whole, sharded = save("whole"), save("sharded", max_shard_size="6KB")
    to_huggingface(sharded, tmp_path / "a")
    to_huggingface(whole, tmp_path / "b", max_shard_size="6KB")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    for file in sharded.glob("model*"):
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    "size", ["", "GB", "5XB", "five GB", "-1", "-5GB", 0, "0.0001KB", "1e3", "5GiB", "nanGB", "5 5GB"]
)
def test_what_is_no_size_is_refused(save: Save, tmp_path: Path, size: int | str) -> None:
    with pytest.raises(GPT2Error, match=r"max_shard_size is .*; expected bytes, or a number with KB, MB, GB, TB"):
        to_huggingface(save(), tmp_path / "out", max_shard_size=size)


def test_sizes_are_decimal() -> None:
    assert [parse_size(size) for size in ("300KB", "500MB", "1.5GB", "2 tb", "17", 17)] == [
        300_000, 500_000_000, 1_500_000_000, 2 * 10**12, 17, 17,
    ]  # fmt: skip


def mixed(weights: Tensors) -> Tensors:
    """Matrices in half precisions, vectors in float32, as mixed as they come."""
    kinds = {"c_attn.weight": torch.float16, "mlp.c_fc.weight": torch.bfloat16, "wte.weight": torch.bfloat16}
    return {
        name: t.to(next((d for end, d in kinds.items() if name.endswith(end)), t.dtype)) for name, t in weights.items()
    }


def test_every_tensor_keeps_its_own_type(save: Save, tmp_path: Path) -> None:
    source = save()
    weights = mixed(load_file(source / "model.safetensors"))
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    to_huggingface(source, tmp_path / "out")
    to_reference(source, tmp_path / "ref")
    to_huggingface(tmp_path / "ref", tmp_path / "back")
    for out in ("out", "back"):
        assert (tmp_path / out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert config_of(tmp_path / "out")["dtype"] == "float32"  # or transformers would round some of them
    state = open_quietly(tmp_path / "out").state_dict()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in weights.items())


def test_a_head_that_is_the_embedding_is_left_out_and_one_that_is_not_unties(save: Save, tmp_path: Path) -> None:
    source = save()
    weights = load_file(source / "model.safetensors")
    wte = weights["transformer.wte.weight"]
    for name, head, left in (("tied", wte.clone(), 0), ("untied", wte + 1, 1)):
        save_file(weights | {"lm_head.weight": head}, source / "model.safetensors", metadata={"format": "pt"})
        to_huggingface(source, tmp_path / name)
        assert ("lm_head.weight" in load_file(tmp_path / name / "model.safetensors")) == bool(left)
        assert config_of(tmp_path / name)["tie_word_embeddings"] == (not left)
        assert torch.equal(open_quietly(tmp_path / name).lm_head.weight, head)


def test_wrappers_buffers_and_ignored_tensors_are_gone(save: Save, tmp_path: Path) -> None:
    source = save()
    weights = load_file(source / "model.safetensors")
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in weights.items()}
    wrapped |= {"h.0.attn.bias": torch.ones(1, 1, 24, 24), "v_head.weight": torch.ones(3)}
    save_file(wrapped, source / "model.safetensors")
    to_huggingface(source, tmp_path / "out", ignore=["v_head.*"])
    assert_same_bits(load_file(tmp_path / "out" / "model.safetensors"), weights)
    manifest = json.loads((tmp_path / "out" / "gpt2onnx.json").read_text())
    assert {row["role"] for row in manifest["ledger"]} == {"used", "buffer", "ignored"}
    assert manifest["target"] == "hf"
    assert manifest["source"] == {"name": "source", "weight_file": "model.safetensors"}
    assert sorted(manifest["files"]) == sorted(digest(tmp_path / "out"))


def test_the_config_is_true_of_the_folder(save: Save, tmp_path: Path) -> None:
    source = save(dtype=torch.float16)
    values = config_of(source)
    change(source / "config.json", "n_embd", "n_layer", "dtype", hidden_size=12, num_hidden_layers=3, auto_map=None,
           torch_dtype="float64", architectures=["TFGPT2LMHeadModel"], layer_norm_epsilon=0, quantization_config=None,
           **{"transformers.js_config": {"dtype": "fp32"}, "sep_token_id": 61, "our_own": "kept"})  # fmt: skip
    to_huggingface(source, tmp_path / "out")
    assert config_of(tmp_path / "out") == values | {"our_own": "kept", "layer_norm_epsilon": 0.0, "sep_token_id": None}
    open_quietly(tmp_path / "out")


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ({}, (None, None)),  # transformers would take 50256
        ({"bos_token_id": 3, "eos_token_id": [4, 61]}, (3, [4])),
        ({"bos_token_id": -1, "eos_token_id": None}, (None, None)),
    ],
)
def test_tokens_that_the_model_does_not_have_are_not_spoken_of(
    save: Save, tmp_path: Path, ids: dict[str, Any], expected: tuple[Any, Any]
) -> None:
    source, out = save(), tmp_path / "out"
    change(source / "config.json", "bos_token_id", "eos_token_id", "pad_token_id", **ids)
    change(source / "generation_config.json", pad_token_id=-1, eos_token_id=50256)
    to_huggingface(source, out)
    assert tuple(config_of(out)[key] for key in ("bos_token_id", "eos_token_id")) == expected
    generation = json.loads((out / "generation_config.json").read_text())
    assert (generation["pad_token_id"], generation["eos_token_id"]) == (None, None)
    open_quietly(out)


def test_tokenizer_and_licence_travel_with_the_weights(tmp_path: Path) -> None:
    for to in (to_huggingface, to_reference):
        out = tmp_path / to.__name__
        assert to(CHECKPOINT, out).warnings == ()
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE-PSF.txt"):
            assert (out / name).read_bytes() == (CHECKPOINT / name).read_bytes(), name
    model = open_quietly(tmp_path / "to_huggingface")
    with complaints() as said:
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "to_huggingface")
        ids = tokenizer("The following", return_tensors="pt")
        text = tokenizer.decode(model.float().generate(**ids, max_new_tokens=10, do_sample=False, pad_token_id=0)[0])
    assert said == []
    convert(CHECKPOINT, tmp_path / "onnx")
    assert text == "The following" + load(tmp_path / "onnx").generate("The following", max_new_tokens=10).texts[0]


def test_a_source_without_a_tokenizer_is_spoken_of(save: Save, tmp_path: Path) -> None:
    (warning,) = to_huggingface(save(), tmp_path / "out").warnings
    assert warning == f"{tmp_path / 'out'} has no tokenizer, as the source has none that can be read"
