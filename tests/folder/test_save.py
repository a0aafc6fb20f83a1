"""Any source becomes a Hugging Face folder or the from-scratch model's file, and every bit of it comes back."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from converter import check, convert, load, load_head, to_huggingface, to_reference
from converter.checkpoint.open import open_checkpoint
from converter.data import CHECKPOINT
from converter.errors import GPT2Error
from converter.folder.save import parse_size
from reference import GPT2, GPT2Config
from reference.config import ACTIVATION_NAMES, STATE_FILE
from reference.head import ASKED, HEADS
from reference.heads import CLASSES

Save = Callable[..., Path]
Tensors = dict[str, torch.Tensor]

WRITTEN = Path(__file__).parents[1] / "checkpoint" / "written"
PROJECTIONS = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
IDS = torch.tensor([[5, 60, 0, 17, 17, 3, 42]])

every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
either_head = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def digest(folder: Path, *, manifest: bool = False) -> dict[str, str]:
    """Each file's hash; without the manifest, which says what the source was."""
    files = (file for file in folder.rglob("*") if file.is_file() and (manifest or file.name != "gpt2onnx.json"))
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def change(file: Path, *without: str, **values: Any) -> None:
    kept = {key: value for key, value in json.loads(file.read_text()).items() if key not in without}
    file.write_text(json.dumps(kept | values))


