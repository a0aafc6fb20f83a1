"""Texts in files that users bring."""

from __future__ import annotations

import json
from pathlib import Path

from converter.errors import TextError


def read_texts(file: Path) -> list[str]:
    """The texts in a file: one of plain text, or one in each line of JSONL, under ``text``.

    Raises:
        TextError: it cannot be read, is no UTF-8, or a line has no text.
    """
    try:
        content = file.read_text(encoding="utf-8")
        if file.suffix != ".jsonl":
            return [content]
        texts = [json.loads(line)["text"] for line in content.splitlines() if line.strip()]
    except OSError as error:
        raise TextError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        kind = "JSONL with a text in every line" if file.suffix == ".jsonl" else "UTF-8 text"
        raise TextError(f"{file} cannot be read as {kind} ({type(error).__name__}: {error})") from error
    if not texts or not all(isinstance(text, str) for text in texts):
        raise TextError(f"{file} has no text in every line; expected JSON objects with a text under 'text'")
    return texts
