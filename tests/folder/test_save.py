"""What holds for both targets: any model comes back bit for bit, and only folders of ours are replaced."""

from __future__ import annotations

import os
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from converter import convert, load, to_huggingface, to_reference
from converter.errors import GPT2Error
from reference.config import ACTIVATION_NAMES
from tests.conftest import Save
from tests.folder.saved import IDS, assert_same_bits, digest, nanogpt, open_quietly


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """A small GPT-2 of any shape, square ones among them."""
    n_head = draw(st.integers(1, 3))
    n_embd = n_head * draw(st.integers(1, 6))
    return {
        "n_head": n_head,
        "n_embd": n_embd,
        "n_layer": draw(st.integers(1, 3)),
        "n_positions": draw(st.integers(1, 20)),
        "vocab_size": draw(st.integers(1, 40)),
        "n_inner": draw(st.sampled_from((None, n_embd, 1, 7))),
        "activation_function": draw(st.sampled_from(ACTIVATION_NAMES)),
        "scale_attn_by_inverse_layer_idx": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "bos_token_id": draw(st.sampled_from((None, 0))),
        "eos_token_id": draw(st.sampled_from((None, 0))),
    }


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(configs(), st.sampled_from((torch.float32, torch.float16, torch.bfloat16)), st.integers(1, 4000))
def test_any_legal_model_goes_there_and_back(config: dict[str, Any], dtype: torch.dtype, shard: int) -> None:
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder / "source")
        to_reference(folder / "source", folder / "ref")
        to_huggingface(folder / "ref", folder / "back")
        to_huggingface(folder / "source", folder / "shards", max_shard_size=shard)
        to_huggingface(folder / "shards", folder / "whole")
        expected = (folder / "source" / "model.safetensors").read_bytes()
        assert (folder / "back" / "model.safetensors").read_bytes() == expected
        assert digest(folder / "whole") == digest(folder / "back")
        assert_same_bits(open_quietly(folder / "shards").state_dict(), model.state_dict())


@pytest.mark.parametrize("to", [to_huggingface, to_reference])
def test_two_runs_are_byte_identical(save: Save, tmp_path: Path, to: Callable[..., Any]) -> None:
    source, told = save(), []
    to(source, tmp_path / "a", progress=lambda done, total: told.append((done, total)))
    to(source, tmp_path / "elsewhere" / "b")
    assert digest(tmp_path / "a", manifest=True) == digest(tmp_path / "elsewhere" / "b", manifest=True)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert {total for _, total in told} == {told[-1][0]}  # all of it was done in the end


@pytest.mark.parametrize("to", [to_huggingface, to_reference])
def test_a_weight_that_is_not_finite_is_named_unless_nobody_looks(
    save: Save, tmp_path: Path, to: Callable[..., Any]
) -> None:
    source = save()
    weights = load_file(source / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.weight"][3, 11] = float("nan")
    save_file(weights, source / "model.safetensors")
    with pytest.raises(GPT2Error, match=r"h\.1\.mlp\.c_fc\.weight holds nan at \[3, 11\]"):
        to(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["source"]
    to(source, tmp_path / "out", scan=False)


def test_a_generation_config_that_is_no_json_is_refused(save: Save, tmp_path: Path) -> None:
    source = save()
    (source / "generation_config.json").write_text("{")
    with pytest.raises(GPT2Error, match=r"source/generation_config\.json cannot be read as JSON"):
        to_huggingface(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("to", [to_huggingface, to_reference])
def test_only_folders_of_ours_are_replaced(save: Save, tmp_path: Path, to: Callable[..., Any]) -> None:
    source, out = save(), tmp_path / "out"
    to(source, out)
    with pytest.raises(GPT2Error, match="exists; choose another OUT, or --force"):
        to(source, out)
    convert(source, out, force=True)
    to(source, out, force=True)
    assert not (out / "onnx").exists()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(GPT2Error, match=r"holds thesis\.txt, which gpt2onnx did not write"):
        to(source, out, force=True)
    with pytest.raises(GPT2Error, match=r"source exists and has no gpt2onnx\.json"):
        to(out, source, force=True)


def test_a_graph_can_be_added_in_place_to_what_was_saved(save: Save, tmp_path: Path) -> None:
    source, out = save(), tmp_path / "out"
    to_huggingface(source, out)
    convert(out, in_place=True)
    convert(source, tmp_path / "onnx")
    np.testing.assert_array_equal(load(out).logits(IDS[0].tolist()), load(tmp_path / "onnx").logits(IDS[0].tolist()))


@pytest.mark.parametrize("to", [to_huggingface, to_reference])
@pytest.mark.parametrize("layout", ["as it is wanted", "transposed"])
def test_no_tensor_is_in_memory_whole(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: Callable[..., Any], layout: str
) -> None:
    source = save(vocab_size=7, n_embd=1024, n_head=4, n_inner=None, n_layer=1)  # c_fc takes 16 MiB
    if layout == "transposed":
        source = nanogpt(source, tmp_path / "ckpt.pt")
    monkeypatch.setattr("converter.checkpoint.tensor.STRIDED_BYTES", 2**20)
    tracemalloc.start()
    to(source, tmp_path / "out", activation="gelu_new" if layout == "transposed" else None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20
