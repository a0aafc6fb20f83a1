"""``gpt2onnx run`` and ``score``: what a model says of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from converter.cli.group import cli
from converter.cli.options import (
    OUTPUT_GROUP,
    RUNTIME_GROUP,
    debug_option,
    json_option,
    out_argument,
    precision_option,
    provider_option,
    standard_input,
    threads_option,
)


@cli.command(
    short_help="What other heads say: labels, spans, embeddings, choices.",
    examples=[
        'gpt2onnx run classifier-onnx "What a film!"',
        'gpt2onnx run qa-onnx "Ada was born in London." --question "Where was Ada?"',
        'gpt2onnx run classifier-onnx "What a film!" "What a bore." --json',
    ],
    groups={**RUNTIME_GROUP, **OUTPUT_GROUP},
)
@out_argument
@click.argument("texts", nargs=-1, metavar="[TEXT]...", help="What is read; by default standard input.")
@click.option("--question", help="What is asked about each TEXT, of a model that answers questions.")
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Labels to print of each text.")
@click.option("--ids", is_flag=True, help="Texts are token ids, such as '464 3290'.")
@threads_option
@precision_option
@provider_option
@json_option
@debug_option
def run(
    out: Path,
    texts: tuple[str, ...],
    question: str | None,
    top: int,
    ids: bool,
    threads: int | None,
    precision: str | None,
    provider: str,
    as_json: bool,
) -> None:
    """Print what the head of the model folder OUT says of each TEXT, or of what comes on standard input.

    Labels with their probabilities, marks for every token, the span that answers a question, how several choices
    compare, or an embedding (the mean of the hidden states): whichever head OUT has.
    """
    from converter import terminal
    from converter.cli import progress
    from converter.runtime.heads import load

    texts = texts or (standard_input("a text"),)
    with progress.line(f"opening {out}"):
        model = load(out, provider, threads, precision)
    asks = model.config.head == "question-answering"
    if asks and question is None and not ids:
        raise click.UsageError("this model answers questions: give one with --question")
    if question is not None and (ids or not asks):
        raise click.UsageError("--question is for texts of a model that answers questions")
    given: list[Any] = [terminal.parse_ids(text) if ids else (question, text) if asks else text for text in texts]
    with progress.line("running"):
        answers = model.run(given)
    if as_json:
        pairs = zip(texts, answers, strict=True)
        click.echo(terminal.to_json([{"text": text} | terminal.answer_facts(answer) for text, answer in pairs]))
    else:
        terminal.print_answers(texts, answers, top)


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
    from converter import terminal
    from converter.cli import progress
    from converter.errors import TextError
    from converter.runtime.scoring import score as run
    from converter.runtime.session import load
    from converter.texts import read_texts

    texts = [standard_input("a FILE")] if str(file) == "-" else read_texts(file)
    if not any(map(str.strip, texts)):
        raise TextError(f"{file} is empty; expected a text")
    with progress.line(f"opening {out}", not quiet):
        model = load(out, provider, threads, precision)
    with progress.amounts(f"reading {file}", not quiet) as counted:
        scores = run(model, texts, stride=stride, batch_size=batch_size, progress=counted)
    for one in scores:
        click.echo(terminal.to_json(terminal.score_facts(one), indent=None))
    if not quiet:
        click.echo(terminal.score_line(scores), err=True)
