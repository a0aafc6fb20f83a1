"""``gpt2onnx score``: how likely a model finds a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli import terminal
from converter.cli.group import cli
from converter.cli.options import (
    OUTPUT_GROUP,
    RUNTIME_GROUP,
    debug_option,
    out_argument,
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
    groups={**RUNTIME_GROUP, **OUTPUT_GROUP},
)
@out_argument
@click.argument(
    "file",
    type=click.Path(path_type=Path, allow_dash=True),
    help='Plain text, JSONL with a "text" in each line, or - for standard input.',
)
@click.option("--stride", type=int, help="Tokens from window to window of a long text; by default half the positions.")
@click.option("--batch-size", default=8, show_default=True, help="Windows that are read together.")
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
    threads: int | None,
    precision: str | None,
    provider: str,
    quiet: bool,
) -> None:
    """Print how likely the model folder OUT finds the text in FILE: perplexity, and a log-probability for every token.

    One JSON object a text goes to standard output, a summary to standard error.
    """
    from converter.cli import progress
    from converter.errors import TextError
    from converter.runtime.opening import load
    from converter.runtime.scoring import score as run
    from converter.texts import read_texts

    texts = [standard_input("a FILE")] if str(file) == "-" else read_texts(file)
    if not any(map(str.strip, texts)):
        raise TextError(f"{file} is empty; expected a text")
    with progress.line(f"opening {out}", not quiet):
        model = load(out, provider, threads, precision, large_pages=True)
    with progress.amounts(f"reading {file}", not quiet) as counted:
        scores = run(model, texts, stride=stride, batch_size=batch_size, progress=counted)
    for one in scores:
        click.echo(terminal.to_json(score_facts(one), indent=None))
    if not quiet:
        terminal.say(score_line(scores))


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
