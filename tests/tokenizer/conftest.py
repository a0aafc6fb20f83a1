"""Folders with small tokenizers, trained on the spot."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.data import HELD_OUT

TRICKY = (
    "Hello world",
    " leading",
    "trailing ",
    "  ",
    "a  b\n\n\tc",
    "x\r\ny",
    "don't ``quote'' 1,234.5",
    "größer naïve",
    "日本語のテキスト",
    "今日は 天気",
    "它是中文文本。",
    "😀\u200d👩",
    "１２３ ｆｕｌｌ　ｗｉｄｔｈ",
    "\u00a0\u200b\u00ad",
    "\x00\x07",
    "龘 ab龘龘cd",
    "▁▁x",
    "<unk> a",
    "x</s> y <s>z",
    "[CLS] x[SEP]y [UNK]",
    "<|endoftext|>x <one> y",
    "<0x41> <extra_id_1>",
    "",
)

SENTENCES = (
    "日本語のテキストです。今日はいい天気ですね。",
    "１２３ ｆｕｌｌ　ｗｉｄｔｈ",
    "größer naïve",
    "它是中文文本。",
    "a  b   c",
)
CORPUS = (*HELD_OUT.read_text(encoding="utf-8").splitlines()[:1500], *SENTENCES * 20)


@functools.cache
def trained(options: tuple[tuple[str, Any], ...]) -> bytes:
    """A sentencepiece model of some 700 pieces."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        minloglevel=2,
        hard_vocab_limit=False,
        num_threads=1,
        **{"vocab_size": 900 if dict(options).get("byte_fallback") else 700, **dict(options)},
    )
    return model.getvalue()


Train = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """``train(file, settings, **options)`` gives a folder with a sentencepiece model; settings are the tokenizer's."""

    def write(file: str, settings: dict[str, Any], folder: Path | None = None, **options: Any) -> Path:
        folder = tmp_path / "source" if folder is None else folder
        folder.mkdir(exist_ok=True)
        (folder / file).write_bytes(trained(tuple(options.items())))
        if not (folder / "config.json").is_file():
            (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    return write


@pytest.fixture(scope="session")
def tricky() -> tuple[str, ...]:
    """Texts that tokenizers read in different ways."""
    return TRICKY


Agree = Callable[..., None]


@pytest.fixture(scope="session")
def agree() -> Agree:
    """``agree(ours, theirs)``: one tokenizer gives transformers' ids, and reads them back as it does."""

    def compare(ours: Any, theirs: Any, texts: tuple[str, ...] = TRICKY) -> None:
        for text in texts:
            for framed in (True, False):
                wanted = theirs(text, add_special_tokens=framed)["input_ids"]
                assert ours.encode(text, add_special_tokens=framed).ids == wanted, text
                read = theirs.decode(wanted, skip_special_tokens=True)
                assert ours.decode(wanted, skip_special_tokens=True) == read, text
                if theirs.is_fast:  # the other kind puts a space of its own before special tokens
                    assert ours.decode(wanted, skip_special_tokens=False) == theirs.decode(wanted), text

    return compare
