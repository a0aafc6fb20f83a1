"""BERT's vocabularies become the tokenizer.json that transformers makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter import convert, load, tokenizer
from converter.errors import TokenizerError

Save = Callable[..., Path]
Agree = Callable[..., None]

VOCABULARY = """
[PAD] [UNK] [CLS] [SEP] [MASK] 日 本 語 の 今 天 气 它 是 中 文 。 hello world Hello ##ing a b c ##b ##c x y z gro ##ßer
größer grosser naive naïve full width 1 2 3 ##2 ##3 don ' t < > s / | , .
"""
WORDS = VOCABULARY.split()

OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "cased": {"do_lower_case": False},
    "Chinese in words": {"tokenize_chinese_chars": False},
    "accents kept": {"strip_accents": False},
    "accents stripped": {"strip_accents": True, "do_lower_case": False},
    "more tokens": {"extra_special_tokens": ["<one>"], "pad_token": "<pad>"},
    "older list": {"additional_special_tokens": ["<one>", "ell"]},
}


def vocabulary(folder: Path, values: dict[str, Any] | None = None) -> Path:
    """Write a vocabulary and the options; the class where Chinese GPT-2s have it, in config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    file = folder / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {"model_type": "gpt2"}
    file.write_text(json.dumps(config | {"tokenizer_class": "BertTokenizer"}))
    if values is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("name", OPTIONS)
def test_a_vocabulary_is_read_as_transformers_reads_it(tmp_path: Path, agree: Agree, name: str) -> None:
    folder = vocabulary(tmp_path / "source", OPTIONS[name])
    ours, theirs = tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours is not None
    assert type(theirs).__name__ == "BertTokenizer"
    agree(ours, theirs)
    assert json.loads(ours.to_str()) == json.loads(theirs._tokenizer.to_str())


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(text=st.text(max_size=30) | st.lists(st.sampled_from([*WORDS, " ", "é", "ing"]), max_size=9).map("".join))
def test_any_text_is_read_as_transformers_reads_it(tmp_path: Path, agree: Agree, text: str) -> None:
    folder = vocabulary(tmp_path)
    agree(tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder), (text,))


def test_without_a_class_the_file_decides(tmp_path: Path) -> None:
    named = tokenizer.load(vocabulary(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    unnamed = tokenizer.load(tmp_path)
    assert named is not None
    assert unnamed is not None
    assert unnamed.to_str() == named.to_str()


def test_a_model_folder_is_read_as_its_source(save: Save, tmp_path: Path, agree: Agree) -> None:
    source = vocabulary(save(vocab_size=100))
    assert convert(source, tmp_path / "out").warnings == ()
    out = tmp_path / "out"
    assert (out / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
    theirs, again = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (source, out))
    assert type(again).__name__ == "BertTokenizer"
    assert again.padding_side == "left"
    agree(tokenizer.load(out), theirs)
    agree(tokenizer.load(out), again)


def test_a_prompt_is_not_closed(save: Save, tmp_path: Path) -> None:
    convert(vocabulary(save(vocab_size=100, bos_token_id=None, eos_token_id=None)), tmp_path / "out")
    model = load(tmp_path / "out")
    pieces: list[str] = []
    done = model.generate("它是中文", max_new_tokens=6, on_text=lambda row, text: pieces.append(text))
    assert [WORDS[i] for i in done.prompt_ids[0]] == ["它", "是", "中", "文"]
    assert "".join(pieces) == done.texts[0]
    named = model.generate("[CLS]它是中文[SEP]", max_new_tokens=1).prompt_ids[0]
    assert [WORDS[i] for i in named] == ["[CLS]", "它", "是", "中", "文", "[SEP]"]  # what the user writes stays


def test_the_models_own_beginning_of_text_opens_a_prompt(save: Save, tmp_path: Path) -> None:
    begin, end = WORDS.index("[CLS]"), WORDS.index("[SEP]")
    convert(vocabulary(save(vocab_size=100, bos_token_id=begin, eos_token_id=end)), tmp_path / "out")
    prompts = load(tmp_path / "out").generate(["它是", ""], max_new_tokens=1).prompt_ids
    assert [[WORDS[i] for i in ids] for ids in prompts] == [["[CLS]", "它", "是"], ["[CLS]"]]


def test_a_vocabulary_without_unknown_words_is_refused(save: Save, tmp_path: Path) -> None:
    source = vocabulary(save())
    (source / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(TokenizerError, match=r"source/vocab\.txt has no \[UNK\], the token of unknown words"):
        convert(source, tmp_path / "out")


def test_a_vocabulary_that_is_no_text_is_refused(save: Save, tmp_path: Path) -> None:
    source = vocabulary(save())
    (source / "vocab.txt").write_bytes(b"[UNK]\n\xff\xfe\n")
    with pytest.raises(TokenizerError, match=r"source/vocab\.txt cannot be read \("):
        convert(source, tmp_path / "out")


def test_japanese_bert_is_left_alone(save: Save, tmp_path: Path) -> None:
    source = vocabulary(save(), {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"})
    [warning] = convert(source, tmp_path / "out").warnings
    assert "vocab.txt is of a BertJapaneseTokenizer, which splits words with MeCab and a dictionary" in warning
    assert (tmp_path / "out" / "vocab.txt").is_file()
    assert not (tmp_path / "out" / "tokenizer.json").exists()
