"""A folder's weights are those that transformers would load, and every way to lack them is told apart."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter.checkpoint.folder import choose_weight_file, companions, read_folder
from converter.checkpoint.open import open_checkpoint
from converter.errors import CheckpointError, ConfigError

AssertSame = Callable[..., None]
A, B = torch.arange(6.0).reshape(2, 3), torch.arange(4.0) - 9
KINDS = {"safetensors": save_file, "bin": torch.save}
both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "some-model"
    found.mkdir()
    (found / "config.json").write_text('{"model_type": "gpt2"}')
    return found


def main_file(kind: str) -> str:
    return {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[kind]


def write_index(folder: Path, kind: str, weight_map: Any) -> Path:
    index = folder / f"{main_file(kind)}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 40}, "weight_map": weight_map}))
    return index


def write_shards(folder: Path, kind: str, shards: dict[str, dict[str, torch.Tensor]]) -> Path:
    for name, tensors in shards.items():
        KINDS[kind](tensors, folder / name)
    return write_index(folder, kind, {tensor: name for name, tensors in shards.items() for tensor in tensors})


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_what_save_pretrained_wrote_is_read(save: Callable[..., Path], assert_same: AssertSame) -> None:
    folder = save("wee-gpt2")
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.name, checkpoint.folder, checkpoint.weight_file) == ("wee-gpt2", folder, "model.safetensors")
    assert_same(checkpoint.tensors, load_file(folder / "model.safetensors"))
    assert open_checkpoint(str(folder)).tensors == checkpoint.tensors


def test_what_save_pretrained_sharded_is_read(save: Callable[..., Path], assert_same: AssertSame) -> None:
    whole, sharded = save("whole"), save("sharded", max_shard_size="3KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    checkpoint = open_checkpoint(sharded)
    assert checkpoint.weight_file == "model.safetensors.index.json"
    assert_same(checkpoint.tensors, load_file(whole / "model.safetensors"))


@both
def test_shards_of_both_formats_are_read(folder: Path, kind: str, assert_same: AssertSame) -> None:
    write_shards(folder, kind, {"one": {"b": B}, "two": {"a": A}})
    assert_same(open_checkpoint(folder).tensors, {"a": A, "b": B})


def test_the_first_of_the_known_files_counts(folder: Path) -> None:
    order = []
    for i, kind in enumerate(KINDS):
        KINDS[kind]({f"whole {kind}": A}, folder / main_file(kind))
        write_shards(folder, kind, {f"{i}.shard": {f"sharded {kind}": B}})
    while found := choose_weight_file([file.name for file in folder.iterdir()]):
        name, tensors = read_folder(folder)
        assert name == found
        order.append((name, *tensors))
        (folder / name).unlink()
    assert order == [
        ("model.safetensors", "whole safetensors"),
        ("model.safetensors.index.json", "sharded safetensors"),
        ("pytorch_model.bin", "whole bin"),
        ("pytorch_model.bin.index.json", "sharded bin"),
    ]


def test_a_damaged_file_is_not_passed_over_for_a_sound_one(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    torch.save({"a": A}, folder / "pytorch_model.bin")
    refused(folder, r"some-model/model\.safetensors is a Git LFS pointer .* git lfs pull")


def test_the_name_is_the_folders_own_wherever_it_is_opened_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": A}, folder / "model.safetensors")
    monkeypatch.chdir(folder)
    assert open_checkpoint(".").name == "some-model"
    assert open_checkpoint(f"{folder}/").name == "some-model"
    assert open_checkpoint("../some-model").name == "some-model"


@both
def test_a_missing_shard_is_named_with_its_index(folder: Path, kind: str) -> None:
    index = write_shards(folder, kind, {"one": {"a": A}, "two": {"b": B}})
    (folder / "two").unlink()
    refused(folder, rf"some-model/two is missing; {re.escape(index.name)} names it, download it too")


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "sub/one", "sub/", "./one", "", ".", "..", "..\\x", "C:\\x", "one/../../x"]
)
def test_an_index_that_points_outside_its_folder_is_refused(folder: Path, name: str) -> None:
    for place in (folder, folder / "sub", folder.parent):
        place.mkdir(exist_ok=True)
        save_file({"a": A}, place / "one")
        save_file({"a": A}, place / "x")
    write_index(folder, "safetensors", {"a": name})
    refused(folder, rf"index\.json points outside its folder: {re.escape(repr(name))}; expected plain file names")


@pytest.mark.parametrize("weight_map", [None, [], "one", {"a": 5}, {"a": None}, {"a": ["one"]}], ids=str)
def test_an_index_without_a_map_of_names_is_refused(folder: Path, weight_map: Any) -> None:
    write_index(folder, "safetensors", weight_map)
    refused(folder, r"model\.safetensors\.index\.json has no weight_map of tensor name → file name")


def test_an_index_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / "pytorch_model.bin.index.json").write_text("{")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin\.index\.json cannot be read as JSON"):
        open_checkpoint(folder)


@both
def test_a_tensor_that_its_shard_lacks_is_named(folder: Path, kind: str) -> None:
    write_shards(folder, kind, {"one": {"a": A}, "two": {"b": B}})
    index = write_index(folder, kind, {"a": "one", "b": "two", "h.0.ln_1.bias": "two"})
    refused(folder, rf"{re.escape(str(index))} says that two holds tensor h\.0\.ln_1\.bias, and it does not")


@both
def test_a_tensor_in_two_shards_is_refused_with_both(folder: Path, kind: str) -> None:
    write_shards(folder, kind, {"one": {"a": A, "b": B}, "two": {"b": B}})
    write_index(folder, kind, {"a": "one", "b": "two"})
    refused(folder, r"tensor b is in two shards, .*some-model/one and .*some-model/two")


def test_a_damaged_shard_is_named(folder: Path) -> None:
    write_shards(folder, "safetensors", {"one": {"a": A}, "two": {"b": B}})
    (folder / "two").write_bytes((folder / "two").read_bytes()[:-1])
    refused(folder, r"some-model/two is truncated")


def test_a_folder_without_weights_lists_what_it_has(folder: Path) -> None:
    for name in ("rust_model.ot", "model.ckpt.meta", "model.safetensors.part"):
        (folder / name).write_bytes(b"")
    (folder / "pytorch_model.bin").mkdir()
    refused(
        folder,
        r"some-model has no weights; expected one of model\.safetensors, .*flax_model\.msgpack\.index\.json, "
        r"found config\.json, model\.ckpt\.meta, model\.safetensors\.part, pytorch_model\.bin, rust_model\.ot$",
    )


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"{re.escape(str(tmp_path))} has no config\.json"):
        open_checkpoint(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, rf"{re.escape(str(tmp_path))} is empty; expected a Hugging Face model folder with config\.json")


def test_one_file_of_weights_beside_a_config_is_a_source_under_any_name(folder: Path) -> None:
    for name in ("mine.safetensors", "mine.pt"):
        save = save_file if name.endswith("safetensors") else torch.save
        save({"a": A}, folder / name)
        for source in (folder, folder / name):
            opened = open_checkpoint(source)
            assert opened.weight_file == name
            assert opened.folder == folder
            assert list(opened.tensors) == ["a"]
            assert not opened.transformers_reads
        (folder / name).unlink()


@pytest.mark.parametrize(
    "source", ["no-such-folder", "./no/such", "/no/such/folder", "no/such/folder", "a b/c", "~/gpt2"]
)
def test_a_path_that_does_not_exist_is_refused_without_asking_the_hub(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    message = rf"there is no folder {re.escape(source)}; expected a Hugging Face model folder, or a Hub id such as "
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(source)


@pytest.mark.parametrize("source", ["a" * 300, "a\0b", "loop"], ids=["too long", "a NUL byte", "links in a circle"])
def test_a_path_that_no_system_can_open_is_refused(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError):
        open_checkpoint(source)


def test_companions_are_the_files_a_client_reads_beside_the_weights(tmp_path: Path) -> None:
    wanted = [
        "LICENSE",
        "LICENSE.txt",
        "NOTICE",
        "generation_config.json",
        "merges.txt",
        "tokenizer.json",
        "vocab.json",
    ]
    for name in (*wanted, "README.md", "config.json", "model.safetensors", "training_args.bin", "my-tokenizer.json"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "tokenizer_config.json").mkdir()
    assert companions(tmp_path) == wanted


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ({"pytorch_model.bin", "model.safetensors", "x"}, "model.safetensors"),
        ({"pytorch_model.bin", "pytorch_model.bin.index.json"}, "pytorch_model.bin"),
        ({"flax_model.msgpack", "tf_model.h5", "pytorch_model.bin.index.json"}, "pytorch_model.bin.index.json"),
        ({"flax_model.msgpack", "tf_model.h5.index.json"}, "tf_model.h5.index.json"),
        ({"onnx/model.safetensors", "rust_model.ot"}, None),
        (set(), None),
    ],
)
def test_a_weight_file_is_chosen_from_names_alone(names: set[str], chosen: str | None) -> None:
    assert choose_weight_file(names) == chosen
