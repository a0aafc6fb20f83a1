"""Files of prompts: JSONL in, JSONL out, a line for each text as soon as it and those before it are there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from converter.cli import generation, progress, terminal
from converter.cli.options import standard_input
from converter.errors import OutputError, PromptError
from converter.files import reason
from converter.texts import PromptLine, prompts_in, read_prompts

if TYPE_CHECKING:
    from converter.runtime.generation import Generation
    from converter.runtime.options import GenerationOptions
    from converter.runtime.session import Model


def read(file: Path) -> list[PromptLine]:
    """Return the prompts in a file, or on standard input if it is ``-``."""
    return prompts_in(standard_input("--prompts FILE"), "standard input") if str(file) == "-" else read_prompts(file)


def run(
    model: Model,
    file: Path,
    lines: Sequence[PromptLine],
    asked: GenerationOptions,
    batch_size: int,
    output: Path | None,
    quiet: bool,
) -> None:
    """Continue every prompt; write a line of JSON for each text, with whatever else the prompt's line holds.

    Args:
        output: where the lines go; None for standard output. Prompts whose lines it holds already are left out.

    Raises:
        PromptError: a prompt cannot be continued. Nothing has been generated then.
        OutputError: ``output`` holds something else than texts of these prompts, or cannot be written.
    """
    from converter.runtime.generation import Copies, generate_each

    encoded = [encode(model, file, line, asked) for line in lines]
    copies, logprobs = Copies(asked.seed), asked.logprobs is not None
    with (
        progress.amounts(f"continuing {file}", show=not quiet and not terminal.is_terminal()) as counted,
        opened(output, lines, asked.best) as (done, write),
    ):
        for ids in encoded[:done]:
            copies.skip(ids, asked.best)
        for texts in generate_each(model, encoded[done:], asked, batch_size, copies):
            write(json_lines(model, lines[done:], texts, logprobs))
            done += len(texts.texts) // texts.best
            if counted is not None:
                counted(done, len(lines))


@contextmanager
def opened(output: Path | None, lines: Sequence[PromptLine], best: int) -> Iterator[tuple[int, Callable[[str], None]]]:
    """Yield how many prompts are done already, and a function that writes the texts of the next.

    Raises:
        OutputError: see ``run``.
    """
    if output is None:
        yield 0, lambda text: click.echo(text, nl=False)
        return
    try:
        with output.open("a+b") as to:
            done, end = whole(to, output, lines, best)
            to.truncate(end)

            def write(text: str) -> None:
                to.write(text.encode())
                to.flush()

            yield done, write
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {reason(error)}") from error


def whole(to: BinaryIO, output: Path, lines: Sequence[PromptLine], best: int) -> tuple[int, int]:
    """Return how many prompts a file has all texts of, and how many bytes these are.

    What follows them was cut off while it was written.

    Raises:
        OutputError: it holds something else.
    """
    to.seek(0)
    done = end = place = 0
    for number, line in enumerate(to):
        if not line.endswith(b"\n"):
            break
        prompt = lines[number // best].prompt if number // best < len(lines) else None
        if prompt is None or prompt_of(line) != prompt:
            raise OutputError(
                f"{output}, line {number + 1}, is not of text {number % best + 1} of prompt {number // best + 1}: "
                f"it comes from other prompts, or from another --best; give another --output, or remove it"
            )
        place += len(line)
        if number % best == best - 1:
            done, end = done + 1, place
    return done, end


def prompt_of(line: bytes) -> object:
    """Return the prompt in a line that was written; None if there is none."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values.get("prompt") if isinstance(values, dict) else None


def encode(model: Model, file: Path, line: PromptLine, asked: GenerationOptions) -> list[int]:
    """Return the token ids of a prompt that can be continued.

    Raises:
        PromptError: it cannot.
    """
    from converter.runtime.rows import room

    try:
        (ids,) = model.encode(line.prompt)
        room(model, ids, asked)
    except PromptError as error:
        raise PromptError(f"{file}, line {line.number}: {error}") from error
    return ids


def json_lines(model: Model, lines: Sequence[PromptLine], done: Generation, logprobs: bool) -> str:
    """Return a line of JSON for each text of a generation, whose prompts are the first of ``lines``."""
    written = []
    for number in range(len(done.texts)):
        line = lines[number // done.best]
        facts = line.others | {"prompt": line.prompt} | generation.row_facts(model, done, number, logprobs)
        written.append(terminal.to_json(facts, indent=None) + "\n")
    return "".join(written)
