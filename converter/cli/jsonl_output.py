"""Writes lines of JSON to a file, and goes on where an earlier run was interrupted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import click

from converter.errors import CheckpointError, OutputError
from converter.files import refuse_special

RUN = "run"  # the key of a line that tells what made it
RUN_DIGITS = 8  # a chance of 1 in 4,000 million that two runs are taken for one


def run_of(out: Path, precision: str | None, options: Mapping[str, Any]) -> str:
    """Return what tells a model and its options from others: some digits of a hash.

    Args:
        out: the model folder.
        options: those that decide what comes out, but for the precision.
    """
    from converter.folder import manifest

    values = manifest.read(out)
    model = values.get("source", {}).get("fingerprint"), precision or values.get("precision")
    told = json.dumps([*model, dict(options)], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:RUN_DIGITS]


@dataclass(frozen=True)
class Expected:
    """What the lines of an output are of.

    Attributes:
        key: of a line that tells what it is of.
        value: what stands there in a line, by its number from 0.
        steps: how many lines are written at once, step after step.
        name: tells what a line should be of, by its number from 0.
        others: what else it may be of.
        run: what makes the lines; see ``run_of``.
    """

    key: str
    value: Callable[[int], Any]
    steps: Sequence[int]
    name: Callable[[int], str]
    others: str
    run: str

    @cached_property
    def count(self) -> int:
        """Return how many lines there are to be."""
        return sum(self.steps)

    def refuse_another(self, output: Path, number: int, line: bytes) -> None:
        """Refuse a line that is of something else.

        Raises:
            OutputError: it is.
        """
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        mend = "give another --output, or remove it"
        if number >= self.count or not isinstance(found, dict) or found.get(self.key) != self.value(number):
            raise OutputError(
                f"{output}, line {number + 1}, is not of {self.name(number)}: it comes from {self.others}; {mend}"
            )
        if found.get(RUN) != self.run:
            raise OutputError(f"{output}, line {number + 1}, was not made by this model with these options; {mend}")


@contextmanager
def opened(output: Path | None, expected: Expected) -> Iterator[tuple[int, Callable[[str], None]]]:
    """Yield how many steps have all their lines already, and a function that writes the lines of the next.

    Args:
        output: None for standard output.

    Raises:
        OutputError: ``output`` holds something else, or cannot be written.
    """
    if output is None:
        yield 0, lambda text: click.echo(text, nl=False)
        return
    try:
        if output.exists():
            refuse_special(output)
        with output.open("a+b") as to:
            done, end = whole(to, output, expected)
            to.truncate(end)

            def write(text: str) -> None:
                to.write(text.encode())
                to.flush()

            yield done, write
    except CheckpointError as error:
        raise OutputError(f"{error}; omit --output for standard output") from error
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}") from error


def whole(to: BinaryIO, output: Path, expected: Expected) -> tuple[int, int]:
    """Return of how many steps a file has all lines, and how many bytes these are.

    What follows them was cut off while it was written.

    Raises:
        OutputError: it holds something else.
    """
    to.seek(0)
    done = end = place = 0
    ends = [*accumulate(expected.steps)]
    for number, line in enumerate(to):
        if not line.endswith(b"\n"):
            break
        expected.refuse_another(output, number, line)
        place += len(line)
        if number + 1 == ends[done]:
            done, end = done + 1, place
    return done, end
