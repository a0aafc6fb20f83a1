"""Read texts from files that users bring."""

from __future__ import annotations

import json
from pathlib import Path

from converter.errors import TextError


def read_texts(file: Path) -> list[str]:
    """Return the texts in a file: a plain text, or the ``text`` of each line of JSONL.

    Raises:
        TextError: it cannot be read, is no UTF-8, or a line has no text.
    """
    try:
        content = file.read_text(encoding="utf-8")
    except OSError as error:
        raise TextError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise TextError(f"{file} cannot be read as UTF-8 text ({error}); save it as UTF-8") from error
    if file.suffix != ".jsonl":
        return [content]
    lines = {number: line for number, line in enumerate(content.splitlines(), 1) if line.strip()}
    texts = [_text_in(line) for line in lines.values()]
    if None in texts or not texts:
        where = f"line {[*lines][texts.index(None)]} has no text" if texts else "it is empty"
        raise TextError(f"{file} cannot be read as JSONL: {where}; expected {EXPECTED_LINE} in every line")
    return [text for text in texts if text is not None]


EXPECTED_LINE = '{"text": "…"}'


def _text_in(line: str) -> str | None:
    """Return the ``text`` in a line of JSON; None if there is none."""
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        return None
    return text if isinstance(text, str) else None
