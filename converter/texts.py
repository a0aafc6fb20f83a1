"""Read texts from files that users bring, and show names that others chose."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from converter.errors import TextError

Found = TypeVar("Found")

ROW = {"JSONL": "line", "Parquet": "row"}  # what a file of the kind numbers


def one_line(text: str) -> str:
    """Return a text with escapes for what a terminal would obey or hide: line feeds, ESC, marks of direction.

    Of a text that nobody would read to its end the middle is left out.
    """
    if len(text) > LONGEST_LINE:
        text = f"{text[: LONGEST_LINE // 2]} … {text[-LONGEST_LINE // 2 :]}"
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def markdown(text: str) -> str:
    """Return Markdown that shows a text as it is, in one line: no link, no markup, no HTML comes of it."""
    return MARKUP.sub(r"\\\g<0>", one_line(text))


MARKUP = re.compile(r"[\\`*{}\[\]<>()#!|&~$]|(?<!\w)_|_(?!\w)|(?<=:)/")  # "_" within a word is itself


def code(text: str) -> str:
    """Return Markdown that shows a text as code, in one line."""
    text = one_line(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    edge = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{edge}{text}{edge}{ticks}"


LONGEST_LINE = 2000  # characters; the longest message of ours, with long paths, has fewer


def read_texts(file: Path) -> list[str]:
    """Return the texts in a file: a plain text, or the ``text`` of each line of JSONL.

    Raises:
        TextError: it cannot be read, is no UTF-8, or a line has no text.
    """
    content = _content(file)
    return texts_of(_lines(content), str(file)) if file.suffix == ".jsonl" else [content]


def texts_of(rows: Iterable[tuple[int, Any]], name: str, kind: str = "JSONL") -> list[str]:
    """Return the texts of rows, which a file called ``name`` holds and numbers.

    Raises:
        TextError: a row has no text, or there is no row.
    """
    found = [(number, _text_of(values)) for number, values in rows]
    return _complete(found, name, kind, "text")


def _text_of(values: Any) -> str | None:
    text = values.get("text") if isinstance(values, dict) else None
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
    return prompts_of(_lines(content), name)


def prompts_of(rows: Iterable[tuple[int, Any]], name: str, kind: str = "JSONL") -> list[PromptLine]:
    """Return the prompts of rows, which a file called ``name`` holds and numbers.

    Raises:
        TextError: a row has no prompt, or there is no row.
    """
    found = [(number, _prompt_of(number, values)) for number, values in rows]
    return _complete(found, name, kind, "prompt")


def _prompt_of(number: int, values: Any) -> PromptLine | None:
    if isinstance(values, str):
        return PromptLine(number, values, {})
    key = next((key for key in ("prompt", "text") if isinstance(values, dict) and key in values), None)
    if key is None:
        return None
    others = {name: value for name, value in values.items() if name != key}
    prompt = values[key]
    ids = isinstance(prompt, list) and all(type(i) is int for i in prompt)
    return PromptLine(number, prompt, others) if ids or isinstance(prompt, str) else None


def _complete(found: Sequence[tuple[int, Found | None]], name: str, kind: str, what: str) -> list[Found]:
    """Return what was found in every row.

    Raises:
        TextError: a row has none, or there is no row.
    """
    row = ROW[kind]
    without = next((number for number, value in found if value is None), None)
    if not found or without is not None:
        why = f"{row} {without} has no {what}" if found else "it is empty"
        raise TextError(f'{name} cannot be read as {kind}: {why}; expected {{"{what}": "…"}} in every {row}')
    return [value for _, value in found if value is not None]


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise TextError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise TextError(f"{file} cannot be read as UTF-8 text ({error}); save it as UTF-8") from error


def _lines(content: str) -> Iterator[tuple[int, Any]]:
    """Return what the lines hold that are not blank, by their number; None of one that is no JSON.

    Only a line feed ends a line of JSONL.
    """
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError:
                yield number, None
