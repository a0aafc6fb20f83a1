"""A tokenizer with tokens that the model has no row for: they are named, at conversion and where one is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from converter import convert, load, tokenizer
from converter.data import CHECKPOINT
from converter.errors import PromptError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The bundled model, whose tokenizer got two tokens that the model did not."""
    model = transformers.GPT2LMHeadModel.from_pretrained(CHECKPOINT, dtype=torch.float32)
    added = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    added.add_special_tokens({"pad_token": "[PAD]", "additional_special_tokens": ["<bot>"]})
    for part in (model, added):
        part.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def test_tokens_beyond_the_model_are_named_and_there_is_room_for_them_once_it_is_resized_as_advised(
    source: Path, tmp_path: Path
) -> None:
    warnings = convert(source, tmp_path / "out").warnings
    assert warnings == (
        f"{tmp_path / 'out'}: the tokenizer has '[PAD]' as token 2048, and the model has 2048 tokens: a text with it, "
        "or another of the 2 tokens beyond, is refused; model.resize_token_embeddings(2050) gives the model rows for "
        "them, which are to be trained",
    )
    model = load(tmp_path / "out")
    with pytest.raises(
        PromptError, match=r"token id 2049, '<bot>', is not one of the model's 2048 tokens \(0 to 2047\)"
    ):
        model.generate(["The <bot>"], max_new_tokens=2)
    with pytest.raises(PromptError, match=r"token id 2048, '\[PAD\]', is not one of"):
        model.logits([2048])
    with pytest.raises(PromptError, match=r"token id 9999 is not one of"):
        model.logits([9999])
    resized = transformers.GPT2LMHeadModel.from_pretrained(source, dtype=torch.float32)
    resized.resize_token_embeddings(2050)
    resized.save_pretrained(source)
    assert not convert(source, tmp_path / "out", force=True).warnings
    assert load(tmp_path / "out").generate(["The <bot>"], max_new_tokens=2).texts


def test_a_tokenizer_of_the_model_s_size_is_no_warning(bundled: Path, save: Callable[..., Path]) -> None:
    assert tokenizer.beyond(bundled, 2048) == ()
    assert tokenizer.beyond(bundled, 5000) == ()
    assert tokenizer.beyond(save("without"), 61) == ()
