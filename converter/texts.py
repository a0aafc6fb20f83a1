"""Read texts from files that users bring, and show names that others chose."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.errors import TextError


def one_line(text: str) -> str:
    """Return a text with escapes for what a terminal would obey or hide: line feeds, ESC, marks of direction.

    Of a text that nobody would read to its end the middle is left out.
    """
    if len(text) > LONGEST_LINE:
        text = f"{text[: LONGEST_LINE // 2]} … {text[-LONGEST_LINE // 2 :]}"
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


LONGEST_LINE = 2000  # characters; the longest message of ours, with long paths, has fewer


def read_texts(file: Path) -> list[str]:
    """Return the texts in a file: a plain text, or the ``text`` of each line of JSONL.

    Raises:
        TextError: it cannot be read, is no UTF-8, or a line has no text.
    """
    content = _content(file)
    if file.suffix != ".jsonl":
        return [content]
    lines = _lines(content)
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


@dataclass(frozen=True)
class PromptLine:
    """A prompt in a file.

    Attributes:
        number: of the line, from 1.
        prompt: a text or token ids.
        others: what else its line holds.
    """

    number: int
    prompt: str | list[int]
    others: dict[str, Any]


def read_prompts(file: Path) -> list[PromptLine]:
    """Return the prompts in a file of JSONL: the ``prompt`` or ``text`` of each line, a text or token ids.

    Raises:
        TextError: it cannot be read, is no UTF-8, or a line has no prompt.
    """
    return prompts_in(_content(file), str(file))


def prompts_in(content: str, name: str) -> list[PromptLine]:
    """Return the prompts in the content of a file of JSONL; see ``read_prompts``."""
    lines = [_prompt_in(number, line) for number, line in _lines(content).items()]
    if not lines:
        raise TextError(f"{name} is empty; expected {EXPECTED_PROMPT} in every line")
    for number, line in zip(_lines(content), lines, strict=True):
        if line is None:
            raise TextError(
                f"{name} cannot be read as JSONL: line {number} has no prompt; expected {EXPECTED_PROMPT} in every line"
            )
    return [line for line in lines if line is not None]


EXPECTED_PROMPT = '{"prompt": "…"}'


def _prompt_in(number: int, line: str) -> PromptLine | None:
    """Return the prompt in a line of JSON; None if there is none."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    if isinstance(values, str):
        return PromptLine(number, values, {})
    key = next((key for key in ("prompt", "text") if isinstance(values, dict) and key in values), None)
    if key is None:
        return None
    prompt = values.pop(key)
    ids = isinstance(prompt, list) and all(type(i) is int for i in prompt)
    return PromptLine(number, prompt, values) if ids or isinstance(prompt, str) else None


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise TextError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise TextError(f"{file} cannot be read as UTF-8 text ({error}); save it as UTF-8") from error


def _lines(content: str) -> dict[int, str]:
    """Return the lines that are not blank, by their number. Only a line feed ends a line of JSONL."""
    return {number: line for number, line in enumerate(content.split("\n"), 1) if line.strip()}
