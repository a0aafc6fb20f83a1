"""GPT-2's byte-level BPE: ``vocab.json`` and ``merges.txt``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from converter.errors import TokenizerError
from converter.tokenizer.settings import ADDED_TOKENS, TOKENIZER_CONFIG, json_of, special_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILES = ("vocab.json", "merges.txt")

# GPT-2's only special token, for folders that hold vocabulary and merges and say nothing more.
END_OF_TEXT = "<|endoftext|>"


def build(folder: Path) -> Tokenizer:
    """Return the tokenizer of vocabulary and merges, with the special tokens that the folder names.

    Raises:
        TokenizerError: a special token has no id.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    vocab, merges = (folder / name for name in FILES)
    settings = json_of(folder / TOKENIZER_CONFIG)
    tokenizer = Tokenizer(models.BPE.from_file(os.fspath(vocab), os.fspath(merges)))
    prefix_space = bool(settings.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    added = json_of(folder / ADDED_TOKENS)
    special = set(special_tokens(folder).values()) or {END_OF_TEXT}
    for token, wanted in sorted(added.items(), key=lambda item: item[1]):
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=token in special)])
        if tokenizer.token_to_id(token) != wanted:
            raise TokenizerError(
                f"{folder / ADDED_TOKENS} gives {token} the id {wanted}, which {vocab} leaves no room for"
            )
    tokenizer.add_special_tokens(sorted(token for token in special if tokenizer.token_to_id(token) is not None))
    return tokenizer