def assert_same_bits(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        bits = [t.contiguous().view(torch.uint8) for t in (found[name], tensor)]
        assert torch.equal(*bits), name


@contextmanager
def complaints() -> Iterator[list[str]]:
    """What transformers logs as a warning or worse, and what Python warns of."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    said: list[str] = []
    logger, collector = logging.getLogger("transformers"), Collector(logging.WARNING)
    before = logger.level
    transformers.utils.logging.warning_once.cache_clear()  # else a warning of an earlier test is not repeated
    logger.addHandler(collector)
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
        said += [str(warning.message) for warning in caught]
    finally:
        logger.removeHandler(collector)
        logger.setLevel(before)


def open_quietly(folder: Path) -> transformers.GPT2LMHeadModel:
    """transformers' model of a folder, which it opens without a word and finds complete."""
    with complaints() as said:
        model, info = transformers.GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert said == []
    assert not any(info.values()), info
    return model.eval()


def test_what_transformers_says_is_heard(save: Save) -> None:
    source = save(bos_token_id=50256)
    with pytest.raises(AssertionError, match="bos_token_id must be `None` or an integer within the vocabulary"):
        open_quietly(source)
    source = save("temperature")
    change(source / "generation_config.json", temperature=0.5)
    with pytest.raises(AssertionError, match="generation flags are not valid"):
        open_quietly(source)


# --- a Hugging Face folder --------------------------------------------------------------------------------------------


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


# --- from other formats -----------------------------------------------------------------------------------------------


def nanogpt(source: Path, file: Path) -> Path:
    """The checkpoint of a Hugging Face folder as nanoGPT has it."""
    weights, config = load_file(source / "model.safetensors"), config_of(source)
    state = {name: t.T.contiguous() if name.endswith(PROJECTIONS) else t for name, t in weights.items()}
    args = {name: config[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
    args |= {"block_size": config["n_positions"], "bias": True}
    state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    torch.save({"model": {f"_orig_mod.{name}": t for name, t in state.items()}, "model_args": args}, file)
    return file


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
        assert check(source, tmp_path / out).passed
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


# --- the from-scratch model's state dict ------------------------------------------------------------------------------


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


# --- for both ---------------------------------------------------------------------------------------------------------


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


# --- Heads ------------------------------------------------------------------------------------------------------------

OTHER_HEADS = [head for head in ASKED if head != "lm"]


def made_for(head: str) -> dict[str, Any]:
    labels = {"num_labels": 5} if head in ("sequence-classification", "token-classification") else {}
    return labels | {"summary_activation": "tanh", "pad_token_id": 5, "n_layer": 1}


@every_dtype
@pytest.mark.parametrize("head", OTHER_HEADS)
def test_each_head_becomes_a_folder_that_its_class_opens_without_a_word(
    save: Save, tmp_path: Path, head: str, dtype: torch.dtype
) -> None:
    source = save(head=head, dtype=dtype, **made_for(head))
    to_huggingface(source, tmp_path / "hf")
    klass = getattr(transformers, HEADS[head].class_name)
    with complaints() as said:
        model, found = klass.from_pretrained(tmp_path / "hf", output_loading_info=True, dtype="auto")
    assert said == []
    assert not any(found.values())
    assert config_of(tmp_path / "hf")["architectures"] == [HEADS[head].class_name]
    assert_same_bits(load_file(tmp_path / "hf" / "model.safetensors"), load_file(source / "model.safetensors"))
    expected = klass.from_pretrained(source, dtype="auto").state_dict()
    assert_same_bits(model.state_dict(), expected)
    assert model.dtype == dtype
    for name in ("num_labels", "id2label", "summary_activation", "pad_token_id"):
        assert getattr(model.config, name) == getattr(klass.from_pretrained(source).config, name)


@pytest.mark.parametrize("head", OTHER_HEADS)
def test_each_head_becomes_a_file_of_the_reference_and_comes_back(save: Save, tmp_path: Path, head: str) -> None:
    source = save(head=head, **made_for(head))
    if head == "double-heads":
        with pytest.raises(GPT2Error, match=r"has two heads.* choose one with --head lm"):
            to_reference(source, tmp_path / "reference")
        to_reference(source, tmp_path / "reference", head="lm")
        assert isinstance(GPT2.from_pretrained(tmp_path / "reference"), GPT2)
        return
    to_reference(source, tmp_path / "reference")
    model = CLASSES[head].from_pretrained(tmp_path / "reference")
    theirs = getattr(transformers, HEADS[head].class_name).from_pretrained(source)
    with torch.no_grad():
        ours, answer = model(IDS), theirs(IDS)
    expected = answer.start_logits if head == "question-answering" else answer[0]
    found = {"question-answering": ours[..., 0], "sequence-classification": ours[:, 0]}.get(head, ours)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    to_huggingface(tmp_path / "reference", tmp_path / "back")
    assert_same_bits(load_file(tmp_path / "back" / "model.safetensors"), load_file(source / "model.safetensors"))
    assert config_of(tmp_path / "back")["architectures"] == [HEADS[head].class_name]
    convert(tmp_path / "reference", tmp_path / "onnx")
    assert check(tmp_path / "reference", tmp_path / "onnx").passed


@pytest.mark.parametrize("head", OTHER_HEADS)
def test_a_converted_folder_opens_in_the_class_of_its_head(save: Save, tmp_path: Path, head: str) -> None:
    source = save(head=head, **made_for(head))
    convert(source, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_symlink()
    klass = getattr(transformers, HEADS[head].class_name)
    with complaints() as said:
        model, found = klass.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert said == []
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert_same_bits(model.state_dict(), klass.from_pretrained(source).state_dict())


def test_a_language_model_becomes_a_body_that_says_so(save: Save, tmp_path: Path) -> None:
    source = save(n_layer=1)
    for write, out in ((to_huggingface, "hf"), (to_reference, "reference"), (convert, "onnx")):
        write(source, tmp_path / out, head="base")
    assert config_of(tmp_path / "hf")["architectures"] == ["GPT2Model"]
    assert config_of(tmp_path / "onnx")["architectures"] == ["GPT2Model"]
    body = transformers.GPT2Model.from_pretrained(tmp_path / "hf")
    assert_same_bits(body.state_dict(), transformers.GPT2LMHeadModel.from_pretrained(source).transformer.state_dict())
    assert check(source, tmp_path / "onnx", head="base").passed


@pytest.mark.parametrize("head", OTHER_HEADS)
def test_each_head_is_converted_in_place(save: Save, tmp_path: Path, head: str) -> None:
    source = save(head=head, **made_for(head))
    before = digest(source)
    convert(source, in_place=True)
    after = digest(source)
    assert before.items() <= after.items()
    graphs = {"model.onnx"} | ({"model_multiple_choice.onnx"} if head == "double-heads" else set())
    assert {name for name in after if name.endswith(".onnx")} == graphs
    assert check(source, source).passed
    assert len(load_head(source).run([[1, 2, 3]])) == 1
    with pytest.raises(GPT2Error, match="exists; --force replaces"):
        convert(source, in_place=True)
    convert(source, in_place=True, force=True)


@pytest.mark.parametrize("head", ["lm", "sequence-classification"])
def test_in_place_a_head_that_config_json_does_not_name_is_refused(save: Save, head: str) -> None:
    source = save(head=head)
    if head == "sequence-classification":  # known by its tensors
        change(source / "config.json", "architectures")
    before = digest(source)
    with pytest.raises(GPT2Error, match=r"--in-place leaves config\.json as it is, by which the head is lm and not"):
        convert(source, in_place=True, head="base" if head == "lm" else None)
    assert digest(source) == before


TASKS = {
    "base": ("feature-extraction", "last_hidden_state"),
    "sequence-classification": ("text-classification", "one row a text"),
    "token-classification": ("token-classification", "one row a token"),
    "question-answering": ("question-answering", "`start_logits` and `end_logits`"),
    "double-heads": ("text-generation", "`mc_logits`"),
}


@pytest.mark.parametrize("head", OTHER_HEADS)
def test_the_model_card_says_what_a_head_does_and_the_manifest_which_file_does_it(
    save: Save, tmp_path: Path, head: str
) -> None:
    convert(save(head=head, n_layer=1), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    task, gives = TASKS[head]
    assert f"pipeline_tag: {task}\n" in card
    assert gives in card
    assert "gpt2onnx run . " in card
    assert ("gpt2onnx generate . " in card) is (head == "double-heads")
    assert not re.search(r"@\w+@", card)
    manifest = json.loads((tmp_path / "out" / "gpt2onnx.json").read_text())
    expected = {head: "onnx/model.onnx"}
    if head == "double-heads":
        expected = {"lm": "onnx/model.onnx", "multiple-choice": "onnx/model_multiple_choice.onnx"}
    assert manifest["heads"] == expected
    assert (tmp_path / "out" / "genai_config.json").exists() is (head == "double-heads")
