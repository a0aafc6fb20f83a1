"""Flax' msgpack files read as Flax wrote them, and whatever is damaged is refused."""

from __future__ import annotations

import json
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from converter.checkpoint.msgpack_file import CHUNKED, MAX_DEPTH, hf_name, read
from converter.checkpoint.open import open_checkpoint
from converter.errors import CheckpointError
from converter.weights.ledger import account
from tests.checkpoint.writers.flax import array, as_flax, nested, write

IDS = torch.tensor([5, 60, 0, 17, 17, 3, 42])

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    ("folder", "tied", "dtype"),
    [
        ("flax", True, "float32"),
        ("flax-untied", False, "float32"),
        ("flax-bfloat16", False, "bfloat16"),
        ("flax-sharded", True, "float32"),
    ],
)
def test_what_flax_saved_is_read(
    written: Path, assert_written: Callable[..., None], folder: str, tied: bool, dtype: str
) -> None:
    checkpoint = open_checkpoint(written / folder)
    index = ".index.json" if folder == "flax-sharded" else ""
    assert (checkpoint.format, checkpoint.weight_file) == ("Hugging Face Flax", f"flax_model.msgpack{index}")
    assert not checkpoint.transformers_reads
    assert_written(checkpoint.tensors, tied=tied, dtype=dtype)
    assert account(checkpoint).config.tie_word_embeddings == tied
    assert checkpoint.tensors["h.0.ln_1.weight"].name == "transformer/h/0/ln_1/scale"


@pytest.mark.parametrize("tied", [True, False])
def test_the_converted_model_computes_what_transformers_does(
    tmp_path: Path, save: Callable[..., Path], converted_logits: Callable[..., torch.Tensor], tied: bool
) -> None:
    source = save(tie_word_embeddings=tied)
    folder = as_flax(source, tmp_path / "flax")
    model = transformers.GPT2LMHeadModel.from_pretrained(source).eval()
    with torch.no_grad():
        expected = model(IDS[None]).logits[0]
    torch.testing.assert_close(converted_logits(folder, IDS), expected, atol=2e-5, rtol=1e-5)


def test_a_file_of_another_name_is_known_by_its_content(tmp_path: Path, save: Callable[..., Path]) -> None:
    folder = as_flax(save(), tmp_path / "flax")
    for name in ("weights.msgpack", "weights.bin"):
        (folder / "flax_model.msgpack").rename(folder / name)
        assert len(account(open_checkpoint(folder)).weights) == 40
        assert open_checkpoint(folder / name).weight_file == name
        (folder / name).rename(folder / "flax_model.msgpack")


@pytest.mark.parametrize("low", [0x80, 0x82, 0xDE])
def test_a_safetensors_file_that_begins_like_another_is_one(
    tmp_path: Path, save: Callable[..., Path], low: int
) -> None:
    folder, file = tmp_path / "m", tmp_path / "m" / "weights.safetensors"
    folder.mkdir()
    shutil.copy(save() / "config.json", folder)
    save_file(load_file(tmp_path / "source" / "model.safetensors"), file)
    sound = file.read_bytes()
    length = int.from_bytes(sound[:8], "little")
    longer = length + (low - length) % 256
    file.write_bytes(longer.to_bytes(8, "little") + sound[8 : 8 + length].ljust(longer) + sound[8 + length :])
    assert file.read_bytes()[0] == low
    assert len(account(open_checkpoint(folder)).weights) == 40


def test_a_base_model_has_no_prefix(tmp_path: Path) -> None:
    found = read(write(tmp_path / "m", {"h": {"11": {"attn": {"c_proj": {"kernel": array(X)}}}}}))
    assert found["h.11.attn.c_proj.weight"].memmap().tolist() == X.T.tolist()


def test_a_long_array_and_old_names_are_read(tmp_path: Path) -> None:
    value = np.arange(70_000, dtype=np.float16)  # the head of an extension of more than 65535 bytes
    old = msgpack.ExtType(1, msgpack.packb((X.shape, b"float32", X.tobytes())))
    found = read(write(tmp_path / "m", {"a" * 300: {"b": array(value)}, "c": old}))
    assert found["a" * 300 + "/b"].memmap().tobytes() == value.tobytes()
    assert found["c"].memmap().tolist() == X.tolist()


@pytest.mark.parametrize("name", ["h/00/ln_1/scale", "h/0/ln_1/kernel", "x/wte/embedding", "lm_head/bias", "wte"])
def test_other_names_stay_as_they_are(name: str) -> None:
    assert hf_name(name) == name


def test_what_a_gpt2_does_not_have_is_named_and_can_be_ignored(tmp_path: Path, save: Callable[..., Path]) -> None:
    folder = as_flax(save(), tmp_path / "flax")
    state = nested(load_file(tmp_path / "source" / "model.safetensors"))
    write(folder / "flax_model.msgpack", state | {"score": {"kernel": array(X)}})
    with pytest.raises(CheckpointError, match=r"tensor score/kernel is not part of a GPT-2.*--ignore"):
        account(open_checkpoint(folder))
    assert len(account(open_checkpoint(folder), ["score/*"]).weights) == 40


