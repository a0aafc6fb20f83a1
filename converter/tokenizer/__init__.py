"""Tokenizers: carried over with the model, and loaded for generation.

A source's own files are kept as they are. Beside them a model folder has a ``tokenizer.json``, which every client reads
without a library of its own: the source's, or one derived from its vocabulary (``kinds`` says of which). A derived one
gives the ids that transformers' tokenizer gives for the same folder.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.errors import TokenizerError
from converter.files import write_json
from converter.tokenizer.byte_level import END_OF_TEXT
from converter.tokenizer.frame import prompt_ids
from converter.tokenizer.kinds import BYTE_LEVEL, Found, find
from converter.tokenizer.settings import TOKENIZER_CONFIG, class_name, json_of, special_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "END_OF_TEXT",
    "TOKENIZER",
    "TOKENIZER_CONFIG",
    "complete",
    "is_in",
    "load",
    "of",
    "prompt_ids",
    "special_tokens",
    "unavailable",
]

TOKENIZER = "tokenizer.json"
CLEAN_UP = "clean_up_tokenization_spaces"


def load(folder: str | os.PathLike[str]) -> Tokenizer | None:
    """Return the tokenizer of a folder, from ``tokenizer.json`` or its vocabulary files; None if there is none.

    Raises:
        TokenizerError: its files are there and cannot be read.
    """
    from tokenizers import Tokenizer

    folder = Path(folder)
    if not (folder / TOKENIZER).is_file():
        found = find(folder)
        return found.build() if isinstance(found, Found) else None
    try:
        loaded = Tokenizer.from_file(os.fspath(folder / TOKENIZER))
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(f"{folder / TOKENIZER} cannot be read ({error})") from error
    # Left in the file by whoever trained with them; a prompt is neither cut nor filled up.
    loaded.no_truncation()
    loaded.no_padding()
    return loaded


def is_in(folder: str | os.PathLike[str]) -> bool:
    """Tell whether a folder has the files of a tokenizer, of a known kind or not."""
    return (Path(folder) / TOKENIZER).is_file() or find(Path(folder)) is not None


def unavailable(folder: str | os.PathLike[str]) -> str | None:
    """Return why a folder's tokenizer files give no tokenizer, as the end of a sentence; None without such files."""
    if (Path(folder) / TOKENIZER).is_file():
        return None
    found = find(Path(folder))
    return found if isinstance(found, str) else None


def from_source(companions: Mapping[str, Path], write: Callable[[Path], None] | None = None) -> Tokenizer | None:
    """Return the tokenizer of a source, whose files may have other names there.

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


def complete(folder: Path, n_positions: int, keep: Iterable[str] = ()) -> tuple[str, ...]:
    """Add to the tokenizer files in ``folder`` what clients need: a ``tokenizer.json``, and padding.

    A tokenizer that pads on the right makes every batch wrong; clients take side and token from here.
    A tokenizer whose library is not installed stays as it is: see ``unavailable``.

    Args:
        keep: names of files that may be added but not changed.

    Returns:
        Sentences for the user, on what the tokenizer does otherwise than its files ask.

    Raises:
        TokenizerError: a file is damaged.
    """
    remark = None
    if not (folder / TOKENIZER).is_file():
        found = find(folder)
        if not isinstance(found, Found):
            return ()
        (folder / TOKENIZER).write_text(found.build().to_str(), encoding="utf-8")
        remark = found.kind.remark(folder)
    if TOKENIZER_CONFIG not in keep:
        settings = json_of(folder / TOKENIZER_CONFIG) or _default_settings(folder, n_positions)
        added = {**_padding(folder), **_spaces(folder, settings)}
        write_json(folder / TOKENIZER_CONFIG, {**settings, **added, "padding_side": "left"})
    return (remark,) if remark else ()


def _padding(folder: Path) -> dict[str, str]:
    """Make the end of text the padding token if there is none: transformers and Optimum make no batch without one."""
    tokens = special_tokens(folder)
    if not tokens and class_name(folder) in ("", BYTE_LEVEL.class_name):
        tokens = {"eos_token": END_OF_TEXT}  # transformers' default for this class
    end = tokens.get("eos_token", "")
    known = json.dumps(end, ensure_ascii=False) in (folder / TOKENIZER).read_text(encoding="utf-8")
    return {"pad_token": end} if end and known and "pad_token" not in tokens else {}


def _spaces(folder: Path, settings: Mapping[str, Any]) -> dict[str, bool]:
    """Whether spaces before punctuation are taken out of texts: what is no request to transformers, which never does it
    to a BPE's texts, must not be one to transformers.js, which does it unless it is told not to."""
    asked = bool(settings.get(CLEAN_UP))
    return {CLEAN_UP: asked and "merges" not in json_of(folder / TOKENIZER).get("model", {})}


def _default_settings(folder: Path, n_positions: int) -> dict[str, Any]:
    found = find(folder)
    name = found.kind.class_name if isinstance(found, Found) else "PreTrainedTokenizerFast"
    settings: dict[str, Any] = {"tokenizer_class": name}
    tokenizer = load(folder)
    bare = not special_tokens(folder) and (name == BYTE_LEVEL.class_name or not isinstance(found, Found))
    if bare and tokenizer is not None and tokenizer.token_to_id(END_OF_TEXT) is not None:
        settings.update(dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT))
    return settings | {"model_max_length": n_positions}
