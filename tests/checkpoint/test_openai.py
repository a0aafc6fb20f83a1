"""OpenAI's TensorFlow checkpoints read as TensorFlow wrote them, and whatever is damaged is refused."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from converter import convert, tokenizer
from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.openai import MAX_INDEX_BYTES, hf_name, read_bundle
from converter.checkpoint.tensor import LazyTensor
from converter.data import CHECKPOINT
from converter.errors import CheckpointError, ConfigError, GPT2Error
from converter.weights.ledger import account
from tests.checkpoint.writers.openai import HPARAMS, Entries, block, entry, field, own_name, table, varint, write

IDS = torch.tensor([5, 60, 0, 17, 17, 3, 42])

DTYPES = {"float32": 1, "int64": 9, "float16": 19}

HEADER = (b"", field(1, 1) + field(3, field(1, 1)))
ONE = [HEADER, (b"model/wte", entry((5, 2), 0, 40))]


def bundle(folder: Path, blocks: list[bytes], data: bytes = bytes(40), **options: Any) -> Path:
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(data)
    (folder / "model.ckpt.index").write_bytes(table(blocks, **options))
    return folder / "model.ckpt.index"


@pytest.fixture
def source(save: Callable[..., Path]) -> Path:
    return save(n_inner=None)


def test_what_tensorflow_saved_is_read(written: Path, assert_written: Callable[..., None]) -> None:
    checkpoint = open_checkpoint(written / "openai")
    assert (checkpoint.name, checkpoint.format, checkpoint.weight_file) == ("openai", "OpenAI", "model.ckpt.index")
    assert not checkpoint.transformers_reads
    assert_written(checkpoint.tensors, inner=16)
    assert checkpoint.tensors["h.0.attn.c_attn.weight"].name == "model/h0/attn/c_attn/w"


def test_the_writer_of_these_tests_writes_what_tensorflow_does(tmp_path: Path, written: Path) -> None:
    found = read_bundle(written / "openai" / "model.ckpt.index")
    write(tmp_path / "ours", {name: tensor.memmap() for name, tensor in found.items()}, hparams=HPARAMS)
    data = "model.ckpt.data-00000-of-00001"
    assert (tmp_path / "ours" / data).read_bytes() == (written / "openai" / data).read_bytes()
    assert {n: t.offset for n, t in read_bundle(tmp_path / "ours" / "model.ckpt.index").items()} == {
        n: t.offset for n, t in found.items()
    }


@pytest.mark.parametrize("shards", [1, 3])
def test_the_converted_model_computes_what_transformers_does(
    tmp_path: Path, source: Path, converted_logits: Callable[..., torch.Tensor], shards: int
) -> None:
    folder = write(tmp_path / "117M", load_file(source / "model.safetensors"), shards)
    model = transformers.GPT2LMHeadModel.from_pretrained(source).eval()
    with torch.no_grad():
        expected = model(IDS[None]).logits[0]
    torch.testing.assert_close(converted_logits(folder, IDS), expected, atol=2e-5, rtol=1e-5)


def test_the_config_is_put_together(written: Path) -> None:
    assert open_checkpoint(written / "openai").config_values == {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "vocab_size": 7, "n_positions": 5, "n_embd": 4,
        "n_head": 2, "n_layer": 1, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip


@pytest.mark.parametrize("part", ["folder", "index"])
def test_a_config_beside_it_says_what_hparams_does_not(tmp_path: Path, source: Path, part: str) -> None:
    folder = write(tmp_path / "117M", load_file(source / "model.safetensors"))
    stated = {"model_type": "gpt2", "n_layer": 3, "hidden_size": 12, "layer_norm_epsilon": 1e-6, "eos_token_id": 7}
    (folder / "config.json").write_text(json.dumps(stated))
    found = open_checkpoint(folder if part == "folder" else folder / "model.ckpt.index")
    assert (found.format, found.notes, len(account(found).weights)) == ("OpenAI", (), 40)
    assert (found.config.layer_norm_epsilon, found.config.activation_function) == (1e-6, "gelu_new")
    assert (found.config_values["eos_token_id"], found.config_values["n_positions"]) == (7, 24)
    assert found.config_file == folder / "config.json"


@pytest.mark.parametrize(
    ("key", "value", "own"),
    [("n_layer", 4, "n_layer"), ("vocab_size", 50257, "n_vocab"), ("num_attention_heads", 6, "n_head"),
     ("n_positions", None, "n_ctx"), ("n_embd", "12", "n_embd")],
)  # fmt: skip
def test_a_config_that_contradicts_hparams_is_refused(
    tmp_path: Path, source: Path, key: str, value: Any, own: str
) -> None:
    folder = write(tmp_path / "117M", load_file(source / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", key: value}))
    message = rf"117M/config\.json contradicts hparams\.json beside it: {key} is {value!r} and {own} is {HPARAMS[own]};"
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(folder)


def test_a_config_of_another_model_beside_it_is_refused(tmp_path: Path, source: Path) -> None:
    folder = write(tmp_path / "117M", load_file(source / "model.safetensors"))
    (folder / "config.json").write_text('{"model_type": "gptj"}')
    with pytest.raises(ConfigError, match=r"117M/config\.json does not describe a GPT-2: model_type is 'gptj'"):
        open_checkpoint(folder)


def test_a_config_that_unties_the_head_is_noted_and_not_followed(tmp_path: Path, source: Path) -> None:
    folder = write(tmp_path / "117M", load_file(source / "model.safetensors"))
    (folder / "config.json").write_text('{"model_type": "gpt2", "tie_word_embeddings": false}')
    found = open_checkpoint(folder)
    assert account(found).config.tie_word_embeddings
    assert "but the OpenAI code that wrote model.ckpt.index ties it" in found.notes[0]


def test_hugging_faces_weights_in_the_same_folder_are_the_ones(tmp_path: Path, source: Path) -> None:
    folder = write(source, load_file(source / "model.safetensors"))
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.format, checkpoint.transformers_reads) == ("Hugging Face", True)


def test_gpt2s_vocabulary_has_gpt2s_end_of_text(tmp_path: Path, written: Path) -> None:
    shutil.copytree(written / "openai", tmp_path / "m")
    (tmp_path / "m" / "hparams.json").write_text(json.dumps(HPARAMS | {"n_vocab": 50257}))
    values = open_checkpoint(tmp_path / "m").config_values
    assert values["bos_token_id"] == values["eos_token_id"] == 50256


def test_vocabulary_merges_and_licence_travel_under_hugging_faces_names(tmp_path: Path, source: Path) -> None:
    folder = write(tmp_path / "117M", load_file(source / "model.safetensors"))
    known = tokenizer.load(CHECKPOINT)
    assert known is not None
    model = json.loads(known.to_str())["model"]
    (folder / "encoder.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "LICENSE").write_text("Modified MIT")
    found = open_checkpoint(folder).companions
    assert {name: file.name for name, file in found.items()} == {
        "vocab.json": "encoder.json", "merges.txt": "vocab.bpe", "LICENSE": "LICENSE",
    }  # fmt: skip
    read = tokenizer.from_source(found)
    assert read is not None
    assert read.encode("the cat sat").ids == known.encode("the cat sat").ids


def test_the_checkpoint_that_the_state_names_is_the_one(tmp_path: Path, source: Path) -> None:
    folder = write(tmp_path / "run1", load_file(source / "model.safetensors"))
    for file in folder.glob("model.ckpt.*"):
        shutil.copy(file, folder / file.name.replace("model.ckpt", "model-200"))
    with pytest.raises(CheckpointError, match=r"run1 holds several checkpoints \(model-200\.index, model\.ckpt\.index"):
        open_checkpoint(folder)
    (folder / "checkpoint").write_text('model_checkpoint_path: "C:\\\\runs\\\\run1\\\\model-200"\n')
    assert open_checkpoint(folder).weight_file == "model-200.index"
    (folder / "checkpoint").write_text('model_checkpoint_path: "model-300"\n')
    with pytest.raises(CheckpointError, match=r"checkpoint names model-300\.index, which is missing"):
        open_checkpoint(folder)
    assert open_checkpoint(folder / "model.ckpt.index").weight_file == "model.ckpt.index"


def test_what_a_gpt2_does_not_have_is_named_and_can_be_ignored(tmp_path: Path, source: Path) -> None:
    state = load_file(source / "model.safetensors")
    folder = write(tmp_path / "117M", state)
    index, (header, *entries) = folder / "model.ckpt.index", sorted_entries(state)
    slot = (b"model/wte/Adam", entry((61, 12), 0, 61 * 12 * 4))
    index.write_bytes(table([block(sorted([header, *entries, slot]))]))
    with pytest.raises(CheckpointError, match=r"tensor model/wte/Adam is not part of a GPT-2.*--ignore"):
        account(open_checkpoint(folder))
    assert len(account(open_checkpoint(folder), ["model/wte/Adam"]).weights) == len(entries)


def sorted_entries(state: dict[str, np.ndarray]) -> Entries:
    entries, offset = [HEADER], 0
    for name, value in sorted((own_name(name), value) for name, value in state.items()):
        shape = (1, *value.shape) if name.endswith("/w") else value.shape
        entries.append((name.encode(), entry(shape, offset, value.nbytes)))
        offset += value.nbytes
    return entries


@pytest.mark.parametrize("name", ["model/h0", "model/h00/ln_1/g", "model/h0/ln_1/w", "h0/ln_1/g", "global_step", ""])
def test_other_names_stay_as_they_are(name: str) -> None:
    assert hf_name(name) == name


def test_weights_are_not_read(tmp_path: Path, bytes_read: Callable[[], int]) -> None:
    size = 50257 * 1600 * 4
    index = bundle(tmp_path, [block([HEADER, (b"model/wte", entry((50257, 1600), 0, size))])])
    with (tmp_path / "model.ckpt.data-00000-of-00001").open("wb") as data:
        data.truncate(size)  # sparse
    tracemalloc.start()
    before = bytes_read()
    found = read_bundle(index)
    assert bytes_read() - before < 200_000  # a buffer of Python 3.14 has 131,072
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert found["wte.weight"].nbytes == size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_ctx": None}, "n_positions is None"),
        ({"n_head": 5}, "n_head 5 does not divide n_embd 12"),
        ({"n_layer": 4}, r"model\.ckpt\.index has no tensor h\.3\.ln_1\.weight"),
        ({"n_vocab": 62}, r"tensor model/wte is \[61, 12\]; config\.json asks for \[62, 12\]"),
    ],
)
def test_hyper_parameters_that_are_not_the_weights_are_refused(
    tmp_path: Path, source: Path, change: dict[str, Any], message: str
) -> None:
    folder = write(tmp_path / "117M", load_file(source / "model.safetensors"), hparams=HPARAMS | change)
    with pytest.raises(GPT2Error, match=message):
        convert(folder, tmp_path / "out")


def test_hyper_parameters_that_are_missing_are_named(tmp_path: Path, written: Path) -> None:
    folder = shutil.copytree(written / "openai", tmp_path / "m")
    (folder / "hparams.json").write_text('{"n_vocab": 7}')
    with pytest.raises(CheckpointError, match=r"hparams\.json has no n_ctx; expected n_vocab, n_ctx"):
        open_checkpoint(folder)
    (folder / "hparams.json").write_text('{"n_vocab": 7')
    with pytest.raises(ConfigError, match=r"hparams\.json cannot be read as JSON"):
        open_checkpoint(folder)
    (folder / "hparams.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no hparams\.json, which says what model\.ckpt\.index holds"):
        open_checkpoint(folder / "model.ckpt.index")


def test_data_that_is_missing_or_short_is_refused(tmp_path: Path, written: Path) -> None:
    folder = shutil.copytree(written / "openai", tmp_path / "m")
    data = folder / "model.ckpt.data-00000-of-00001"
    with data.open("r+b") as opened:
        opened.truncate(data.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"data-00000-of-00001 is truncated: .* ends at byte 1200, the file at 1"):
        open_checkpoint(folder)
    data.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match="is a Git LFS pointer"):
        open_checkpoint(folder)
    data.unlink()
    with pytest.raises(CheckpointError, match=r"data-00000-of-00001 is missing; model\.ckpt\.index names it"):
        open_checkpoint(folder)
    (folder / "model.ckpt.index").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="is a Git LFS pointer"):
        open_checkpoint(folder)


BAD = [
    ([HEADER, (b"x", entry((5, 2), 0, 41))], r"tensor x of float32 \[5, 2\] cannot take 41 bytes"),
    ([HEADER, (b"x", entry((1 << 40, 1 << 40), 0, 40))], "cannot take 40 bytes"),
    ([HEADER, (b"x", entry(((1 << 64) - 1,), 0, 40))], r"index is corrupt: tensor x has .* that no memory could hold$"),
    ([HEADER, (b"x", entry((5, 2), 4, 40))], "is truncated: tensor x ends at byte 44, the file at 40"),
    ([HEADER, (b"x", entry((5, 2), 1 << 62, 40))], "is truncated"),
    ([HEADER, (b"x", entry((5, 2), 0, 40, dtype=7))], "tensor x is of TensorFlow's type 7"),
    ([HEADER, (b"x", entry((5, 2), 0, 40, shard=1))], "data file 1 of 1"),
    ([HEADER, (b"x", entry((5, 2), 0, 40) + field(7, b""))], "partitioned"),
    ([HEADER, (b"model/h0/attn/c_attn/w", entry((5, 2), 0, 40))], r"c_attn/w is \[5, 2\]; expected \[1, in, out\]"),
    ([HEADER, (b"model/h0/attn/c_attn/w", entry((2, 5, 1), 0, 40))], r"\[2, 5, 1\]; expected \[1, in, out\]"),
    ([HEADER, (b"x", field(1, 1) + field(2, 3))], "a number in the place of bytes"),
    ([HEADER, (b"x", field(1, b"1"))], "bytes in the place of a number"),
    ([HEADER, (b"x", b"\x0b")], "an entry is malformed"),
    ([HEADER, (b"x", b"\x12\x09")], "an entry ends early"),
    ([HEADER, (b"x", b"\xff" * 11)], "a number without end"),
    ([HEADER, (b"\xff", entry((5, 2), 0, 40))], "is truncated or corrupt"),
    ([(b"x", entry((5, 2), 0, 40))], "is truncated or corrupt"),
    ([(b"", field(1, 1) + field(2, 1)), (b"x", entry((5, 2), 0, 40))], "big-endian"),
    ([HEADER, (b"y", entry((5, 2), 0, 40)), (b"x", entry((5, 2), 0, 40))], "its names are not in order"),
    ([HEADER, (b"x", entry((5, 2), 0, 40)), (b"x", entry((5, 2), 0, 40))], "its names are not in order"),
    ([HEADER, (b"x" * 600, entry((5, 2), 0, 40))], "a malformed entry"),
]


@pytest.mark.parametrize(
    ("entries", "message"), BAD, ids=[message[-20:] + str(i) for i, (_, message) in enumerate(BAD)]
)
def test_a_malformed_entry_is_refused(tmp_path: Path, entries: Entries, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"model\.ckpt\..*{message}"):
        read_bundle(bundle(tmp_path, [block(entries)]))


def test_a_malformed_table_is_refused(tmp_path: Path) -> None:
    good = block(ONE)
    same = block([(b"a", b"\0" + varint(len(good))), (b"b", b"\0" + varint(len(good)))])
    with pytest.raises(CheckpointError, match="its blocks overlap"):
        read_bundle(bundle(tmp_path, [good], index=same))
    with pytest.raises(CheckpointError, match="a block reaches past its end"):
        read_bundle(bundle(tmp_path, [good], index=block([(b"a", b"\0" + varint(1 << 60))])))
    restarts = (0).to_bytes(4, "little") + (1).to_bytes(4, "little")
    for malformed in (b"\x01\x00\x00", b"\x00\x00\x01", b"\x00\x01\x00"):  # shared with none, too long: value, name
        with pytest.raises(CheckpointError, match="a block has a malformed entry"):
            read_bundle(bundle(tmp_path, [malformed + restarts]))
    with pytest.raises(CheckpointError, match="a block is too short"):
        read_bundle(bundle(tmp_path, [b"\xff" * 4]))
    with pytest.raises(CheckpointError, match=r"is compressed \(snappy\), which TensorFlow does not do"):
        read_bundle(bundle(tmp_path, [good], compression=1))
    with pytest.raises(CheckpointError, match="is truncated or corrupt"):
        read_bundle(bundle(tmp_path, []))
    index = bundle(tmp_path, [good])
    index.write_bytes(bytes(MAX_INDEX_BYTES) + index.read_bytes())
    with pytest.raises(CheckpointError, match="is not the index of a TensorFlow checkpoint"):
        read_bundle(index)


def test_one_wrong_bit_in_a_block_is_noticed(tmp_path: Path) -> None:
    index = bundle(tmp_path, [block(ONE)])
    sound = index.read_bytes()
    for i in range(len(block(ONE)) + 5):
        index.write_bytes(sound[:i] + bytes([sound[i] ^ 4]) + sound[i + 1 :])
        with pytest.raises(CheckpointError, match=r"checksum of a block is wrong"):
            read_bundle(index)


def test_an_index_truncated_anywhere_is_refused(tmp_path: Path, refusal: Callable[..., str | None]) -> None:
    index = bundle(tmp_path, [block(ONE)])
    sound = index.read_bytes()
    for end in range(len(sound)):
        index.write_bytes(sound[:end])
        assert str(index) in (refusal(read_bundle, index) or ""), end


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_damage_is_refused_or_harmless(
    scratch: Path,
    written: Path,
    bounded_memory: None,
    damaged: Callable[..., st.SearchStrategy[bytes]],
    refusal: Callable[..., str | None],
    data: st.DataObject,
) -> None:
    shutil.copy(written / "openai" / "model.ckpt.data-00000-of-00001", scratch)
    index = scratch / "model.ckpt.index"
    index.write_bytes(data.draw(damaged((written / "openai" / "model.ckpt.index").read_bytes())))
    message = refusal(read_bundle, index)
    assert message is None or str(scratch / "model.ckpt.") in message


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_damage_under_good_checksums_is_refused_or_harmless(
    scratch: Path,
    bounded_memory: None,
    damaged: Callable[..., st.SearchStrategy[bytes]],
    refusal: Callable[[Callable[[Path], dict[str, LazyTensor]], Path], str | None],
    data: st.DataObject,
) -> None:
    contents = data.draw(damaged(block(ONE)) | st.binary(max_size=40))
    top = data.draw(st.none() | damaged(block([(b"0", b"\0" + varint(len(contents)))])))
    index = bundle(scratch, [contents], index=top)
    message = refusal(read_bundle, index)
    assert message is None or str(scratch / "model.ckpt.") in message
