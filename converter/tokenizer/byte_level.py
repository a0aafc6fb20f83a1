"""GPT-2's byte-level BPE: ``vocab.json`` and ``merges.txt``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from converter.tokenizer.frame import ends, put
from converter.tokenizer.settings import added_tokens, class_name, named, read, refuse_renumbered

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILES = ("vocab.json", "merges.txt")
CLASS = "GPT2Tokenizer"

# GPT-2's only special token.
END_OF_TEXT = "<|endoftext|>"

# What GPT2Tokenizer has where a folder names no other ones.
TOKENS = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)


def build(folder: Path) -> Tokenizer:
    """Return the tokenizer of vocabulary and merges: GPT2Tokenizer's, as transformers 5 makes it.

    Special tokens that the vocabulary lacks follow it.

    Raises:
        TokenizerError: an added token cannot have its id.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocab, merges = (folder / name for name in FILES)
    tokenizer = Tokenizer(models.BPE.from_file(os.fspath(vocab), os.fspath(merges)))
    values = read(folder)
    # Other classes have such files too, and other tokens where a folder names none.
    if class_name(folder) in ("", CLASS) or tokenizer.token_to_id(END_OF_TEXT) is not None:
        values = {**TOKENS, **values}
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(values.get("add_prefix_space")))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_tokens(added_tokens(values))
    refuse_renumbered(tokenizer, values, f"{folder} gives")
    if values.get("add_bos_token") or values.get("add_eos_token"):
        put(ends(values), tokenizer, named(values))
    return tokenizer
