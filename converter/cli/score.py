"""``gpt2onnx score``: how likely a model finds a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli import engines, terminal
from converter.cli.group import cli
from converter.cli.jsonl_output import RUN, Expected, opened, run_of
from converter.cli.options import (
    OUTPUT_GROUP,
    RUNTIME_GROUP,
    debug_option,
    out_argument,
    output_option,
    precision_option,
    provider_option,
    standard_input,
    threads_option,
)

if TYPE_CHECKING:
    from converter.runtime.scoring import Score


@cli.command(
    short_help="How likely a model finds a text: perplexity, log-probabilities.",
    examples=[
        "gpt2onnx score gpt2-onnx held-out.txt",
        "gpt2onnx score gpt2-onnx documents.jsonl --stride 64 > scores.jsonl",
        'echo "The following is a text." | gpt2onnx score gpt2-onnx -',
    ],
    groups={
        "Files of many texts": ("output", "batch_size", "engine", "workers"),
        **RUNTIME_GROUP,
        **OUTPUT_GROUP,
    },
)
@out_argument
@click.argument(
    "file",
    type=click.Path(path_type=Path, allow_dash=True),
    help='Plain text, JSONL with a "text" in each line, Parquet, or - for standard input.',
)
@click.option("--stride", type=int, help="Tokens from window to window of a long text; by default half the positions.")
@click.option("--batch-size", default=8, show_default=True, help="Windows that are read together.")
@output_option
@engines.engine_options
@threads_option
@precision_option
@provider_option
@click.option("-q", "--quiet", is_flag=True, help="Print the JSON lines and no summary.")
@debug_option
def score(
    out: Path,
    file: Path,
    stride: int | None,
    batch_size: int,
    output: Path | None,
    choice: engines.Choice,
    threads: int | None,
    precision: str | None,
    provider: str,
    quiet: bool,
) -> None:
    """Print how likely the model folder OUT finds the text in FILE: perplexity, and a log-probability for every token.

    One JSON object a text goes to standard output or --output, a summary to standard error.
    """
    from converter.cli import progress
    from converter.errors import TextError
    from converter.runtime.opening import load
    from converter.runtime.scoring import groups_of, score_each
    from converter.texts import read_texts

    texts = [standard_input("a FILE")] if str(file) == "-" else read_texts(file)
    if not any(map(str.strip, texts)):
        raise TextError(f"{file} is empty; expected a text")
    with choice.opened(threads, {"provider": provider, "precision": precision}) as workers:
        with progress.line(f"opening {out}", not quiet):
            model = load(out, provider, threads, precision, large_pages=True)
        groups = groups_of(model, model.encode(texts), stride, batch_size)
        run = run_of(out, precision, {"stride": stride})
        with (
            opened(output, expected([group.ids for group in groups], run)) as (done, write),
            progress.amounts(f"reading {file}", not quiet) as counted,
        ):
            scores = read_back(output) if done else []
            read_all = partial(workers.log_probs, model) if workers else None
            for part in score_each(model, groups[done:], read_all=read_all, progress=counted):
                facts = [score_facts(one) | {RUN: run} for one in part]
                write("".join(terminal.to_json(one, indent=None) + "\n" for one in facts))
                scores += part
    if not quiet:
        terminal.say(score_line(scores))


def expected(groups: Sequence[list[list[int]]], run: str) -> Expected:
    """Return what the lines of an output are of: the texts of one group after another."""
    ids = [row for group in groups for row in group]
    return Expected(
        "token_ids", ids.__getitem__, [*map(len, groups)], lambda number: f"text {number + 1}", "another FILE", run
    )


def read_back(output: Path | None) -> list[Score]:
    """Return the scores that an output holds."""
    from converter.runtime.scoring import Score

    lines = [] if output is None else map(json.loads, output.read_bytes().splitlines())
    return [Score(line["token_ids"], line["log_probs"]) for line in lines]


def score_facts(score: Score) -> dict[str, Any]:
    """Return a scored text for JSON."""
    return {
        "tokens": len(score.token_ids),
        "log_probability": score.total,
        "perplexity": score.perplexity,
        "token_ids": score.token_ids,
        "log_probs": score.log_probs,
    }


def score_line(scores: Sequence[Score]) -> str:
    """Summarize all texts in one line."""
    from converter.runtime.scoring import perplexity

    tokens = sum(len(score.token_ids) for score in scores)
    texts = "1 text" if len(scores) == 1 else f"{len(scores)} texts"
    return f"{texts}, {tokens:,} tokens, perplexity {perplexity(scores):.4f}"
