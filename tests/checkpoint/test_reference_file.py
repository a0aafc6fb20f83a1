"""A state dict of the from-scratch model is recognised by its metadata and read as Hugging Face's tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter.checkpoint import reference_file, safetensors_file
from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.tensor import LazyTensor
from converter.errors import CheckpointError, ConfigError
from converter.weights.ledger import Role, account
from reference import GPT2, GPT2Config
from reference.config import STATE_FILE, STATE_KEY

SIZES = {"vocab_size": 61, "n_positions": 24, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_inner": 12}
CONFIG = json.dumps({"model_type": "gpt2", **SIZES})

PROJECTIONS = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


@pytest.fixture
def model() -> GPT2:
    torch.manual_seed(0)
    return GPT2(GPT2Config(**SIZES))


def write(folder: Path, model: GPT2, config: str = CONFIG, name: str = STATE_FILE, head: bool = False) -> Path:
    state = {key: t.detach().clone() for key, t in model.state_dict().items() if head or key != "lm_head.weight"}
    save_file(state, folder / name, metadata={STATE_KEY: config})
    return folder / name


def assert_read(source: Path, model: GPT2) -> None:
    checkpoint = open_checkpoint(source)
    assert (checkpoint.format, checkpoint.transformers_reads) == ("from-scratch reference", False)
    for name, tensor in account(checkpoint).weights.items():
        expected = model.state_dict()[name]
        expected = expected.T if name.endswith(PROJECTIONS) else expected
        assert torch.equal(torch.from_numpy(tensor.memmap().copy()), expected), name


def test_a_folder_a_file_and_any_name_are_read(tmp_path: Path, model: GPT2) -> None:
    file = write(tmp_path, model)
    assert_read(tmp_path, model)
    assert_read(file, model)
    renamed = file.rename(tmp_path / "mine.safetensors")
    assert_read(tmp_path, model)
    assert_read(renamed, model)


def test_a_whole_state_dict_is_read_too(tmp_path: Path, model: GPT2) -> None:
    write(tmp_path, model, head=True)
    ledger = account(open_checkpoint(tmp_path))
    assert ledger.config.tie_word_embeddings
    assert [entry.name for entry in ledger.entries if entry.role == Role.TIED] == ["lm_head.weight"]


def test_a_config_beside_it_changes_nothing(tmp_path: Path, model: GPT2) -> None:
    file = write(tmp_path, model)
    (tmp_path / "config.json").write_text(CONFIG)
    for source in (tmp_path, file):
        assert_read(source, model)


def test_weights_of_hugging_faces_come_first(tmp_path: Path, model: GPT2) -> None:
    file = write(tmp_path, model)
    (tmp_path / "config.json").write_text(CONFIG)
    weights = load_file(file)
    transposed = {name: t.T.contiguous() if name.endswith(PROJECTIONS) else t for name, t in weights.items()}
    save_file(transposed, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).format == "Hugging Face"
    assert_read(file, model)


def test_companions_travel_with_it(tmp_path: Path, model: GPT2) -> None:
    write(tmp_path, model)
    for name in ("tokenizer.json", "LICENSE", "notes.txt"):
        (tmp_path / name).touch()
    assert sorted(open_checkpoint(tmp_path).companions) == ["LICENSE", "tokenizer.json"]


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ("{", CheckpointError, "is not JSON"),
        ("[" * 200_000, CheckpointError, "is not JSON"),
        ("[1]", CheckpointError, "is not a JSON object"),
        ("{}", ConfigError, "does not describe a GPT-2"),
        (json.dumps({"model_type": "gpt2", "n_layer": 0}), ConfigError, "n_layer is 0"),
        (json.dumps({"model_type": "gpt2", **SIZES, "n_layer": 3}), CheckpointError, r"has no tensor h\.2\.ln_1"),
    ],
    ids=["cut", "deep", "a list", "empty", "absurd", "another"],
)
def test_a_config_that_is_none_is_refused(
    tmp_path: Path, model: GPT2, config: str, error: type[Exception], message: str
) -> None:
    write(tmp_path, model, config)
    with pytest.raises(error, match=rf"reference\.safetensors.*{message}"):
        account(open_checkpoint(tmp_path))


def test_a_truncated_file_is_refused(tmp_path: Path, model: GPT2) -> None:
    file = write(tmp_path, model)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match=r"reference\.safetensors is truncated"):
        open_checkpoint(tmp_path)


def test_recognising_never_raises(tmp_path: Path) -> None:
    file = tmp_path / STATE_FILE
    for data in (b"", b"\x02", b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{", b"\xff" * 9, bytes(99)):
        file.write_bytes(data)
        assert not reference_file.recognises(file)
        assert not reference_file.recognises(tmp_path)
    for metadata in ("7", '"x"', "null", "{}"):
        text = b'{"__metadata__":%s}' % metadata.encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text)
        assert not reference_file.recognises(file)
    assert not reference_file.recognises(tmp_path / "absent")


def test_no_weight_is_read_to_open_it(tmp_path: Path, model: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, model)
    for reader in ("memmap", "chunks"):
        monkeypatch.setattr(LazyTensor, reader, None)
    account(open_checkpoint(tmp_path))


def test_the_plain_reader_refuses_it(tmp_path: Path, model: GPT2) -> None:
    with pytest.raises(CheckpointError, match="projections transposed"):
        safetensors_file.read(write(tmp_path, model, name="model.safetensors"))
