"""The GGUF reader gives what the gguf package and transformers read, and refuses whatever is damaged or no GPT-2."""

from __future__ import annotations

import json
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

import converter
from converter import tokenizer
from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.tensor import STRIDED_BYTES, LazyTensor
from converter.data import CHECKPOINT, HELD_OUT
from converter.errors import CheckpointError, ConfigError, GPT2Error, TokenizerError
from converter.weights.ledger import Role, account
from tests.checkpoint.writers.gguf_files import (
    SIZES,
    TRANSPOSED,
    TYPES,
    arrays,
    dequantized,
    finish,
    gguf,
    llama_name,
    random_gpt2,
    write,
    writer,
)


def widened(tensor: LazyTensor) -> np.ndarray:
    mapped = tensor.memmap()
    return (mapped.astype(np.uint32) << 16).view(np.float32) if tensor.dtype == "bfloat16" else mapped.astype("f4")


def with_weights(model: transformers.GPT2LMHeadModel, weights: dict[str, np.ndarray]) -> transformers.GPT2LMHeadModel:
    state = {
        name: torch.tensor(weights[found].T.copy() if name.endswith(TRANSPOSED) else weights[found])
        for name in model.state_dict()
        if (found := llama_name(name)) in weights
    }
    head = state.get("lm_head.weight", state["transformer.wte.weight"])
    model.load_state_dict(state | {"lm_head.weight": head})
    return model


