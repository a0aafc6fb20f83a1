"""Show lines and tables: with colour in a terminal, as plain text in a pipe."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from converter.errors import PromptError
from converter.texts import one_line

if TYPE_CHECKING:
    from rich.console import Console


# What some readers of JSON lines take for the end of a line. In JSON these stand in strings only.
LINE_ENDS = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}

PIPED_WIDTH = 250  # of a table that nobody wraps


def console(stderr: bool = False) -> Console:
    """Return rich's console; without a terminal it neither colours nor cuts."""
    from rich.console import Console

    class Printer(Console):
        """A console that leaves a closed pipe to the command line; rich would exit with 1.

        What is printed without markup holds names that others chose. It stays on one line.
        """

        def print(self, *objects: Any, **options: Any) -> None:
            if options.get("markup") is False:
                objects = tuple(one_line(each) if isinstance(each, str) else each for each in objects)
            super().print(*objects, **options)

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError(errno.EPIPE, "the reader of the output is gone")

    return Printer(
        stderr=stderr,
        width=None if is_terminal(stderr) else PIPED_WIDTH,
        color_system=color_system(),
        highlight=False,
        soft_wrap=True,
    )


def color_system() -> Literal["auto"] | None:
    """Return rich's setting: None, without bold and dim too, if NO_COLOR is set and not empty (no-color.org)."""
    return None if os.environ.get("NO_COLOR") else "auto"


def is_terminal(stderr: bool = False) -> bool:
    """Tell whether somebody looks at standard output, or at standard error. Either may be closed."""
    stream = sys.stderr if stderr else sys.stdout
    return stream is not None and stream.isatty()


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Show what the library warns of as lines of ours on standard error."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        warn(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def warn(message: str) -> None:
    """Print a warning on a line of standard error."""
    say(f"gpt2onnx: warning: {one_line(message)}")


def say(line: str) -> None:
    """Print a line on standard error."""
    with standard_error():
        click.echo(line, err=True)


@contextmanager
def standard_error() -> Iterator[None]:
    """Drop what standard error does not take: it is gone, or its disk is full. The exit code says enough."""
    try:
        yield
    except OSError:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - at the end, what is left over would be written again


def to_json(values: Any, indent: int | None = 2) -> str:
    """Return JSON that every parser reads: numbers that are not finite become null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    written = json.dumps(finite(values), indent=indent, ensure_ascii=False, allow_nan=False)
    return written.translate(LINE_ENDS)


def short(path: Path) -> Path:
    """Return a path relative to the current folder if it lies below it, else as it is."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def size(nbytes: float) -> str:
    """Format a number of bytes: ``497.8 MB``."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} GB"


def parse_ids(text: str) -> list[int]:
    """Parse token ids, ``'464 3290'`` or ``'464,3290'``.

    Raises:
        PromptError: something else is among them.
    """
    parts = text.replace(",", " ").split()
    if not all(re.fullmatch(r"-?[0-9]{1,18}", part) for part in parts):
        raise PromptError(f"{text!r} is not a list of token ids; expected numbers, such as '464 3290'")
    return [int(part) for part in parts]