def test_an_index_that_is_wrong_is_refused(tmp_path: Path, written: Path) -> None:
    folder = shutil.copytree(written / "flax-sharded", tmp_path / "m")
    index = folder / "flax_model.msgpack.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["transformer/h/3/ln_1/scale"] = "flax_model-00001-of-00002.msgpack"
    index.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"holds tensor transformer/h/3/ln_1/scale, and it does not"):
        open_checkpoint(folder)


def test_weights_are_not_read(tmp_path: Path, bytes_read: Callable[[], int]) -> None:
    file, nbytes = tmp_path / "m", 50257 * 1600 * 4
    inner = b"\x93\x92" + msgpack.packb(50257) + msgpack.packb(1600) + b"\xa7float32" + struct.pack(">BI", 0xC6, nbytes)
    with file.open("wb") as opened:
        opened.write(b"\x81\xa3wte\x81\xa9embedding" + struct.pack(">BIb", 0xC9, len(inner) + nbytes, 1) + inner)
        opened.truncate(opened.tell() + nbytes)  # sparse
    tracemalloc.start()
    before = bytes_read()
    found = read(file)
    assert bytes_read() - before < 200_000  # a buffer of Python 3.14 has 131,072
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert found["wte.weight"].nbytes == nbytes


def packed(*parts: Any) -> bytes:
    return msgpack.packb(list(parts))


FLOATS = X.tobytes()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([1], "it begins with array"),
        ({"a": 1}, "holds a, which is not an array"),
        ({"a": {"b": "text"}}, "holds a/b, which is not an array"),
        ({"a": None}, "0xc0, which begins nothing that flax writes"),
        ({"a": 1.5}, "0xcb, which begins nothing that flax writes"),
        ({"a": msgpack.ExtType(3, packed((), "float32", bytes(4)))}, "holds a, which is not an array"),
        ({1: array(X)}, "int of length 1 before byte 2 is no name"),
        ({"a": array(X, "float8")}, "tensor a is of type float8"),
        ({"a": array(X, "float64")}, r"tensor a of float64 \[2, 3\] cannot take 24 bytes"),
        ({"a": msgpack.ExtType(1, packed((2, 4), "float32", FLOATS))}, r"tensor a of float32 \[2, 4\] cannot take 24"),
        ({"a": msgpack.ExtType(1, packed((1 << 63, 1 << 63), "float32", FLOATS))}, "cannot take 24 bytes"),
        ({"a": msgpack.ExtType(1, packed((-2, -3), "float32", FLOATS))}, "0xfe, which begins nothing"),
        ({"a": msgpack.ExtType(1, packed([1] * 40, "float32", FLOATS))}, "tensor a is malformed"),
        ({"a": msgpack.ExtType(1, packed(6, "float32", FLOATS))}, "tensor a is malformed"),
        ({"a": msgpack.ExtType(1, packed((2, 3), "float32"))}, "tensor a is malformed"),
        ({"a": msgpack.ExtType(1, packed((2, 3), "float32", "x" * 24))}, "tensor a is malformed"),
        ({"a": msgpack.ExtType(1, packed((2, 3), "float32", FLOATS) + b"\0")}, "cannot take 24 bytes"),
        ({"a": {CHUNKED: True, "shape": {}, "chunks": {}}}, "tensor a is stored in chunks, as flax does beyond 1 GiB"),
        ({"wte": {"embedding": array(X)}, "transformer": {"wte": {"embedding": array(X)}}}, r"holds wte\.weight twice"),
        ({"lm_head": {"kernel": array(X[0])}}, r"tensor lm_head/kernel is \[3\]; expected a matrix"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_what_flax_does_not_write_is_refused(tmp_path: Path, tree: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"m\b.*{message}"):
        read(write(tmp_path / "m", tree))


def test_malformed_maps_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "m"
    leaf = msgpack.packb(array(X))
    for content, message in (
        (b"\x82\xa1a" + leaf + b"\xa1a" + leaf, "it names a twice"),
        (b"\x81\xa1a" + leaf + b"\0", "is too long: 1 bytes follow its end"),
        (b"\x81\xa1\xff" + leaf, "a name is not UTF-8"),
        (b"\x81\xa1a" * (MAX_DEPTH + 4), "leads to maps within maps without end"),
        (b"\xdf\xff\xff\xff\xff", "is truncated"),
        (b"\x81\xdb\xff\xff\xff\xff", "of length 4294967295 before byte 6 is no name"),
        (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "is truncated within tensor a"),
    ):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            read(file)


SOUND = msgpack.packb(nested({"wte.weight": X, "h.0.mlp.c_fc.weight": X.astype(np.float16), "ln_f.bias": X[0]}))


def test_a_file_truncated_anywhere_is_refused(tmp_path: Path, refusal: Callable[..., str | None]) -> None:
    file = tmp_path / "flax_model.msgpack"
    for end in range(len(SOUND)):
        file.write_bytes(SOUND[:end])
        assert str(file) in (refusal(read, file) or ""), end


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_damage_is_refused_or_harmless(
    scratch: Path,
    bounded_memory: None,
    damaged: Callable[..., st.SearchStrategy[bytes]],
    refusal: Callable[..., str | None],
    data: st.DataObject,
) -> None:
    file = scratch / "damaged.msgpack"
    file.write_bytes(data.draw(damaged(SOUND) | st.binary(max_size=60)))
    assert str(file) in (refusal(read, file) or str(file))
