"""Files of prompts: JSONL in, JSONL out, a line for each text as soon as it and those before it are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from converter.cli import generation, progress, terminal
from converter.cli.jsonl_output import RUN, Expected, opened
from converter.cli.options import standard_input
from converter.errors import PromptError
from converter.texts import PromptLine, prompts_in, read_prompts

if TYPE_CHECKING:
    from converter.runtime.generation import Generation
    from converter.runtime.options import GenerationOptions
    from converter.runtime.session import Model
    from converter.serving.workers import Workers


def read(file: Path) -> list[PromptLine]:
    """Return the prompts in a file, or on standard input if it is ``-``."""
    return prompts_in(standard_input("--prompts FILE"), "standard input") if str(file) == "-" else read_prompts(file)


def run(
    model: Model,
    asked: GenerationOptions,
    file: Path,
    lines: Sequence[PromptLine],
    batch_size: int,
    output: Path | None,
    quiet: bool,
    workers: Workers | None,
    run: str,
) -> None:
    """Continue every prompt; write a line of JSON for each text, with whatever else the prompt's line holds.

    Args:
        output: where the lines go; None for standard output. Prompts whose lines it holds already are left out.
        workers: what continues them; None for this process.
        run: see ``jsonl_output.run_of``.

    Raises:
        PromptError: a prompt cannot be continued. Nothing has been generated then.
        OutputError: ``output`` holds something else than texts of these prompts, or cannot be written.
    """
    from converter.runtime.generation import Copies, generate_each

    continue_each = workers.generate_each if workers else generate_each
    encoded = [encode(model, file, line, asked) for line in lines]
    copies, logprobs = Copies(asked.seed), asked.logprobs is not None
    with (
        progress.amounts(f"continuing {file}", show=not quiet and not terminal.is_terminal()) as counted,
        opened(output, expected(lines, asked.best, run)) as (done, write),
    ):
        for ids in encoded[:done]:
            copies.skip(ids, asked.best)
        for texts in continue_each(model, encoded[done:], asked, batch_size, copies):
            write(json_lines(model, lines[done:], texts, logprobs, run))
            done += len(texts.texts) // texts.best
            if counted is not None:
                counted(done, len(lines))


def expected(lines: Sequence[PromptLine], best: int, run: str) -> Expected:
    """Return what the lines of an output are of."""
    return Expected(
        "prompt",
        lambda number: lines[number // best].prompt,
        [best] * len(lines),
        lambda number: f"text {number % best + 1} of prompt {number // best + 1}",
        "other prompts, or from another --best",
        run,
    )


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


def json_lines(model: Model, lines: Sequence[PromptLine], done: Generation, logprobs: bool, run: str) -> str:
    """Return a line of JSON for each text of a generation, whose prompts are the first of ``lines``."""
    written = []
    for number in range(len(done.texts)):
        line = lines[number // done.best]
        found = generation.row_facts(model, done, number, logprobs)
        facts = line.others | {"prompt": line.prompt} | found | {RUN: run}
        written.append(terminal.to_json(facts, indent=None) + "\n")
    return "".join(written)