def read(file: Path) -> dict[str, LazyTensor]:
    return dict(converter.checkpoint.formats.read(file, SourceOptions()).tensors)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_a_file_of_every_type_becomes_the_model_it_holds(tmp_path: Path, kind: str, tied: bool) -> None:
    model = random_gpt2(tie_word_embeddings=tied)
    file = write(tmp_path / "gpt2.gguf", arrays(model, tied), kind)
    expected = dequantized(file)
    found = open_checkpoint(file)
    for tensor in found.tensors.values():
        want = expected[tensor.name]
        flipped = any(part in tensor.name for part in ("attn_qkv", "attn_output", "ffn_up", "ffn_down"))
        assert widened(tensor).tobytes() == (want.T if flipped and want.ndim == 2 else want).tobytes(), tensor.name
    converter.convert(file, tmp_path / "out")
    ids = np.array([[5, 17, 60, 0, 33, 21, 9]])
    with torch.inference_mode():
        truth = with_weights(model, expected)(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(converter.load(tmp_path / "out").logits(ids), truth, atol=2e-5)


def test_transformers_own_gguf_reader_sees_the_same_model(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")  # transformers wants it for this
    file = write(tmp_path / "gpt2.gguf", arrays(random_gpt2()), "Q8_0")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32, config=transformers.GPT2Config(**SIZES)
    )
    state = theirs.state_dict()
    for name, tensor in open_checkpoint(file).tensors.items():
        assert state[f"transformer.{name}"].numpy().tobytes() == widened(tensor).tobytes(), name


def test_a_head_that_repeats_the_embedding_is_tied(tmp_path: Path) -> None:
    weights = arrays(random_gpt2())
    file = write(tmp_path / "gpt2.gguf", weights | {"output.weight": weights["token_embd.weight"]}, "Q8_0")
    ledger = account(open_checkpoint(file))
    assert ledger.config.tie_word_embeddings
    assert [entry.tensor.name for entry in ledger.entries if entry.role is Role.TIED] == ["output.weight"]


def test_a_head_of_its_own_is_not_tied(tmp_path: Path) -> None:
    file = write(tmp_path / "gpt2.gguf", arrays(random_gpt2(tie_word_embeddings=False), tied=False), "Q8_0")
    ledger = account(open_checkpoint(file))
    assert not ledger.config.tie_word_embeddings
    assert ledger.weights["lm_head.weight"].name == "output.weight"


def test_the_config_is_that_of_the_metadata(tmp_path: Path) -> None:
    found = open_checkpoint(write(tmp_path / "small.gguf", arrays(random_gpt2())))
    assert (found.name, found.format, found.weight_file) == ("small.gguf", "GGUF", "small.gguf")
    assert {name: getattr(found.config, name) for name in SIZES} == SIZES
    assert (found.config.inner_dim, found.config.layer_norm_epsilon) == (384, 1e-5)
    assert found.config.activation_function == "gelu_new"
    assert not found.transformers_reads
    assert "gelu_new was taken" in found.notes[0]


def test_a_folder_with_one_gguf_file_is_that_file_and_an_activation_can_be_named(tmp_path: Path) -> None:
    write(tmp_path / "small.gguf", arrays(random_gpt2()))
    found = open_checkpoint(tmp_path, SourceOptions(activation="relu"))
    assert found.config.activation_function == "relu"
    assert not any("gelu_new" in note for note in found.notes)


# --- laziness


def test_reading_touches_no_weight_and_a_quantized_projection_is_computed_a_piece_at_a_time(tmp_path: Path) -> None:
    rows, columns = 1024, 8192  # 32 MiB as float32
    values = np.random.default_rng(0).standard_normal((columns, rows), np.float32)
    weights = {"token_embd.weight": np.ones((61, 96), np.float32), "blk.0.ffn_up.weight": values}
    file = write(tmp_path / "large.gguf", weights, "Q8_0")
    tracemalloc.start()
    tensor = read(file)["h.0.mlp.c_fc.weight"]
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    pieces = [len(chunk) for chunk in tensor.chunks()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(pieces) == rows * columns
    assert peak < 4 * STRIDED_BYTES
    whole = dequantized(file)["blk.0.ffn_up.weight"].T
    assert b"".join(chunk.tobytes() for chunk in tensor.chunks()) == whole.tobytes()


@settings(deadline=None, max_examples=30)
@given(first=st.integers(0, 95), count=st.integers(0, 96))
def test_any_rows_of_a_transposed_quantized_tensor_are_those_of_the_whole(
    quantized: Path, first: int, count: int
) -> None:
    tensor: Any = read(quantized)["h.1.mlp.c_fc.weight"]
    end = min(96, first + count)
    whole = dequantized(quantized)["blk.1.ffn_up.weight"].T
    assert tensor.compute(first, end).shape == (end - first, 384)
    assert tensor.compute(first, end).tobytes() == whole[first:end].tobytes()


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "quantized.gguf", arrays(random_gpt2()), "Q8_0")


def test_extreme_scales_and_quants_are_exact(tmp_path: Path) -> None:
    scales = np.array([6e-8, 65504, -65504, 0, 3.0517578e-05, 1], np.float16)
    blocks = np.zeros((2, 3, 34), np.uint8)
    blocks[..., :2] = scales.reshape(2, 3, 1).view(np.uint8)
    blocks[..., 2:] = np.random.default_rng(0).integers(-128, 128, (2, 3, 32), np.int8).view(np.uint8)
    found = writer(tmp_path / "x.gguf")
    found.add_tensor("token_embd.weight", blocks.reshape(2, 102), raw_dtype=TYPES["Q8_0"])
    finish(found)
    exact = scales.reshape(2, 3, 1).astype(np.float64) * blocks[..., 2:].view(np.int8)
    assert read(tmp_path / "x.gguf")["wte.weight"].memmap().astype(np.float64).tolist() == exact.reshape(2, 96).tolist()


# --- the tokenizer


def with_tokenizer(found: Any, folder: Path = CHECKPOINT, count: int | None = None, pre: str | None = "gpt-2") -> None:
    """What llama.cpp's ``_set_vocab_gpt2`` writes of a folder with a tokenizer.json."""
    values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = {entry["id"]: entry for entry in values["added_tokens"]}
    by_id = {index: token for token, index in values["model"]["vocab"].items()} | {
        index: entry["content"] for index, entry in added.items()
    }
    total = count or len(by_id)
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(total)]
    kinds = [
        5 if index not in by_id else 1 if index not in added else 3 if added[index]["special"] else 4
        for index in range(total)
    ]
    found.add_tokenizer_model("gpt2")
    if pre is not None:
        found.add_tokenizer_pre(pre)
    found.add_token_list(tokens)
    found.add_token_types(kinds)
    merges = values["model"]["merges"]
    found.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    special = tokens.index("<|endoftext|>")
    found.add_bos_token_id(special)
    found.add_eos_token_id(special)


TEXTS = (
    "It's 12 o'clock,  isn't it?\n\n\tYes <|endoftext|>",
    "naïve 東京 😀 \x00 [PAD700]",
    "",
    " lead",
    "<|endoftext|>",
)


