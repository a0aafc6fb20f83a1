"""``gpt2onnx run``: what the head of a model says of a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from converter.cli import terminal
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
from converter.runtime.answers import Answer, Choice, Embedding, Labels, Span, TokenLabels


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
    from converter.cli import progress
    from converter.runtime.heads import load

    texts = texts or (standard_input("a text"),)
    with progress.line(f"opening {out}"):
        model = load(out, provider, threads, precision)
    asks = model.config.head_spec.asks
    if asks and question is None and not ids:
        raise click.UsageError("this model answers questions: give one with --question")
    if question is not None and (ids or not asks):
        raise click.UsageError("--question is for texts of a model that answers questions")
    given: list[Any] = [terminal.parse_ids(text) if ids else (question, text) if asks else text for text in texts]
    with progress.line("running"):
        answers = model.run(given)
    if as_json:
        pairs = zip(texts, answers, strict=True)
        click.echo(terminal.to_json([{"text": text} | answer_facts(answer) for text, answer in pairs]))
    else:
        print_answers(texts, answers, top)


def print_answers(texts: Sequence[str], answers: Sequence[Answer], top: int) -> None:
    """Print what a head says of each text, one after another."""
    for number, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        if len(texts) > 1 and not isinstance(answer, Choice):
            click.echo(f"--- {number + 1} of {len(texts)}")
        for line in answer_lines(text, answer, top):
            click.echo(line)


def answer_lines(text: str, answer: Answer, top: int) -> Iterator[str]:
    """Yield an answer for people. An embedding is its numbers, for a program that reads them."""
    match answer:
        case Labels(scores, probabilities):
            for label, score in list(scores.items())[:top]:
                yield f"{score:7.2%}  {label}" if probabilities else f"{score:12.6g}  {label}"
        case TokenLabels(tokens):
            width = max(len(repr(token)) for _, _, token, _, _ in tokens)
            for start, end, token, label, p in tokens:
                yield f"{start:5}–{end:<5} {token!r:{width}}  {label}  {p:.2%}"
        case Span(found, start, end, p):
            yield f"{found.strip()}  ({p:.2%}, characters {start} to {end})"
        case Choice(p, _):
            yield f"{p:7.2%}  {text}"
        case Embedding():
            yield " ".join(f"{value:.6g}" for value in answer.mean)


def answer_facts(answer: Answer) -> dict[str, Any]:
    """Return an answer for JSON."""
    match answer:
        case Labels(scores):
            return {"labels": scores}
        case TokenLabels(tokens):
            return {
                "tokens": [dict(zip(("start", "end", "text", "label", "probability"), t, strict=True)) for t in tokens]
            }
        case Embedding(tokens):
            return {"mean": answer.mean.tolist(), "tokens": tokens.tolist()}
        case _:
            return asdict(answer)
