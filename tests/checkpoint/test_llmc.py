"""llm.c's models convert to what llm.c computes; its other files and damaged ones are refused."""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from converter import convert
from converter.checkpoint import formats, llmc
from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.options import SourceOptions
from converter.errors import CheckpointError, ConfigError, WeightsError
from converter.weights.ledger import account
from tests.checkpoint.writers.llmc import HEADER, E, H, L, T, V, state_dict, write

IDS = torch.tensor([5, 60, 0, 17, 17, 3, 42])

FLOAT32, BFLOAT16, UNPADDED = {}, {"version": 5}, {"version": 1, "padded_vocab_size": 0}


@pytest.mark.parametrize("header", [FLOAT32, BFLOAT16, UNPADDED, {"padded_vocab_size": V}], ids=str)
def test_the_converted_model_computes_what_llmc_does(
    tmp_path: Path, linear_gpt: Any, converted_logits: Any, header: dict[str, int]
) -> None:
    state = state_dict()
    file = write(tmp_path / "model.bin", state, **header)
    if header is BFLOAT16:
        state = {name: tensor.bfloat16() for name, tensor in state.items()}
    expected = linear_gpt(state, IDS[None], H, partial(F.gelu, approximate="tanh"))[0]
    torch.testing.assert_close(converted_logits(file, IDS), expected, atol=2e-5, rtol=1e-5)
    assert (expected - linear_gpt(state, IDS[None], H, F.gelu)[0]).abs().max() > 1e-4  # activations are told apart


def test_every_parameter_is_found_bit_for_bit(tmp_path: Path) -> None:
    state = state_dict()
    source = formats.read(write(tmp_path / "model.bin", state), SourceOptions())
    assert {name.removeprefix("transformer.") for name in source.tensors} == state.keys()
    for name, tensor in state.items():
        transposed = name.endswith(".weight") and (".attn." in name or ".mlp." in name)
        found = torch.tensor(source.tensors[f"transformer.{name}"].memmap())
        assert torch.equal(found, tensor.T if transposed else tensor), name
    assert source.tensors["transformer.h.2.mlp.c_proj.weight"].name == "fcprojw[2]"
    assert (source.format, source.weight_file, source.transformers_reads) == ("llm.c", "model.bin", False)
    assert source.values == {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": V, "n_positions": T, "n_embd": E,
        "n_layer": L, "n_head": H, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
        "tie_word_embeddings": True,
    }  # fmt: skip


def test_a_folder_with_one_model_is_read_even_beside_a_config(tmp_path: Path) -> None:
    file = write(tmp_path / "model_00019560.bin", state_dict())
    assert open_checkpoint(tmp_path).format == "llm.c"
    (tmp_path / "config.json").write_text("{}")
    assert open_checkpoint(file).format == "llm.c"


@pytest.mark.parametrize("magic", llmc.OTHERS)
def test_another_file_of_llmc_is_refused_by_name(tmp_path: Path, magic: int) -> None:
    file = write(tmp_path / "state.bin", state_dict(), magic=magic)
    with pytest.raises(CheckpointError, match=r"state\.bin is (llm\.c's .*|a Llama 3.*); expected a GPT-2 model"):
        open_checkpoint(file)


@pytest.mark.parametrize("version", [-1, 0, 2, 4, 6])
def test_an_unknown_version_is_refused(tmp_path: Path, version: int) -> None:
    file = write(tmp_path / "model.bin", state_dict(), version=version)
    with pytest.raises(CheckpointError, match=rf"model\.bin is of llm\.c's version {version}; expected one of 1, 3, 5"):
        open_checkpoint(file)


@pytest.mark.parametrize(
    "key", ["max_seq_len", "vocab_size", "num_layers", "num_heads", "channels", "padded_vocab_size"]
)
@pytest.mark.parametrize("value", [0, -1, -(2**31), 2**31 - 1, 5])
def test_an_absurd_header_is_refused_at_once(tmp_path: Path, key: str, value: int) -> None:
    file = tmp_path / "model.bin"
    write(file, state_dict())
    sound = bytearray(file.read_bytes())
    struct.pack_into("<i", sound, 4 * list(HEADER).index(key), value)
    file.write_bytes(sound)
    if (key, value) == ("vocab_size", 5):
        assert account(open_checkpoint(file)).config.vocab_size == 5  # more of the padding
        return
    with pytest.raises((CheckpointError, ConfigError), match=r"model\.bin"):
        open_checkpoint(file)


@pytest.mark.parametrize("end", [4, 1023, 1024, 5000, -1])
def test_a_truncated_model_is_refused(tmp_path: Path, end: int) -> None:
    file = write(tmp_path / "model.bin", state_dict())
    file.write_bytes(file.read_bytes()[:end])
    with pytest.raises(CheckpointError, match=r"model\.bin is truncated: it has \d+ bytes"):
        open_checkpoint(file)


def test_a_model_with_bytes_to_spare_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "model.bin", state_dict())
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match=r"model\.bin is corrupt: it has (\d+) bytes; its header asks for \d+"):
        open_checkpoint(file)


def test_padding_is_never_read_and_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    state = state_dict()
    state["h.1.mlp.c_fc.weight"][3, 5] = float("nan")
    with pytest.raises((CheckpointError, WeightsError), match=r"fcw\[1\]"):
        convert(write(tmp_path / "model.bin", state), tmp_path / "out")


def test_no_weight_is_read_to_open_a_model(tmp_path: Path) -> None:
    file = write(tmp_path / "model.bin", state_dict())
    huge = HEADER | {"vocab_size": 50257, "padded_vocab_size": 50304, "max_seq_len": 1024, "channels": 1600}
    huge |= {"num_layers": 48, "num_heads": 25}
    with file.open("wb") as opened:
        opened.write(struct.pack("<8i", *huge.values()).ljust(1024, b"\0"))
        opened.truncate(1024 + 4 * (1_557_611_200 + 47 * 1600))  # GPT-2 XL and its padding: 6.2 GB of nothing
    assert account(open_checkpoint(file)).parameters == 1_557_611_200