@pytest.mark.parametrize("pre", ["gpt-2", None])
def test_the_tokenizer_gives_the_ids_of_the_one_it_was_made_from(tmp_path: Path, pre: str | None) -> None:
    def extra(found: Any) -> None:
        with_tokenizer(found, count=tokenizer.load(CHECKPOINT).get_vocab_size() + 7, pre=pre)

    file = write(tmp_path / "gpt2.gguf", arrays(random_gpt2()), "F16", extra)
    converter.convert(file, tmp_path / "out")
    ours, theirs = tokenizer.load(tmp_path / "out"), tokenizer.load(CHECKPOINT)
    opened = open_checkpoint(file)
    source = tokenizer.from_source(opened.companions, opened.tokenizer)
    assert ours is not None
    assert source is not None
    assert ours.get_vocab() == theirs.get_vocab() == source.get_vocab()
    for text in (*TEXTS, HELD_OUT.read_text(encoding="utf-8")[:20_000]):
        assert ours.encode(text).ids == theirs.encode(text).ids == source.encode(text).ids
        assert ours.decode(ours.encode(text).ids) == theirs.decode(theirs.encode(text).ids)
    settings_ = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert (settings_["eos_token"], settings_["padding_side"]) == ("<|endoftext|>", "left")
    end = theirs.token_to_id("<|endoftext|>")
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["eos_token_id"] == end


def test_tokens_that_users_added_and_what_is_put_before_a_text_are_kept(tmp_path: Path) -> None:
    def extra(found: Any) -> None:
        found.add_tokenizer_model("gpt2")
        found.add_tokenizer_pre("gpt-2")
        found.add_token_list(["<s>", "a", "b", "ab", "Ġ", "a b", "</s>"])
        found.add_token_types([3, 1, 1, 1, 1, 4, 3])
        found.add_token_merges(["a b"])
        found.add_bos_token_id(0)
        found.add_eos_token_id(6)
        found.add_add_bos_token(True)
        found.add_add_eos_token(False)

    file = write(tmp_path / "gpt2.gguf", arrays(random_gpt2()), extra=extra)
    opened = open_checkpoint(file)
    found = tokenizer.from_source(opened.companions, opened.tokenizer)
    assert found is not None
    assert found.encode("ab ab</s>a b").ids == [0, 3, 4, 3, 6, 5]
    assert found.decode([0, 3, 5, 6]) == "aba b"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda w: None, "tokenizer.ggml.model is None"),
        (lambda w: w.add_tokenizer_model("llama"), "tokenizer.ggml.model is 'llama'"),
        (lambda w: (w.add_tokenizer_model("gpt2"), w.add_tokenizer_pre("qwen2")), "tokenizer.ggml.pre is 'qwen2'"),
        (lambda w: (w.add_tokenizer_model("gpt2"), w.add_token_list(["a"])), "tokenizer.ggml.merges is missing"),
    ],
    ids=["none", "llama", "qwen2", "no merges"],
)
def test_another_tokenizer_is_left_aside_with_a_note(tmp_path: Path, change: Callable[[Any], None], why: str) -> None:
    opened = open_checkpoint(write(tmp_path / "gpt2.gguf", arrays(random_gpt2()), extra=change))
    assert opened.tokenizer is None
    assert any(f"gpt2.gguf gives no tokenizer: {why}" in note for note in opened.notes)


@pytest.mark.parametrize(
    ("tokens", "kinds", "merges"),
    [
        (["a", "a"], [1, 1], []),
        (["a", "b"], [1], []),
        (["a", "b"], [1, 1], ["a c"]),
        (["a", "b"], [1, 1], ["ab"]),
    ],
    ids=["twice", "types", "merge of an unknown token", "merge that is no pair"],
)
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, tokens: list[str], kinds: list[int], merges: list[str]) -> None:
    def extra(found: Any) -> None:
        found.add_tokenizer_model("gpt2")
        found.add_token_list(tokens)
        found.add_token_types(kinds)
        found.add_array("tokenizer.ggml.merges", merges or [""])

    file = write(tmp_path / "gpt2.gguf", arrays(random_gpt2()), extra=extra)
    with pytest.raises(TokenizerError, match=r"gpt2\.gguf: the tokenizer in its header cannot be used"):
        converter.convert(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- what is refused


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (lambda w: w.add_uint32("split.count", 2), "is one of 2 parts; .*llama-gguf-split --merge"),
        (lambda w: w.add_string("general.type", "adapter"), "is not a model: general.type is 'adapter'"),
        (lambda w: w.add_head_count_kv(2), r"sets gpt2\.attention\.head_count_kv to 2, which GPT-2 does not have"),
        (lambda w: w.add_logit_scale(2.0), r"sets gpt2\.logit_scale to 2\.0, which GPT-2 does not have"),
        (lambda w: w.add_array("nested", [[1], [2]]), r"corrupt: its header holds an array of 2 of type 9"),
    ],
    ids=["split", "adapter", "grouped heads", "scale", "nested"],
)
def test_metadata_of_something_else_is_refused_by_name(
    tmp_path: Path, extra: Callable[[Any], None], message: str
) -> None:
    file = write(tmp_path / "gpt2.gguf", {"token_embd.weight": np.ones((61, 96), np.float32)}, extra=extra)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(file)


