"""BERT's WordPiece: ``vocab.txt``, one token a line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from converter.errors import TokenizerError
from converter.tokenizer.frame import Frame, put
from converter.tokenizer.settings import added_tokens, content, named, read

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILES = ("vocab.txt",)

# What BertTokenizer has where a folder names no other ones.
TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
FRAME = Frame("{cls_token} $A {sep_token}", "{cls_token} $A {sep_token} $B:1 {sep_token}:1")


def build(folder: Path) -> Tokenizer:
    """Return the tokenizer of a vocabulary: BertTokenizer's, as transformers 5 makes it.

    Raises:
        TokenizerError: the vocabulary is not UTF-8, or lacks the unknown token, without which no other word is one.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    file = folder / FILES[0]
    values = TOKENS | read(folder)
    unknown = content(values["unk_token"])
    tokenizer = Tokenizer(models.WordPiece.from_file(os.fspath(file), unk_token=unknown))
    if tokenizer.token_to_id(unknown) is None:
        raise TokenizerError(f"{file} has no {unknown}, the token of unknown words; is it the model's vocabulary?")
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=values.get("tokenize_chinese_chars", True),
        strip_accents=values.get("strip_accents"),  # None: where it makes letters small
        lowercase=values.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_tokens(added_tokens(values))
    put(FRAME, tokenizer, named(values))
    return tokenizer
