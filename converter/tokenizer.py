"""Tokenizers: carried over with the model, and loaded for generation."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint.config import read_json
from converter.clients import write_json
from converter.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
VOCABULARY = ("vocab.json", "merges.txt")  # GPT-2's own files
SPECIAL_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")

# GPT-2's only special token, for folders that hold vocabulary and merges and say nothing more.
END_OF_TEXT = "<|endoftext|>"


def load(folder: str | os.PathLike[str]) -> Tokenizer | None:
    """The tokenizer of a folder, from ``tokenizer.json`` or GPT-2's ``vocab.json`` and ``merges.txt``; None without.

    Raises:
        TokenizerError: its files are there and cannot be read.
    """
    from tokenizers import Tokenizer

    folder = Path(folder)
    if (folder / TOKENIZER).is_file():
        try:
            loaded = Tokenizer.from_file(os.fspath(folder / TOKENIZER))
        except Exception as error:  # the library raises nothing narrower
            raise TokenizerError(f"{folder / TOKENIZER} cannot be read ({error})") from error
        # Left in the file by whoever trained with them; a prompt is neither cut nor filled up.
        loaded.no_truncation()
        loaded.no_padding()
        return loaded
    return from_vocab_and_merges(folder) if is_in(folder) else None


def is_in(folder: Path) -> bool:
    """Whether a folder has the files of a tokenizer."""
    return any(all((folder / name).is_file() for name in names) for names in ((TOKENIZER,), VOCABULARY))


def of(companions: Mapping[str, Path], write: Callable[[Path], None] | None = None) -> Tokenizer | None:
    """The tokenizer of a source, whose files may have other names there.

    Args:
        write: writes what the source holds in its weights' own file into a folder.

    Raises:
        TokenizerError: its files are there and cannot be read.
    """
    if write is None and all(file.name == name for name, file in companions.items()):
        return load(next(iter(companions.values())).parent) if companions else None
    with tempfile.TemporaryDirectory(prefix="gpt2onnx-") as folder:
        for name, file in companions.items():
            shutil.copyfile(file, Path(folder) / name)
        if write is not None:
            write(Path(folder))
        return load(folder)


def from_vocab_and_merges(folder: Path) -> Tokenizer:
    """GPT-2's byte-level BPE from ``vocab.json`` and ``merges.txt`` with the special tokens that the folder names.

    Raises:
        TokenizerError: a file is damaged, or a special token has no id.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    settings = _json(folder / TOKENIZER_CONFIG)
    try:
        tokenizer = Tokenizer(models.BPE.from_file(os.fspath(vocab), os.fspath(merges)))
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(f"{vocab} and {merges} cannot be read ({error})") from error
    prefix_space = bool(settings.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    added = _json(folder / "added_tokens.json")
    special = set(special_tokens(folder).values()) or {END_OF_TEXT}
    for token, wanted in sorted(added.items(), key=lambda item: item[1]):
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=token in special)])
        if tokenizer.token_to_id(token) != wanted:
            raise TokenizerError(
                f"{folder / 'added_tokens.json'} gives {token} the id {wanted}, which {vocab} leaves no room for"
            )
    tokenizer.add_special_tokens(sorted(token for token in special if tokenizer.token_to_id(token) is not None))
    return tokenizer


def special_tokens(folder: Path) -> dict[str, str]:
    """``eos_token`` and its like → the token, as ``tokenizer_config.json`` or ``special_tokens_map.json`` has them."""
    values = {**_json(folder / "special_tokens_map.json"), **_json(folder / TOKENIZER_CONFIG)}
    contents = {key: values[key] for key in SPECIAL_KEYS if values.get(key)}
    return {key: value["content"] if isinstance(value, dict) else str(value) for key, value in contents.items()}


def complete(folder: Path, n_positions: int, keep: Iterable[str] = ()) -> None:
    """Add what clients want to the tokenizer files in ``folder``: a ``tokenizer.json``, and padding on the left.

    A tokenizer that pads on the right makes every batch wrong; transformers.js and genai take the side from here.

    Args:
        keep: names of files that may be added but not changed.
    """
    if not (folder / TOKENIZER).is_file():
        tokenizer = load(folder)
        if tokenizer is None:
            return
        (folder / TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")
    if TOKENIZER_CONFIG in keep:
        return
    settings = _json(folder / TOKENIZER_CONFIG) or _default_settings(folder, n_positions)
    settings["padding_side"] = "left"
    write_json(folder / TOKENIZER_CONFIG, settings)


def _default_settings(folder: Path, n_positions: int) -> dict[str, Any]:
    byte_level = (folder / "merges.txt").is_file()
    settings: dict[str, Any] = {"tokenizer_class": "GPT2Tokenizer" if byte_level else "PreTrainedTokenizerFast"}
    tokenizer = load(folder)
    if not special_tokens(folder) and tokenizer is not None and tokenizer.token_to_id(END_OF_TEXT) is not None:
        settings.update(dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT))
    return settings | {"model_max_length": n_positions}


def _json(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file."""
    return read_json(file) if file.is_file() else {}