def test_keys_that_say_what_a_gpt2_is_anyway_are_accepted(tmp_path: Path) -> None:
    def extra(found: Any) -> None:
        found.add_head_count_kv(4)
        found.add_key_length(24)
        found.add_vocab_size(61)
        found.add_rope_dimension_count(24)

    assert open_checkpoint(write(tmp_path / "gpt2.gguf", arrays(random_gpt2()), extra=extra)).config.n_head == 4


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    finish(writer(tmp_path / "x.gguf", "llama"))
    with pytest.raises(CheckpointError, match=r"x\.gguf is not a GPT-2: general\.architecture is 'llama'"):
        open_checkpoint(tmp_path / "x.gguf")


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "gpt2.gguf", arrays(random_gpt2()), "Q4_0")
    with pytest.raises(CheckpointError, match=r"tensor token_embd\.weight is of type Q4_0; expected F32, .* or Q8_0"):
        open_checkpoint(file)


def test_a_tensor_that_is_no_part_of_a_gpt2_is_refused_unless_ignored(tmp_path: Path) -> None:
    file = write(tmp_path / "gpt2.gguf", arrays(random_gpt2()) | {"rope_freqs.weight": np.ones(5, np.float32)})
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight is not part of a GPT-2"):
        account(open_checkpoint(file))
    assert account(open_checkpoint(file), ["rope_freqs.*"])


@pytest.mark.parametrize("name", ["wte.weight", "transformer.h.0.ln_1.bias", "h.3.attn.c_attn.weight"])
def test_hugging_face_s_names_are_refused(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "gpt2.gguf", arrays(random_gpt2()) | {name: np.ones(96, np.float32)})
    with pytest.raises(CheckpointError, match=rf"tensor {name} has a name of Hugging Face's"):
        open_checkpoint(file)


def test_a_missing_size_and_a_missing_tensor_are_named(tmp_path: Path) -> None:
    found = gguf.GGUFWriter(tmp_path / "x.gguf", "gpt2")
    finish(found)
    with pytest.raises(CheckpointError, match=r"gpt2\.context_length is None"):
        open_checkpoint(tmp_path / "x.gguf")
    weights = arrays(random_gpt2())
    del weights["blk.1.ffn_up.bias"]
    with pytest.raises(CheckpointError, match=r"has no tensor h\.1\.mlp\.c_fc\.bias"):
        account(open_checkpoint(write(tmp_path / "y.gguf", weights)))


def test_no_heads_are_refused(tmp_path: Path) -> None:
    found = writer(tmp_path / "x.gguf", n_head=0)
    found.add_tensor("token_embd.weight", np.ones((61, 96), np.float32))
    finish(found)
    with pytest.raises(ConfigError, match="n_head is 0"):
        open_checkpoint(tmp_path / "x.gguf")


def test_a_pointer_of_git_lfs_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    for path in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(CheckpointError, match=r"model\.gguf is a Git LFS pointer and not the weights"):
            open_checkpoint(path)


def sound_file(folder: Path) -> bytes:
    found = writer(folder / "sound.gguf")
    found.add_array("tokenizer.ggml.tokens", ["a", "bc"])
    found.add_array("tokenizer.ggml.token_type", [1, 3])
    found.add_tensor("token_embd.weight", np.ones((3, 4), np.float32))
    found.add_tensor("blk.0.attn_qkv.weight", gguf.quants.quantize(np.ones((3, 32), np.float32), TYPES["Q8_0"]),
                     raw_dtype=TYPES["Q8_0"])  # fmt: skip
    found.add_tensor("blk.0.ffn_up.bias", np.ones(16, np.float16))
    finish(found)
    return (folder / "sound.gguf").read_bytes()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return sound_file(tmp_path_factory.mktemp("sound"))


def test_a_file_truncated_anywhere_is_refused(tmp_path: Path, sound: bytes, refusal: Callable[..., str | None]) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(sound)
    assert refusal(read, file) is None
    for end in range(len(sound)):
        file.write_bytes(sound[:end])
        assert str(file) in (refusal(read, file) or ""), end


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_damage_is_refused_or_harmless(
    scratch: Path,
    bounded_memory: None,
    sound: bytes,
    damaged: Callable[..., st.SearchStrategy[bytes]],
    data: st.DataObject,
) -> None:
    file = scratch / "damaged.gguf"
    file.write_bytes(data.draw(damaged(sound)))
    try:
        opened = open_checkpoint(file)
        for tensor in opened.tensors.values():
            assert sum(len(chunk) for chunk in tensor.chunks()) == tensor.size
    except GPT2Error as error:
        message = str(error)
    else:
        message = file.name
    assert file.name in message


