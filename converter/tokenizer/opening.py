"""Open a ``tokenizer.json``, and let it follow the files beside it as transformers does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from converter.errors import TokenizerError
from converter.files import refuse_lfs_pointer
from converter.tokenizer.kinds import BYTE_LEVEL, CLASSES
from converter.tokenizer.settings import TOKENIZER_CONFIG, added_tokens, class_name, read

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"


def open_file(file: Path) -> Tokenizer:
    """Return what a ``tokenizer.json`` holds, and nothing else.

    Raises:
        CheckpointError, TokenizerError: it is damaged, or Git LFS holds it.
    """
    from tokenizers import Tokenizer

    refuse_lfs_pointer(file, "the tokenizer")
    try:
        return Tokenizer.from_file(os.fspath(file))
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(
            f"{file} cannot be read as a tokenizer ({error}); fetch it again, or remove it to go without"
        ) from error


class Change(NamedTuple):
    """What a folder's other files change in its ``tokenizer.json``.

    Attributes:
        tokens: the added tokens that are new, or found in another way.
        prefix_space: whether texts begin with a space, or no longer do.
    """

    tokens: tuple[str, ...]
    prefix_space: bool


def follow(tokenizer: Tokenizer, folder: Path) -> Change:
    """Make a ``tokenizer.json`` what the files beside it ask, as transformers does whenever it opens the folder.

    Special and added tokens that only they name are added; those that the vocabulary lacks get the ids that follow it.

    Raises:
        TokenizerError: what these files say of tokens makes no sense.
    """
    try:
        return Change(_add_tokens(tokenizer, folder), _is_gpt2(tokenizer, folder) and _set_prefix(tokenizer, folder))
    except (AttributeError, TypeError, ValueError) as error:
        raise TokenizerError(f"{folder / TOKENIZER_CONFIG} describes its tokens in no known way ({error})") from error


def _add_tokens(tokenizer: Tokenizer, folder: Path) -> tuple[str, ...]:
    kind = BYTE_LEVEL if _is_gpt2(tokenizer, folder) else CLASSES.get(class_name(folder))
    before = set(map(repr, tokenizer.get_added_tokens_decoder().items()))
    known = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    tokenizer.add_tokens(added_tokens({**(kind.tokens if kind else {}), **read(folder)}, known=known))
    after = tokenizer.get_added_tokens_decoder().items()
    return tuple(token.content for number, token in after if repr((number, token)) not in before)


def _set_prefix(tokenizer: Tokenizer, folder: Path) -> bool:
    from tokenizers import pre_tokenizers

    wanted, now = bool(read(folder).get("add_prefix_space")), tokenizer.pre_tokenizer
    if not isinstance(now, pre_tokenizers.ByteLevel) or now.add_prefix_space == wanted:
        return False
    now.add_prefix_space = wanted
    tokenizer.pre_tokenizer = now
    return True


def _is_gpt2(tokenizer: Tokenizer, folder: Path) -> bool:
    """Tell whether transformers takes a tokenizer for GPT2Tokenizer: of a GPT-2 no folder needs to say so."""
    from tokenizers import models

    return class_name(folder) in ("", BYTE_LEVEL.class_name) and isinstance(tokenizer.model, models.BPE)
