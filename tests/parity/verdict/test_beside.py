"""The check compares the tokenizer with the source's files, and with transformers' own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from converter import convert
from converter.checkpoint.open import open_checkpoint
from converter.data import CHECKPOINT
from converter.parity.verdict.beside import SCRIPTS, compare_tokenizer

Save = Callable[..., Path]
Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def source(save: Save) -> Path:
    """The bundled tokenizer, with special tokens and one that is not."""
    folder = save(vocab_size=2100)
    loaded = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    loaded.add_special_tokens(["<s>", "</s>"])
    loaded.add_tokens([AddedToken("<x>", rstrip=True)])
    loaded.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def faults(source: Path, out: Path) -> list[str]:
    return compare_tokenizer(out, open_checkpoint(source))


def without(content: str) -> Change:
    def change(values: dict[str, Any]) -> None:
        values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] != content]

    return change


def flagged(content: str, **flags: bool) -> Change:
    def change(values: dict[str, Any]) -> None:
        next(token for token in values["added_tokens"] if token["content"] == content).update(flags)

    return change


def renumbered(values: dict[str, Any]) -> None:
    first, second = values["added_tokens"][-2:]
    first["content"], second["content"] = second["content"], first["content"]


def spaced(values: dict[str, Any]) -> None:
    values["pre_tokenizer"]["add_prefix_space"] = True


def composed(values: dict[str, Any]) -> None:
    values["normalizer"] = {"type": "NFC"}


DEFECTS: dict[str, tuple[Change, str]] = {
    "a special token is gone": (without("</s>"), "tokenizer.json lacks </s>, which is a token of the source"),
    "an added token is gone": (without("<x>"), "tokenizer.json lacks <x>, which is a token of the source"),
    "two have each other's id": (renumbered, "the tokenizer's vocabulary is not the source's"),
    "one eats what is before it": (flagged("</s>", lstrip=True), "the tokenizer reads 'a </s> b' otherwise"),
    "one eats nothing behind it": (flagged("<x>", rstrip=False), "the tokenizer reads 'a <x> b' otherwise"),
    "one is found in whole words alone": (flagged("<s>", single_word=True), "the tokenizer reads 'a<s>b' otherwise"),
    "texts begin with a space": (spaced, "the tokenizer splits text otherwise"),
    "marks are put together": (composed, "the tokenizer splits text otherwise"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_what_reads_text_otherwise_is_a_fault(source: Path, tmp_path: Path, defect: str) -> None:
    convert(source, tmp_path / "out")
    assert faults(source, tmp_path / "out") == []
    file = tmp_path / "out" / "tokenizer.json"
    values = json.loads(file.read_text())
    change, said = DEFECTS[defect]
    change(values)
    file.write_text(json.dumps(values))
    [fault] = faults(source, tmp_path / "out")
    assert fault.startswith(said)


def test_a_file_that_transformers_reads_otherwise_is_a_fault_though_it_is_the_sources_own(
    save: Save, tmp_path: Path
) -> None:
    """GPT2Tokenizer of transformers 5 takes the vocabulary of a tokenizer.json, and splits words in its own way."""
    source = save(vocab_size=300)
    vocab = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    loaded = Tokenizer(models.BPE({**vocab, "12": 256}, [("1", "2")]))
    loaded.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    loaded.decoder = decoders.ByteLevel()
    loaded.save(str(source / "tokenizer.json"))
    convert(source, tmp_path / "out")
    [fault] = faults(source, tmp_path / "out")
    assert "1234567890" in fault
    assert fault.endswith("otherwise than transformers does with the source's files")
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    convert(source, tmp_path / "as it stands")
    assert faults(source, tmp_path / "as it stands") == []


def test_a_tokenizer_that_transformers_cannot_open_is_compared_with_the_sources_files(
    source: Path, tmp_path: Path
) -> None:
    values = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(values | {"pad": "", "encode": "a method's name"}))
    convert(source, tmp_path / "out")
    assert faults(source, tmp_path / "out") == []
    shutil.copyfile(CHECKPOINT / "tokenizer.json", tmp_path / "out" / "tokenizer.json")
    assert faults(source, tmp_path / "out") == ["tokenizer.json lacks </s>, which is a token of the source"]


def test_each_scripts_text_is_told_from_another(source: Path, tmp_path: Path) -> None:
    """A text of which nothing is left would compare nothing."""
    read = Tokenizer.from_file(str(source / "tokenizer.json"))
    ids = [tuple(read.encode(text).ids) for text in SCRIPTS]
    assert len(set(ids)) == len(SCRIPTS)
    assert min(map(len, ids)) > 10
