"""Sentencepiece models of every class become the tokenizer.json that transformers makes of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import models

from converter import check, convert, load, tokenizer
from converter.errors import CheckError, PromptError, TokenizerError

sentencepiece = pytest.importorskip("sentencepiece")

Save = Callable[..., Path]
Train = Callable[..., Path]
Agree = Callable[..., None]

# rinna's Japanese GPT-2: no sentinels, its own special tokens, unknown characters as bytes.
RINNA = {
    "tokenizer_class": "T5Tokenizer",
    "extra_ids": 0,
    "additional_special_tokens": [],
    "bos_token": "<s>",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
}
RINNA_MODEL = {"byte_fallback": True, "user_defined_symbols": "[PAD],[CLS],[SEP],[MASK]"}
T5_MODEL = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
ALBERT_MODEL = {
    "pad_id": 0,
    "unk_id": 1,
    "bos_id": -1,
    "eos_id": -1,
    "control_symbols": "[CLS],[SEP]",
    "user_defined_symbols": "[MASK]",
}
XLNET_MODEL = {"control_symbols": "<cls>,<sep>,<pad>,<mask>,<eod>", "user_defined_symbols": "<eop>"}
IDENTITY = {"normalization_rule_name": "identity"}
LLAMA_MODEL = {"model_type": "bpe", "byte_fallback": True, "remove_extra_whitespaces": False, **IDENTITY}
SW3_MODEL = {**LLAMA_MODEL, "pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3, "eos_piece": "<|endoftext|>"}

CLASSES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "rinna": ("spiece.model", RINNA, RINNA_MODEL),
    "T5": ("spiece.model", {"tokenizer_class": "T5Tokenizer"}, T5_MODEL),
    "T5, as it stands": ("spiece.model", {"tokenizer_class": "T5TokenizerFast"}, T5_MODEL | IDENTITY),
    "ALBERT": ("spiece.model", {"tokenizer_class": "AlbertTokenizer"}, ALBERT_MODEL),
    "ALBERT with accents": (
        "spiece.model",
        {"tokenizer_class": "AlbertTokenizer", "keep_accents": True, "do_lower_case": False},
        ALBERT_MODEL,
    ),
    "XLNet": ("spiece.model", {"tokenizer_class": "XLNetTokenizer"}, XLNET_MODEL),
    "XLNet in small letters": (
        "spiece.model",
        {"tokenizer_class": "XLNetTokenizer", "do_lower_case": True},
        XLNET_MODEL,
    ),
    "Llama": ("tokenizer.model", {"tokenizer_class": "LlamaTokenizer"}, LLAMA_MODEL),
    "Llama, legacy": ("tokenizer.model", {"tokenizer_class": "LlamaTokenizer", "legacy": True}, LLAMA_MODEL),
    "Llama with both ends": (
        "tokenizer.model",
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": True},
        LLAMA_MODEL,
    ),
    "Llama without prefix": (
        "tokenizer.model",
        {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False},
        LLAMA_MODEL,
    ),
    "Llama of a unigram model": ("tokenizer.model", {"tokenizer_class": "LlamaTokenizer"}, {"byte_fallback": True}),
    "GPT-SW3": ("spiece.model", {"tokenizer_class": "GPTSw3Tokenizer"}, SW3_MODEL),
    "GPT-SW3 without prefix": ("spiece.model", {"tokenizer_class": "GPTSw3Tokenizer", "legacy": False}, SW3_MODEL),
    "GPT-SW3 with symbols": (
        "spiece.model",
        {"tokenizer_class": "GPTSw3Tokenizer"},
        {**SW3_MODEL, "user_defined_symbols": "<one>,<|code|>"},
    ),
}


def numbered_as_trained(theirs: Any, file: Path) -> None:
    """transformers 5 fixes T5's unknown id; here is what the model says."""
    trained = sentencepiece.SentencePieceProcessor(model_file=str(file))
    vocab = [(piece, score) for piece, score in json.loads(theirs._tokenizer.to_str())["model"]["vocab"]]
    theirs._tokenizer.model = models.Unigram(vocab, unk_id=trained.unk_id(), byte_fallback=True)


