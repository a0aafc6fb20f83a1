"""Checkpoints of other libraries and merged adapters are saved as any other source is."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from converter import check, convert, to_huggingface, to_reference
from tests.conftest import Save
from tests.folder.saved import IDS, assert_same_bits, config_of, digest, either_head, every_dtype, nanogpt, open_quietly

WRITTEN = Path(__file__).parents[1] / "checkpoint" / "written"


@either_head
@every_dtype
def test_a_nanogpt_checkpoint_becomes_the_folder_it_could_have_come_from(
    save: Save, tmp_path: Path, tied: bool, dtype: torch.dtype
) -> None:
    source = save(n_inner=None, tie_word_embeddings=tied, dtype=dtype)
    file = nanogpt(source, tmp_path / "ckpt.pt")
    to_huggingface(file, tmp_path / "hf", activation="gelu_new")
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert config_of(tmp_path / "hf")["eos_token_id"] is None
    ours, theirs = open_quietly(tmp_path / "hf"), transformers.GPT2LMHeadModel.from_pretrained(source)
    assert torch.equal(ours(IDS).logits, theirs(IDS).logits)
    convert(tmp_path / "hf", tmp_path / "a")
    convert(file, tmp_path / "b", activation="gelu_new")
    for out in "ab":
        report = check(source, tmp_path / out)
        assert report.exactness_faults == ()
        assert report.by_logits_alone().passed
        # The graph is the same; the files beside it lack what nanoGPT does not save.
        assert not any(fault.startswith("onnx/") for fault in report.reproduction_faults)
    graphs = [(tmp_path / out / "onnx" / "model.onnx_data") for out in "ab"]
    assert_same_bits(load_file(graphs[0]), load_file(graphs[1]))


@pytest.mark.parametrize("name", ["tensorflow", "tensorflow-sharded", "flax", "flax-sharded", "flax-untied", "openai"])
def test_what_other_libraries_wrote_becomes_a_folder(tmp_path: Path, name: str) -> None:
    if name.startswith("tensorflow"):
        pytest.importorskip("h5py")
    to_huggingface(WRITTEN / name, tmp_path / "out")
    to_reference(WRITTEN / name, tmp_path / "ref")
    to_huggingface(tmp_path / "ref", tmp_path / "back")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    for hf_name, tensor in weights.items():
        start = zlib.crc32(hf_name.removeprefix("transformer.").encode())  # as the README.md there says
        expected = (torch.arange(tensor.numel()) + start) % 256 / 8 - 16
        assert tensor.flatten().tolist() == expected.tolist(), hf_name
    state = open_quietly(tmp_path / "out").state_dict()
    assert all(torch.equal(state[hf_name], tensor) for hf_name, tensor in weights.items())
    assert digest(tmp_path / "back") == digest(tmp_path / "out")


def lora(folder: Path) -> Path:
    """An adapter of every joint projection, random."""
    folder.mkdir()
    random = np.random.default_rng(0)
    tensors = {}
    for i in range(3):
        for part, shape in (("A", (2, 12)), ("B", (36, 2))):
            values = torch.from_numpy(random.standard_normal(shape).astype(np.float32))
            tensors[f"base_model.model.transformer.h.{i}.attn.c_attn.lora_{part}.weight"] = values
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    (folder / "adapter_config.json").write_text(json.dumps(values | {"bias": "none", "task_type": "CAUSAL_LM"}))
    return folder


def test_an_adapter_is_merged_and_saved(save: Save, tmp_path: Path) -> None:
    source, adapter = save(), lora(tmp_path / "adapter")
    for to in (to_huggingface, to_reference):
        to(source, tmp_path / to.__name__, adapter=adapter)
    to_huggingface(tmp_path / "to_reference", tmp_path / "back")
    expected, parts = load_file(source / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for i in range(3):
        a, b = (parts[f"base_model.model.transformer.h.{i}.attn.c_attn.lora_{p}.weight"].double() for p in "AB")
        name = f"transformer.h.{i}.attn.c_attn.weight"
        expected[name] = (expected[name].double() + 1.5 * (b @ a).T).float()
    assert_same_bits(load_file(tmp_path / "to_huggingface" / "model.safetensors"), expected)
    assert digest(tmp_path / "back") == digest(tmp_path / "to_huggingface")
    open_quietly(tmp_path / "to_huggingface")


def test_an_adapter_is_merged_as_peft_merges_it(save: Save, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    source, adapter = save(), lora(tmp_path / "adapter")
    to_huggingface(source, tmp_path / "out", adapter=adapter)
    base = transformers.GPT2LMHeadModel.from_pretrained(source)
    theirs = peft.PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        torch.testing.assert_close(tensor, theirs[name])
