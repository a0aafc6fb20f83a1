"""Keras' HDF5 files read as TensorFlow wrote them, and whatever is damaged is refused."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from converter.checkpoint.h5_file import hf_name, read
from converter.checkpoint.open import open_checkpoint
from converter.errors import CheckpointError
from converter.weights.ledger import account
from tests.checkpoint.writers.keras import MODEL, as_keras

IDS = torch.tensor([5, 60, 0, 17, 17, 3, 42])

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def write(file: Path, datasets: dict[str, Any]) -> Path:
    with h5py.File(file, "w") as opened:
        for name, value in datasets.items():
            opened.create_dataset(name, **value if isinstance(value, dict) else {"data": value})
    return file


@pytest.mark.parametrize("folder", ["tensorflow", "tensorflow-sharded"])
def test_what_tensorflow_saved_is_read(written: Path, assert_written: Callable[..., None], folder: str) -> None:
    checkpoint = open_checkpoint(written / folder)
    index = ".index.json" if folder == "tensorflow-sharded" else ""
    assert (checkpoint.format, checkpoint.weight_file) == ("Hugging Face TensorFlow", f"tf_model.h5{index}")
    assert not checkpoint.transformers_reads
    assert_written(checkpoint.tensors)
    assert len(account(checkpoint).weights) == 16
    assert checkpoint.tensors["ln_f.bias"].name.endswith("transformer/ln_f/beta:0")


@pytest.mark.parametrize("embedding", ["embeddings", "weight"])
def test_the_converted_model_computes_what_transformers_does(
    tmp_path: Path, save: Callable[..., Path], converted_logits: Callable[..., torch.Tensor], embedding: str
) -> None:
    source = save()
    folder = as_keras(source, tmp_path / "keras", embedding)
    model = transformers.GPT2LMHeadModel.from_pretrained(source).eval()
    with torch.no_grad():
        expected = model(IDS[None]).logits[0]
    torch.testing.assert_close(converted_logits(folder, IDS), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["tf_model.h5", "mine.h5"])
def test_the_head_is_tied_whatever_the_config_says_as_tfgpt2lmheadmodel_does(
    tmp_path: Path, save: Callable[..., Path], converted_logits: Callable[..., torch.Tensor], name: str
) -> None:
    source = save()
    folder = as_keras(source, tmp_path / "keras")
    (folder / "tf_model.h5").rename(folder / name)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"tie_word_embeddings": False}))
    model = transformers.GPT2LMHeadModel.from_pretrained(source).eval()
    with torch.no_grad():
        expected = model(IDS[None]).logits[0]
    torch.testing.assert_close(converted_logits(folder, IDS), expected, atol=2e-5, rtol=1e-5)
    converted = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert converted["tie_word_embeddings"] is True
    (note,) = open_checkpoint(folder).notes
    assert re.search(rf"config\.json unties the head, but the .*TensorFlow code that wrote {name} ties it", note)


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": True}])
def test_a_config_that_ties_the_head_needs_no_note(
    tmp_path: Path, save: Callable[..., Path], config: dict[str, bool]
) -> None:
    assert open_checkpoint(as_keras(save(**config), tmp_path / "keras")).notes == ()


def test_only_tensorflows_head_is_tied_against_the_config(tmp_path: Path, save: Callable[..., Path]) -> None:
    state = load_file(save() / "model.safetensors")
    folder = save("other", tie_word_embeddings=False)
    torch.save({name: torch.tensor(value) for name, value in state.items()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin has no tensor lm_head\.weight"):
        account(open_checkpoint(folder))


def test_a_file_of_another_name_is_known_by_its_content(tmp_path: Path, save: Callable[..., Path]) -> None:
    folder = as_keras(save(), tmp_path / "keras")
    for name in ("weights.h5", "weights.bin"):
        (folder / "tf_model.h5").rename(folder / name)
        assert len(account(open_checkpoint(folder)).weights) == 40
        assert open_checkpoint(folder / name).weight_file == name
        (folder / name).rename(folder / "tf_model.h5")


def test_a_file_of_pytorch_counts_before_one_of_tensorflow(tmp_path: Path, save: Callable[..., Path]) -> None:
    source = save()
    folder = as_keras(source, tmp_path / "keras")
    shutil.copy(source / "model.safetensors", folder)
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.weight_file, checkpoint.transformers_reads) == ("model.safetensors", True)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("transformer/tfgpt2_model/transformer/wte/embeddings:0", "wte.weight"),
        ("transformer/tfgp_t2lm_head_model_1/transformer/wpe/weight:0", "wpe.weight"),
        ("transformer/h_._10/mlp/c_proj/bias:0", "h.10.mlp.c_proj.bias"),
        ("h_._0/ln_2/gamma", "h.0.ln_2.weight"),
        ("transformer/h_._00/ln_2/gamma:0", "transformer/h_._00/ln_2/gamma:0"),
        ("transformer/h_._0/ln_2/weight:0", "transformer/h_._0/ln_2/weight:0"),
        ("score/kernel:0", "score/kernel:0"),
    ],
)
def test_names_are_hugging_faces_or_stay_as_they_are(path: str, name: str) -> None:
    assert hf_name(path) == name


def test_what_a_gpt2_does_not_have_is_named_and_can_be_ignored(tmp_path: Path, save: Callable[..., Path]) -> None:
    folder = as_keras(save(), tmp_path / "keras")
    with h5py.File(folder / "tf_model.h5", "a") as file:
        file.create_dataset("multiple_choice_head/summary/kernel:0", data=X)
    with pytest.raises(
        CheckpointError, match=r"multiple_choice_head/summary/kernel:0 is not part of a GPT-2.*--ignore"
    ):
        account(open_checkpoint(folder))
    assert len(account(open_checkpoint(folder), ["multiple_choice_head/*"]).weights) == 40


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", "<i8", "|u1"])
def test_types_are_read_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    found = read(write(tmp_path / "m.h5", {"x": X.astype(dtype)}))["x"]
    assert found.memmap().tobytes() == X.astype(dtype).tobytes()


def test_a_file_behind_a_user_block_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w", userblock_size=512) as opened:
        opened.create_dataset("x", data=X)
    assert read(tmp_path / "m.h5")["x"].memmap().tolist() == X.tolist()


def test_weights_are_not_read(tmp_path: Path, bytes_read: Callable[[], int]) -> None:
    file = tmp_path / "m.h5"
    shape = (50257, 1600)
    with h5py.File(file, "w") as opened:
        space, created = h5py.h5s.create_simple(shape), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        created.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # sparse
        h5py.h5d.create(opened.create_group("wte").id, b"embeddings:0", h5py.h5t.IEEE_F32LE, space, created)
    tracemalloc.start()
    before = bytes_read()
    found = read(file)
    assert bytes_read() - before < 1_000_000
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert found["wte.weight"].nbytes == 50257 * 1600 * 4


def test_without_h5py_the_extra_is_named(tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(CheckpointError, match=r"tf_model\.h5 is an HDF5 file.*pip install 'gpt2onnx\[sources\]'"):
        open_checkpoint(written / "tensorflow")


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"x": {"data": X, "chunks": (1, 3)}}, "tensor x is stored in chunks or compressed"),
        ({"x": {"data": X, "compression": "gzip"}}, "tensor x is stored in chunks or compressed"),
        ({"x": {"shape": (2, 3), "dtype": "f4"}}, "tensor x is stored elsewhere than in one range"),
        ({"x": {"shape": (2, 3), "dtype": "f4", "external": [("other", 0, 24)]}}, "tensor x is stored elsewhere"),
        ({"x": {"data": h5py.Empty("f4")}}, "tensor x is stored elsewhere"),
        ({"x": {"data": X, "dtype": ">f4"}}, "tensor x is of type >f4"),
        ({"x": {"data": X.astype("u2")}}, "tensor x is of type <u2"),  # not bfloat16, whose bits travel as uint16
        ({"x": {"data": "text"}}, r"tensor x is of type \|O"),
        ({"x": {"data": X.astype("c16")}}, "tensor x is of type <c16"),
        ({"wte/weight:0": X, "wte/embeddings:0": X}, r"holds wte\.weight twice: as wte/embeddings:0 and as wte/weight"),
        ({"ln_f/gamma:0": X, "h_._0/mlp/c_fc/bias:0": X}, r"c_fc/bias:0 is \[2, 3\]; expected \[1, out\]"),
        ({"h_._0/mlp/c_fc/bias:0": X[0]}, r"c_fc/bias:0 is \[3\]; expected \[1, out\]"),
        ({}, "holds no tensors"),
    ],
    ids=lambda value: value[-24:] if isinstance(value, str) else "",
)
def test_what_keras_does_not_write_is_refused(tmp_path: Path, datasets: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"m\.h5.*{message}"):
        read(write(tmp_path / "m.h5", datasets))


def test_links_out_of_the_file_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "other.h5", {"x": X})
    with h5py.File(write(tmp_path / "m.h5", {"y": X}), "a") as file:
        file["x"] = h5py.ExternalLink("other.h5", "/x")
        file["loop"] = file["/"]
    assert list(read(tmp_path / "m.h5")) == ["y"]


@pytest.mark.parametrize(("moved", "size"), [(40, 24), (1 << 40, 24), (0, 20), (0, 1 << 40)])
def test_a_place_beyond_the_file_is_refused(tmp_path: Path, moved: int, size: int) -> None:
    file = write(tmp_path / "m.h5", {"x": X})
    sound, offset = file.read_bytes(), read(file)["x"].offset
    place = offset.to_bytes(8, "little") + (24).to_bytes(8, "little")
    assert sound.count(place) == 1
    file.write_bytes(sound.replace(place, (offset + moved).to_bytes(8, "little") + size.to_bytes(8, "little")))
    with pytest.raises(CheckpointError, match=r"m\.h5 is truncated or corrupt"):
        read(file)


def test_a_file_whose_weights_end_early_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "m.h5", {"x": X})
    sound = file.read_bytes()
    tensor = read(file)["x"]
    for end in [*range(0, len(sound), 7), tensor.offset + tensor.nbytes - 1]:
        file.write_bytes(sound[:end])
        with pytest.raises(CheckpointError, match=r"m\.h5 is truncated or corrupt"):
            read(file)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_damage_is_refused_or_harmless(
    scratch: Path,
    bounded_memory: None,
    damaged: Callable[..., st.SearchStrategy[bytes]],
    refusal: Callable[..., str | None],
    data: st.DataObject,
) -> None:
    file = write(scratch / "damaged.h5", {MODEL + "wte/weight:0": X, MODEL + "h_._0/mlp/c_fc/bias:0": X[:1]})
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    assert str(file) in (refusal(read, file) or str(file))
