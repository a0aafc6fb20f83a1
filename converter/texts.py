"""Read texts from files that users bring, and show names that others chose."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from converter.errors import TextError

Found = TypeVar("Found")


def one_line(text: str) -> str:
    """Return a text with escapes for what a terminal would obey or hide: line feeds, ESC, marks of direction.

    Of a text that nobody would read to its end the middle is left out.
    """
    if len(text) > LONGEST_LINE:
        text = f"{text[: LONGEST_LINE // 2]} … {text[-LONGEST_LINE // 2 :]}"
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def is_text(name: str) -> bool:
    """Tell whether a name is text: one of a file may have bytes that are not UTF-8."""
    return not any("\ud800" <= each <= "\udfff" for each in name)


def markdown(text: str) -> str:
    """Return Markdown that shows a text as it is, in one line: no link, no markup, no HTML comes of it."""
    return MARKUP.sub(r"\\\g<0>", one_line(text))


# "_" within a word is itself; "://" would make a link.
MARKUP = re.compile(r"[\\`*{}\[\]<>()#!|&~$]|(?<!\w)_|_(?!\w)|(?<=:)/")


def code(text: str) -> str:
    """Return Markdown that shows a text as code, in one line."""
    text = one_line(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    edge = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{edge}{text}{edge}{ticks}"


LONGEST_LINE = 2000  # characters; the longest message of ours, with long paths, has fewer


def read_texts(file: Path) -> list[str]:
    """Return the texts in a file: a plain text, or the ``text`` of each line of JSONL or row of Parquet.

    Raises:
        TextError: it cannot be read, is no UTF-8, or a line has no text.
    """
    kind = KINDS.get(file.suffix)
    if kind is None:
        return [_content(file)]
    return _complete(kind, str(file), "text", kind.rows(file), _text_of)


def _text_of(_number: int, values: Any) -> str | None:
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
    """Return the prompts in a file: the ``prompt`` or ``text`` of each line of JSONL or row of Parquet.

    Raises:
        TextError: it cannot be read, is no UTF-8, or a line has no prompt.
    """
    kind = PARQUET if KINDS.get(file.suffix) is PARQUET else JSONL  # which may have any name
    return _prompts(kind, kind.rows(file), str(file))


def prompts_in(content: str, name: str) -> list[PromptLine]:
    """Return the prompts in the content of a file of JSONL; see ``read_prompts``."""
    return _prompts(JSONL, _lines(content), name)


def _prompts(kind: Kind, rows: Rows, name: str) -> list[PromptLine]:
    return _complete(kind, name, "prompt", rows, _prompt_of)


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


def _complete(kind: Kind, name: str, what: str, rows: Rows, find: Callable[[int, Any], Found | None]) -> list[Found]:
    """Return what ``find`` finds in every row of a file.

    Raises:
        TextError: a row has none, or there is no row.
    """
    values, why = list[Found](), "it is empty"
    for number, row in rows:
        value = None if row is NO_JSON else find(number, row)
        if value is None:
            values, why = [], f"{kind.row} {number} {'is no JSON' if row is NO_JSON else f'has no {what}'}"
            break
        values.append(value)
    if not values:
        expected = f'expected {{"{what}": "…"}} in every {kind.row}'
        raise TextError(f"{name} cannot be read as {kind.name}: {why}; {expected}")
    return values


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise TextError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise TextError(f"{file} cannot be read as UTF-8 text ({error}); save it as UTF-8") from error


NO_JSON = object()


def _lines(content: str) -> Iterator[tuple[int, Any]]:
    """Return what the lines hold that are not blank, by their number; ``NO_JSON`` of one that is none.

    Only a line feed ends a line of JSONL.
    """
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError:
                yield number, NO_JSON


def _rows_of_parquet(file: Path) -> Iterator[tuple[int, Any]]:
    """Return what the rows of a file of Parquet hold, by their number. What JSON does not have becomes text.

    Raises:
        TextError: it cannot be read.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise TextError(f"{file} needs pyarrow: pip install pyarrow") from error
    try:
        with file.open("rb") as raw, parquet.ParquetFile(raw) as opened:
            rows = (values for batch in opened.iter_batches() for values in batch.to_pylist())
            for number, values in enumerate(rows, 1):
                yield number, json.loads(json.dumps(values, default=str))
    except (OSError, pyarrow.ArrowException) as error:
        told = str(getattr(error, "strerror", None) or error).splitlines()[0]
        raise TextError(f"{file} cannot be read as Parquet: {told}") from error


Rows = Iterable[tuple[int, Any]]  # what each row holds, by its number


@dataclass(frozen=True)
class Kind:
    """A kind of file that holds many texts.

    Attributes:
        name: of the format.
        row: what it numbers.
        rows: reads a file.
    """

    name: str
    row: str
    rows: Callable[[Path], Rows]


JSONL = Kind("JSONL", "line", lambda file: _lines(_content(file)))
PARQUET = Kind("Parquet", "row", _rows_of_parquet)
KINDS = {".jsonl": JSONL, ".parquet": PARQUET}
