"""Tokenizers: carried over with the model, and loaded for generation.

A source's own files are kept as they are. Beside them a model folder has a ``tokenizer.json``, which every client reads
without a library of its own: the source's, or one derived from its vocabulary (``kinds`` says of which). A derived one
gives the ids that transformers' tokenizer gives for the same folder.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from converter.checkpoint.folder import companions as names_of_companions
from converter.files import naming_originals
from converter.tokenizer.byte_level import END_OF_TEXT
from converter.tokenizer.completion import complete
from converter.tokenizer.frame import prompt_ids
from converter.tokenizer.kinds import Found, find, misread_as
from converter.tokenizer.opening import TOKENIZER, follow, open_file
from converter.tokenizer.settings import TOKENIZER_CONFIG, special_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "END_OF_TEXT",
    "TOKENIZER",
    "TOKENIZER_CONFIG",
    "beyond",
    "complete",
    "files_of",
    "from_source",
    "is_in",
    "load",
    "misread_as",
    "open_file",
    "prompt_ids",
    "special_tokens",
    "unavailable",
]


def load(folder: str | os.PathLike[str]) -> Tokenizer | None:
    """Return the tokenizer of a folder, from ``tokenizer.json`` or its vocabulary files; None if there is none.

    It knows special tokens too that stand only in the files beside ``tokenizer.json``: see ``opening.follow``.

    Raises:
        CheckpointError, TokenizerError: its files are there and cannot be read.
    """
    folder = Path(folder)
    if not (folder / TOKENIZER).is_file():
        found = find(folder)
        return found.build() if isinstance(found, Found) else None
    loaded = open_file(folder / TOKENIZER)
    follow(loaded, folder)
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


def beyond(folder: str | os.PathLike[str], size: int) -> tuple[str, ...]:
    """Return a sentence for the user if a folder's tokenizer has tokens that a model of ``size`` tokens lacks.

    Raises:
        TokenizerError: its files are there and cannot be read.
    """
    read = load(folder)
    ids = {} if read is None else read.get_vocab(with_added_tokens=True)
    lacked = sorted((i, token) for token, i in ids.items() if i >= size)
    if not lacked:
        return ()
    (first, token), last = lacked[0], lacked[-1][0]
    return (
        f"{folder}: the tokenizer has {token!r} as token {first}, and the model has {size} tokens: a text with it, or "
        f"another of the {len(lacked)} tokens beyond, is refused; model.resize_token_embeddings({last + 1}) gives the "
        f"model rows for them, which are to be trained",
    )


def from_source(companions: Mapping[str, Path], write: Callable[[Path], None] | None = None) -> Tokenizer | None:
    """Return the tokenizer of a source, whose files may have other names there: see ``files_of``.

    Raises:
        CheckpointError, TokenizerError: its files are there and cannot be read.
    """
    with files_of(companions, write) as folder:
        return load(folder)


@contextmanager
def files_of(companions: Mapping[str, Path], write: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Open a folder with a source's files under the names that they have in a model folder: its own, if it is one.

    Args:
        companions: the name in a model folder → the source's file.
        write: writes what the source holds in its weights' own file into a folder.
    """
    folders = {file.parents[len(Path(name).parts) - 1] for name, file in companions.items()}
    own = folders.pop() if len(folders) == 1 else None
    whole = own is not None and companions == {name: own / name for name in names_of_companions(own)}
    if own is not None and whole and write is None:
        yield own
        return
    with tempfile.TemporaryDirectory(prefix="gpt2onnx-") as temporary:
        folder = Path(temporary)
        for name, file in companions.items():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, folder / name)
        if write is not None:
            write(folder)
        with naming_originals({folder / name: file for name, file in companions.items()}):
            yield folder