@pytest.mark.parametrize("text", ["größer", "日本語🙂", "x\u0627y", "plain words"])
@pytest.mark.parametrize("byte_fallback", [True, False])
def test_unknown_characters_become_what_the_model_was_trained_with(
    train: Train, text: str, byte_fallback: bool
) -> None:
    folder = train("spiece.model", RINNA, **RINNA_MODEL | {"byte_fallback": byte_fallback})
    ours, trained = (
        tokenizer.load(folder),
        sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model")),
    )
    assert ours is not None
    assert ours.encode(text, add_special_tokens=False).ids == trained.encode(text)
    assert trained.eos_id() not in ours.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", CLASSES)
def test_a_model_is_read_as_transformers_reads_it(train: Train, agree: Agree, name: str) -> None:
    file, values, options = CLASSES[name]
    folder = train(file, values, **options)
    ours, theirs = tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours is not None
    assert type(theirs).__name__ == values["tokenizer_class"].removesuffix("Fast")
    if name == "rinna":
        numbered_as_trained(theirs, folder / file)
    agree(ours, theirs)
    if theirs.is_fast:
        assert json.loads(ours.to_str()) == json.loads(theirs._tokenizer.to_str())


def token(content: str, **flags: object) -> dict[str, object]:
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": True, "single_word": False, **flags}


ADDED = {
    "extra": {"tokenizer_config": {"extra_special_tokens": ["<one>", "Hello"]}},
    "additional": {
        "tokenizer_config": {"additional_special_tokens": ["<one>", {"__type": "AddedToken", **token("x")}]}
    },
    "map": {
        "special_tokens_map": {
            "pad_token": "<pad2>",
            "bos_token": token("<one>", lstrip=True),
            "additional_special_tokens": ["naïve"],
        }
    },
    "map beside a full config": {
        "tokenizer_config": {"added_tokens_decoder": {}},
        "special_tokens_map": {"pad_token": "<one>"},
    },
    "no padding": {"tokenizer_config": {"pad_token": None}},
}


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("name", ["rinna", "T5", "ALBERT", "XLNet", "Llama", "GPT-SW3"])
def test_special_tokens_are_those_of_transformers(train: Train, agree: Agree, name: str, added: str) -> None:
    if (name, added) == ("GPT-SW3", "no padding"):
        pytest.skip("null is the default there")
    file, values, options = CLASSES[name]
    files = dict(ADDED[added])
    folder = train(file, values | files.pop("tokenizer_config", {}), **options)
    for other, content in files.items():
        (folder / f"{other}.json").write_text(json.dumps(content))
    ours, theirs = tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    if name == "rinna":
        numbered_as_trained(theirs, folder / file)
    agree(ours, theirs)


@pytest.mark.parametrize("name", ["rinna", "XLNet", "Llama", "GPT-SW3"])
def test_added_tokens_follow_the_vocabulary(train: Train, agree: Agree, name: str) -> None:
    file, values, options = CLASSES[name]
    folder = train(file, values, **options)
    first = len(transformers.AutoTokenizer.from_pretrained(folder))
    (folder / "added_tokens.json").write_text(json.dumps({"<one>": first, "ell": first + 1}))
    ours, theirs = tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours is not None
    assert ours.token_to_id("ell") == first + 1
    if name == "rinna":
        numbered_as_trained(theirs, folder / file)
    agree(ours, theirs)


