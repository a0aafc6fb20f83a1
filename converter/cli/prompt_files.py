"""Files of prompts: JSONL in, JSONL out, a line for each text as soon as its batch is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from converter.cli import generation, progress, terminal
from converter.cli.options import standard_input
from converter.errors import PromptError
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
    quiet: bool,
) -> None:
    """Continue every prompt; print a line of JSON for each text, with whatever else the prompt's line holds.

    Raises:
        PromptError: a prompt cannot be continued. Nothing has been generated then.
    """
    from converter.runtime.generation import generate_each

    encoded = [encode(model, file, line, asked) for line in lines]
    size = 1 if asked.speculate else batch_size
    with progress.amounts(f"continuing {file}", show=not quiet and not terminal.is_terminal()) as counted:
        for batch, done in enumerate(generate_each(model, encoded, asked, size)):
            print_lines(model, lines[batch * size :], done, asked.logprobs is not None)
            if counted is not None:
                counted(min((batch + 1) * size, len(lines)), len(lines))


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


def print_lines(model: Model, lines: Sequence[PromptLine], done: Generation, logprobs: bool) -> None:
    """Print the texts of a batch, whose prompts are the first of ``lines``."""
    for number in range(len(done.texts)):
        line = lines[number // done.best]
        facts = line.others | {"prompt": line.prompt} | generation.row_facts(model, done, number, logprobs)
        click.echo(terminal.to_json(facts, indent=None))
