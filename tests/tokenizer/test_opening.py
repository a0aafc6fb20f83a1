"""A tokenizer follows the files beside it as transformers' does: on each special and added token, alone and in text."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.numpy import load_file
from tokenizers import Tokenizer, pre_tokenizers

from converter import check, convert, load, to_huggingface, tokenizer
from converter.checkpoint.openai import companions
from converter.data import CHECKPOINT
from converter.errors import GPT2Error
from tests.checkpoint.writers.openai import write as write_openai

Save = Callable[..., Path]
Files = dict[str, dict[str, Any]]

END_OF_TEXT = "<|endoftext|>"
TEXTS = (
    "<s>he</s> <pad>x<unk>",
    "he <x> hello",
    f"a{END_OF_TEXT}he</s><s>he",
    "<img>he <e>",
    "<mask> a <mask> <a> x <b>y",
    "größer 日本",
)


def flags(content: str, **given: bool) -> dict[str, Any]:
    return {
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": True,
    } | given


# What may stand beside a vocabulary, with which the ids of the special tokens are no matter of the vocabulary alone.
BESIDE: dict[str, Files] = {
    "nothing": {},
    "names": {
        "tokenizer_config": {
            "tokenizer_class": "GPT2Tokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
        }
    },
    "one name": {"tokenizer_config": {"bos_token": "<s>"}},
    "nulls": {"tokenizer_config": {"unk_token": None, "bos_token": None, "eos_token": "</s>"}},
    "an older map": {
        "special_tokens_map": {
            "bos_token": flags("<s>"),
            "eos_token": "</s>",
            "unk_token": "he",
            "mask_token": flags("<mask>", lstrip=True),
            "additional_special_tokens": ["<a>", "<b>"],
        }
    },
    "more of them": {
        "tokenizer_config": {
            "additional_special_tokens": ["<a>", {"__type": "AddedToken", **flags("<b>", lstrip=True)}]
        }
    },
    "a list": {"tokenizer_config": {"extra_special_tokens": ["<a>", "<b>"]}},
    "names of the model's own": {"tokenizer_config": {"extra_special_tokens": {"image_token": "<img>", "q": "he"}}},
    "names in place": {
        "tokenizer_config": {"image_token": "<img>", "pad_token": "<pad>", "extra_special_tokens": ["<e>"]}
    },
    "a space before": {"tokenizer_config": {"add_prefix_space": True, "pad_token": "<pad>"}},
}
# Only a vocabulary's own: a tokenizer.json says itself what stands around a text, and which tokens were added.
BESIDE_VOCABULARY: dict[str, Files] = {
    "added, with a map": {
        "special_tokens_map": {"eos_token": "</s>", "pad_token": flags("<pad>", lstrip=True)},
        "added_tokens": {"<x>": 257, "</s>": 258, END_OF_TEXT: 259},
    },
    "added, with flags": {
        "tokenizer_config": {
            "eos_token": "</s>",
            "added_tokens_decoder": {
                "257": flags("</s>", special=True, normalized=False),
                "258": flags("<x>", special=False, rstrip=True),
            },
        }
    },
    "a beginning": {"tokenizer_config": {"add_bos_token": True, "bos_token": "<s>"}},
    "both ends": {"tokenizer_config": {"add_bos_token": True, "add_eos_token": True, "pad_token": "<pad>"}},
}


def write(folder: Path, files: Files, ends: bool = False) -> Path:
    """A vocabulary of the 256 bytes and one merge, with GPT-2's end of text or without, and files beside it."""
    vocab = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {"he": len(vocab)} | ({END_OF_TEXT: len(vocab) + 1} if ends else {})
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\n")
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    if not (folder / "config.json").is_file():
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return folder


def as_tokenizer_json(folder: Path) -> Path:
    """The vocabulary as a ``tokenizer.json`` that knows of no added token."""
    loaded = json.loads(Tokenizer.to_str(tokenizer.load(folder)))  # type: ignore[arg-type]
    loaded["pre_tokenizer"]["add_prefix_space"] = False
    (folder / "tokenizer.json").write_text(json.dumps(loaded | {"added_tokens": []}))
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    return folder


def assert_reads_as(ours: Tokenizer | None, theirs: Any) -> None:
    assert ours is not None
    tokens = [*theirs.all_special_tokens, *theirs.get_added_vocab()]
    for text in (*TEXTS, *tokens, *(f"a{token}he {token}" for token in tokens)):
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
    found = {number: repr(token) for number, token in ours.get_added_tokens_decoder().items()}
    assert found == {number: repr(token) for number, token in theirs.added_tokens_decoder.items()}


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("beside", BESIDE | BESIDE_VOCABULARY)
def test_a_vocabulary_is_read_as_transformers_reads_it(tmp_path: Path, beside: str, ends: bool) -> None:
    if ends and beside.startswith("added"):
        pytest.skip("its ids begin where the end of text stands")
    folder = write(tmp_path / "source", (BESIDE | BESIDE_VOCABULARY)[beside], ends)
    assert_reads_as(tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "TokenizersBackend"])
