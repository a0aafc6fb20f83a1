"""Read and write JSON and texts; say in a user's words which file is damaged, and what the system said of it."""

from __future__ import annotations

import errno
import json
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from converter.errors import CheckpointError, ConfigError, GPT2Error

LFS_POINTER = b"version https://git-lfs"  # how the text begins that a clone without Git LFS has for a large file


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in ``file``.

    Raises:
        ConfigError: it is absent, unreadable, or something else than a JSON object.
    """
    try:
        refuse_special(file)
        text = file.read_text(encoding="utf-8")
        values = json.loads(text)
        if HALF_CHARACTER.search(text):
            json.dumps(values, ensure_ascii=False).encode()  # pairs of halves are whole characters now
    except FileNotFoundError as error:
        raise ConfigError(f"{file.parent} has no {file.name}; expected a Hugging Face model folder") from error
    except PermissionError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except (OSError, ValueError, RecursionError) as error:
        refuse_lfs_pointer(file, "the JSON")
        raise ConfigError(f"{file} cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds a {type(values).__name__}; expected a JSON object")
    return values


HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")  # an escape of UTF-16, which is no text by itself


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file that people can read."""
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def naming_originals(copies: Mapping[Path, Path]) -> Iterator[None]:
    """Let errors name the files that the user knows, and not our copies of them.

    Args:
        copies: copy → original; a file before the folder that it is in.
    """
    try:
        yield
    except GPT2Error as error:
        text = str(error)
        for copy, original in copies.items():
            text = text.replace(str(copy), str(original))
        raise type(error)(text) from error


def reason(error: OSError) -> str:
    """Return what the operating system said, and of which file."""
    text = error.strerror or str(error)
    # A full disk is reported of the file that was read.
    return f"{text} ({error.filename})" if error.filename and error.errno != errno.ENOSPC else text


def refuse_special(path: Path) -> None:
    """Refuse a pipe, a socket or a device, which may never end, and cannot be read twice.

    Raises:
        CheckpointError: ``path`` is or leads to one.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise CheckpointError(f"{path} is a pipe, a socket or a device; expected a file on a disk")


def starts_with(file: Path, *magics: bytes) -> bool:
    """Tell whether ``file`` is a file that begins with one of these bytes."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(max(map(len, magics))).startswith(magics)


def refuse_lfs_pointer(file: Path, expected: str = "the weights") -> None:
    """Refuse what a clone without Git LFS has in the place of a large file.

    Args:
        expected: what should be there, for the message.

    Raises:
        CheckpointError: ``file`` is such a pointer.
    """
    if starts_with(file, LFS_POINTER):
        raise CheckpointError(f"{file} is a Git LFS pointer and not {expected}; fetch the files with: git lfs pull")


def refuse_damaged(file: Path, name: str) -> None:
    """Refuse a file that does not hold what its name promises: a JSON object, or a template's text.

    Args:
        name: what it is called where it is to go.

    Raises:
        CheckpointError, ConfigError: it does not, or Git LFS holds it.
    """
    refuse_lfs_pointer(file, "the file itself")
    if name.endswith(".json"):
        read_json(file)
    elif name.endswith(".jinja"):
        read_text(file)


def read_text(file: Path) -> str:
    """Return a file's text.

    Raises:
        ConfigError: it is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text ({error}); fetch it again, or save it as UTF-8") from error