@pytest.mark.parametrize("name", CLASSES)
def test_a_model_folder_is_read_as_its_source(
    train: Train, save: Save, tmp_path: Path, tricky: tuple[str, ...], name: str
) -> None:
    file, values, options = CLASSES[name]
    source = train(file, values, folder=save(vocab_size=1100), **options)
    convert(source, tmp_path / "out")
    assert (tmp_path / "out" / file).read_bytes() == (source / file).read_bytes()
    theirs, again = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "out"))
    assert again.padding_side == "left"
    for text in tricky:
        # What adds both ends is asked in a file that transformers leaves to tokenizer.json once there is one.
        ids = theirs(text)["input_ids"]
        assert again(text)["input_ids"] == ids
        assert again.decode(ids) == theirs.decode(ids)


PLAIN = {
    "unigram": {},
    "unigram with bytes": {"byte_fallback": True},
    "BPE": {"model_type": "bpe"},
    "BPE as it stands": LLAMA_MODEL,
    "BPE with symbols": {**LLAMA_MODEL, "user_defined_symbols": "<|a|>,<b>,a b"},
    "BPE without prefix": {"model_type": "bpe", "add_dummy_prefix": False},
    "characters": {"model_type": "char"},
    "case folded": {"normalization_rule_name": "nmt_nfkc_cf"},
}
# The tokenizers library's table of characters loses a mark that follows a character of the table.
UNMARKED = st.characters(exclude_categories=("M", "Cs"))
TEXT = st.text(UNMARKED, max_size=20) | st.lists(
    st.sampled_from(["<|a|>", "<b>", "a b", " ", "\n", "the", "é", "ｆ", "日本", "▁", "x"]), max_size=9
).map("".join)


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(text=TEXT)
def test_a_model_of_no_named_class_is_read_as_sentencepiece_reads_it(train: Train, name: str, text: str) -> None:
    folder = train("spiece.model", {}, **PLAIN[name])
    own = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    ours = tokenizer.load(folder)
    assert ours is not None
    assert ours.encode(text).ids == own.encode(text)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(text=TEXT)
def test_any_text_is_read_as_gpt_sw3_reads_it(train: Train, agree: Agree, text: str) -> None:
    file, values, options = CLASSES["GPT-SW3"]
    folder = train(file, values, **options)
    agree(tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder), (text,))


@pytest.mark.parametrize("name", ["rinna", "Llama", "GPT-SW3", "XLNet"])
def test_generation_reads_the_prompt_and_streams_the_answer(
    train: Train, save: Save, tmp_path: Path, name: str
) -> None:
    file, values, options = CLASSES[name]
    convert(train(file, values, folder=save(vocab_size=1100, eos_token_id=None), **options), tmp_path / "out")
    model = load(tmp_path / "out")
    pieces: list[str] = []
    done = model.generate("今日は 天気", max_new_tokens=12, on_text=lambda row, text: pieces.append(text))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert done.prompt_ids[0] == theirs("今日は 天気", add_special_tokens=False)["input_ids"]
    assert "".join(pieces) == done.texts[0]
    whole = theirs.decode(done.prompt_ids[0] + done.new_ids[0], skip_special_tokens=True)
    assert whole == theirs.decode(done.prompt_ids[0], skip_special_tokens=True) + done.texts[0]


@pytest.mark.parametrize(
    ("values", "start", "opened"),
    [
        ({}, 1, False),
        ({"add_bos_token": True}, 1, True),
        ({"add_bos_token": True}, None, True),  # the tokenizer asks for it, and closes nothing
        ({"add_bos_token": True, "add_eos_token": True}, 1, True),
        ({"add_eos_token": True}, 1, False),
    ],
)
def test_a_prompt_is_opened_where_the_tokenizer_does_and_never_closed(
    train: Train, values: dict[str, Any], start: int | None, opened: bool
) -> None:
    folder = train("tokenizer.model", {"tokenizer_class": "LlamaTokenizer", **values}, **LLAMA_MODEL)
    ours = tokenizer.load(folder)
    assert ours is not None
    bare = ours.encode("x</s> y", add_special_tokens=False).ids
    assert tokenizer.prompt_ids(ours, "x</s> y", start) == ([1] if opened else []) + bare