def patched(sound: bytes, at: bytes, data: bytes, skip: int = 0) -> bytes:
    begin = sound.index(at) + len(at) + skip
    return sound[:begin] + data + sound[begin + len(data) :]


LENGTHS = [1 << 24, 1 << 40, (1 << 64) - 1]


@pytest.mark.parametrize("count", LENGTHS)
@pytest.mark.parametrize(
    ("at", "skip"),
    [
        (b"GGUF", 4),  # the number of tensors
        (b"GGUF", 12),  # of values
        (b"GGUF", 20),  # the length of the first key
        (b"tokenizer.ggml.tokens", 8),
        (b"tokenizer.ggml.tokens", 16),
        (b"tokenizer.ggml.token_type", 8),
        (b"token_embd.weight", 4),  # a dimension
        (b"token_embd.weight", 24),  # the offset
    ],
)
def test_absurd_counts_are_refused_at_once(
    tmp_path: Path, bounded_memory: None, sound: bytes, at: bytes, skip: int, count: int
) -> None:
    (tmp_path / "x.gguf").write_bytes(patched(sound, at, count.to_bytes(8, "little"), skip))
    with pytest.raises(CheckpointError, match=r"x\.gguf"):
        read(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("at", "data", "skip", "message"),
    [
        (b"GGUF", b"\1\0\0\0", 0, "of version 1; expected version 2 or 3"),
        (b"GGUF", b"\0\0\0\3", 0, "written for big-endian machines"),
        (b"GGUF", b"\xff" * 3, 28, "is not UTF-8"),
        (b"tokenizer.ggml.token_type", b"\x63", 0, "a value of type 99"),
        (b"token_embd.weight", b"\5", 0, "has 5 dimensions"),
        (b"token_embd.weight", b"\0", 0, "has 0 dimensions"),
        (b"token_embd.weight", b"\x63", 20, "is of type number 99"),
        (b"token_embd.weight", b"\x20", 24, "lies at byte 32 of the data, not at 0"),
        (b"blk.0.attn_qkv.weight", b"\x21", 4, r"of Q8_0 is \[3, 33\]; expected rows of a multiple of 32"),
    ],
)
def test_what_breaks_a_rule_of_the_format_is_refused(
    tmp_path: Path, sound: bytes, at: bytes, data: bytes, skip: int, message: str
) -> None:
    (tmp_path / "x.gguf").write_bytes(patched(sound, at, data, skip))
    with pytest.raises(CheckpointError, match=rf"x\.gguf.*{message}"):
        read(tmp_path / "x.gguf")


def test_a_tensor_and_a_key_that_are_there_twice_are_refused(tmp_path: Path, sound: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(sound.replace(b"gpt2.attention.head_count", b"tokenizer.ggml.token_type"))
    with pytest.raises(CheckpointError, match=r"its header sets tokenizer\.ggml\.token_type twice"):
        read(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes(sound.replace(b"blk.0.ffn_up.bias", b"token_embd.weight"))
    with pytest.raises(CheckpointError, match=r"its header names tensor token_embd\.weight twice"):
        read(tmp_path / "x.gguf")


def test_a_conversion_of_a_quantized_file_passes_its_check(tmp_path: Path) -> None:
    size = tokenizer.load(CHECKPOINT).get_vocab_size()
    model = random_gpt2(vocab_size=size, n_positions=40)
    found = writer(tmp_path / "gpt2.gguf", n_positions=40)
    with_tokenizer(found)
    for name, array in arrays(model).items():
        wanted = TYPES["Q8_0" if array.ndim == 2 else "F32"]
        found.add_tensor(name, gguf.quants.quantize(array, wanted), raw_dtype=wanted)
    finish(found)
    converter.convert(tmp_path / "gpt2.gguf", tmp_path / "out")
    report = converter.check(tmp_path / "gpt2.gguf", tmp_path / "out")
    assert report.passed, report.verdict
    assert any("transformers does not read GGUF checkpoints such as gpt2.gguf" in note for note in report.notes)
    changed = json.loads((tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8"))
    changed["pre_tokenizer"]["add_prefix_space"] = True
    (tmp_path / "out" / "tokenizer.json").write_text(json.dumps(changed), encoding="utf-8")
    assert not converter.check(tmp_path / "gpt2.gguf", tmp_path / "out").passed