def test_a_tokenizer_json_is_read_as_transformers_reads_it(tmp_path: Path, kind: str, beside: str, ends: bool) -> None:
    folder = as_tokenizer_json(write(tmp_path / "source", BESIDE[beside], ends))
    settings = BESIDE[beside].get("tokenizer_config", {})
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind} | settings))
    assert_reads_as(tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("beside", ["nothing", "names", "an older map", "a space before", "both ends"])
def test_the_converted_tokenizer_json_alone_reads_as_transformers_reads_the_source(
    save: Save, tmp_path: Path, beside: str
) -> None:
    source = write(save(vocab_size=280), (BESIDE | BESIDE_VOCABULARY)[beside])
    convert(source, tmp_path / "out")
    alone = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert_reads_as(alone, transformers.AutoTokenizer.from_pretrained(source))
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert [again(text)["input_ids"] for text in TEXTS] == [alone.encode(text).ids for text in TEXTS]
    assert check(source, tmp_path / "out").beside_faults == ()


def test_a_tokenizer_json_in_place_stays_and_is_completed_when_it_is_opened(save: Save, tmp_path: Path) -> None:
    source = as_tokenizer_json(write(save(vocab_size=280), BESIDE["names"]))
    before = (source / "tokenizer.json").read_bytes()
    done = convert(source, in_place=True)
    assert (source / "tokenizer.json").read_bytes() == before
    assert any("tokenizer.json lacks <s>, </s>, <unk>, <pad>" in warning for warning in done.warnings)
    theirs = transformers.AutoTokenizer.from_pretrained(source)
    assert load(source).generate("<s>he", max_new_tokens=1).prompt_ids[0] == theirs("<s>he")["input_ids"]


def test_a_token_that_the_model_lacks_pads_nothing(save: Save, tmp_path: Path) -> None:
    source = write(save(vocab_size=257), {})
    convert(source, tmp_path / "out")
    assert "pad_token" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
DAMAGED = {"empty object": b"{}", "cut off": b'{"version": "1.0", "mod', "UTF-16": "{}".encode("utf-16"), "empty": b""}


@pytest.mark.parametrize("content", [*DAMAGED.values(), POINTER.encode()], ids=[*DAMAGED, "pointer"])
@pytest.mark.parametrize("target", ["onnx", "hf"])
def test_a_damaged_tokenizer_json_is_refused_by_its_own_name(
    save: Save, tmp_path: Path, content: bytes, target: str
) -> None:
    source = save()
    (source / "tokenizer.json").write_bytes(content)
    with pytest.raises(GPT2Error) as refused:
        {"onnx": convert, "hf": to_huggingface}[target](source, tmp_path / "out")
    said = str(refused.value)
    assert said.startswith(f"{source / 'tokenizer.json'} ")
    assert ("git lfs pull" in said) == (content == POINTER.encode())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    [
        "generation_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
    ],
)
@pytest.mark.parametrize("content", [b"\xff\xfe{", POINTER.encode()], ids=["not UTF-8", "pointer"])
def test_other_damaged_files_are_refused_by_their_own_names(
    save: Save, tmp_path: Path, name: str, content: bytes
) -> None:
    source = save()
    shutil.copyfile(CHECKPOINT / "tokenizer.json", source / "tokenizer.json")
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_bytes(content)
    with pytest.raises(GPT2Error) as refused:
        convert(source, tmp_path / "out")
    assert str(refused.value).startswith(f"{source / name} ")


@pytest.mark.parametrize(("name", "content"), [("encoder.json", "[]"), ("vocab.bpe", "#version: 0.2\nno_merge\n")])
def test_a_damaged_vocabulary_is_refused_by_the_name_that_its_format_gives_it(
    save: Save, tmp_path: Path, name: str, content: str
) -> None:
    """OpenAI's encoder.json and vocab.bpe become vocab.json and merges.txt."""
    folder = write_openai(tmp_path / "117M", load_file(save(n_inner=None) / "model.safetensors"))
    vocabulary = write(tmp_path / "vocabulary", {})
    shutil.copyfile(vocabulary / "vocab.json", folder / "encoder.json")
    shutil.copyfile(vocabulary / "merges.txt", folder / "vocab.bpe")
    (folder / name).write_text(content)
    for use in (lambda: convert(folder, tmp_path / "out"), lambda: tokenizer.from_source(companions(folder))):
        with pytest.raises(GPT2Error, match=re.escape(str(folder / name))) as refused:
            use()
        assert "gpt2onnx-" not in str(refused.value)  # as our own folders are called


@pytest.mark.parametrize(
    "settings",
    [
        {"added_tokens_decoder": {"first": flags("<x>")}},
        {"added_tokens_decoder": [1]},
        {"eos_token": {"lstrip": True}},
        {"extra_special_tokens": [3]},
    ],
)
def test_settings_that_make_no_sense_are_refused_in_a_sentence(
    save: Save, tmp_path: Path, settings: dict[str, Any]
) -> None:
    source = save()
    shutil.copyfile(CHECKPOINT / "tokenizer.json", source / "tokenizer.json")
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(GPT2Error):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("where", ["tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("name", ["TokenizersBackend", "PythonBackend"])
def test_a_class_that_only_transformers_5_knows_becomes_one_that_all_know(
    save: Save, tmp_path: Path, name: str, where: str
) -> None:
    source = save(vocab_size=2048)
    shutil.copyfile(CHECKPOINT / "tokenizer.json", source / "tokenizer.json")
    settings = {"eos_token": END_OF_TEXT, "extra_special_tokens": ["The"]}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    values = json.loads((source / where).read_text())
    (source / where).write_text(json.dumps(values | {"tokenizer_class": name}))
    convert(source, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in written  # of which transformers 4 takes no list
    assert check(source, tmp_path / "out").beside_faults == ()
    theirs, again = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "out"))
    assert again.all_special_tokens == theirs.all_special_tokens
    assert again("The The<|endoftext|>")["input_ids"] == theirs("The The<|endoftext|>")["input_ids"]


def test_a_class_that_only_transformers_5_knows_is_named_where_it_stays(save: Save, tmp_path: Path) -> None:
    source = save(vocab_size=2048)
    shutil.copyfile(CHECKPOINT / "tokenizer.json", source / "tokenizer.json")
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    assert any(
        "names the class TokenizersBackend, which Optimum" in said for said in convert(source, in_place=True).warnings
    )