def test_the_check_compares_the_tokenizers(train: Train, save: Save, tmp_path: Path) -> None:
    file, values, options = CLASSES["T5"]
    source = train(file, values, folder=save(vocab_size=1100), **options)
    convert(source, tmp_path / "out")
    assert check(source, tmp_path / "out").passed
    other = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    other["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "out" / "tokenizer.json").write_text(json.dumps(other))
    assert check(source, tmp_path / "out").beside_faults == ("the tokenizer splits text otherwise",)


def test_unknown_characters_that_transformers_reads_otherwise_are_reported(
    train: Train, save: Save, tmp_path: Path
) -> None:
    file, values, options = CLASSES["rinna"]
    done = convert(train(file, values, folder=save(vocab_size=1100), **options), tmp_path / "out")
    assert done.warnings == (
        "spiece.model makes unknown characters bytes, and so does tokenizer.json; T5Tokenizer of transformers 5 makes "
        "them token 2",
    )


def test_without_sentencepiece_the_extra_is_named(
    train: Train, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, values, options = CLASSES["T5"]
    source = train(file, values, folder=save(vocab_size=1100), **options)
    convert(source, tmp_path / "with")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    [warning] = convert(source, tmp_path / "out").warnings
    mend = f"{tmp_path / 'out' / file} needs sentencepiece: pip install 'gpt2onnx[sentencepiece]'"
    assert mend in warning
    assert (tmp_path / "out" / file).is_file()
    model = load(tmp_path / "out")
    assert len(model.generate([[1, 2]], max_new_tokens=2).new_ids[0]) == 2
    with pytest.raises(PromptError, match=r"has no tokenizer, as .*gpt2onnx\[sentencepiece\].*--ids"):
        model.generate("text")
    with pytest.raises(CheckError, match=r"the tokenizer cannot be compared: .*gpt2onnx\[sentencepiece\]"):
        check(source, tmp_path / "with")


@pytest.mark.parametrize("damage", [lambda data: data[:-50], lambda data: b"", lambda data: b"a tiktoken file 1\n"])
def test_a_damaged_model_is_refused(train: Train, save: Save, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file, values, options = CLASSES["T5"]
    source = train(file, values, folder=save(vocab_size=1100), **options)
    (source / file).write_bytes(damage((source / file).read_bytes()))
    with pytest.raises(TokenizerError, match=r"source/spiece\.model is no sentencepiece model, or damaged; fetch it"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_added_token_that_cannot_have_its_id_is_refused(train: Train) -> None:
    file, values, options = CLASSES["GPT-SW3"]
    folder = train(file, values, **options)
    (folder / "added_tokens.json").write_text(json.dumps({"<far>": 5000}))
    with pytest.raises(TokenizerError, match=r"source gives the added token <far> the id 5000, which its vocabulary"):
        tokenizer.load(folder)


def test_special_tokens_that_are_no_text_are_refused(train: Train) -> None:
    folder = train("spiece.model", {"tokenizer_class": "T5Tokenizer", "eos_token": {"lstrip": True}}, **T5_MODEL)
    with pytest.raises(TokenizerError, match=r"a special token is .*; expected a text, or an object with a content"):
        tokenizer.load(folder)


def test_models_of_whole_words_are_refused(train: Train) -> None:
    with pytest.raises(TokenizerError, match=r"a sentencepiece model of whole words"):
        tokenizer.load(train("spiece.model", {}, model_type="word"))


def test_a_class_that_is_not_known_is_named(train: Train, save: Save, tmp_path: Path) -> None:
    source = train("spiece.model", {"tokenizer_class": "MarianTokenizer"}, folder=save())
    [warning] = convert(source, tmp_path / "out").warnings
    assert "spiece.model is of a MarianTokenizer, which is not known here" in warning
    assert not (tmp_path / "out" / "tokenizer.json").exists()
