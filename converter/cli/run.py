"""``gpt2onnx run``: what the head of a model says of a text, and what its graph returns beside that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli import terminal
from converter.cli.group import cli
from converter.cli.options import (
    OUTPUT_GROUP,
    RUNTIME_GROUP,
    complete_paths,
    debug_option,
    json_option,
    out_argument,
    precision_option,
    provider_option,
    refuse_unwritable,
    standard_input,
    threads_option,
)
from converter.errors import ModelFolderError
from converter.runtime.answers import Answer, Choice, Embedding, Labels, Span, TokenLabels
from reference.head import LM

if TYPE_CHECKING:
    import numpy as np

    from converter.runtime.heads import HeadModel
    from converter.runtime.session import Model


@cli.command(
    short_help="What other heads say and what is inside: labels, attention.",
    examples=[
        'gpt2onnx run classifier-onnx "What a film!"',
        'gpt2onnx run qa-onnx "Ada was born in London." --question "Where was Ada?"',
        'gpt2onnx run classifier-onnx "What a film!" "What a bore." --json',
        'gpt2onnx run inside-onnx "The cat sat" --save inside.npz   # attention, …',
    ],
    groups={**RUNTIME_GROUP, **OUTPUT_GROUP},
)
@out_argument
@click.argument("texts", nargs=-1, metavar="[TEXT]...", help="What is read; by default standard input.")
@click.option("--question", help="What is asked about each TEXT, of a model that answers questions.")
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Labels to print of each text.")
@click.option("--ids", is_flag=True, help="Texts are token ids, such as '464 3290'.")
@click.option(
    "--save",
    metavar="FILE",
    type=click.Path(path_type=Path),
    shell_complete=complete_paths("file"),
    help="Write everything that the graph returns, and the token ids, into this .npz or .safetensors file.",
)
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
    save: Path | None,
    threads: int | None,
    precision: str | None,
    provider: str,
    as_json: bool,
) -> None:
    """Print what the head of the model folder OUT says of each TEXT, or of what comes on standard input.

    Labels with their probabilities, marks for every token, the span that answers a question, how several choices
    compare, or an embedding (the mean of the hidden states): whichever head OUT has. If OUT was converted with
    --outputs, whatever its head, also print the shape of all that its graph returns, one text at a time.
    """
    from converter.cli import inside, progress
    from converter.runtime.heads import HeadModel

    inside.refuse_another_format(save)
    refuse_unwritable(save)
    texts = texts or (standard_input("a text"),)
    with progress.line(f"opening {out}"):
        model = open_model(out, provider, threads, precision)
    asks = model.config.head_spec.asks
    if asks and question is None and not ids:
        raise click.UsageError("this model answers questions: give one with --question")
    if question is not None and (ids or not asks):
        raise click.UsageError("--question is for texts of a model that answers questions")
    given: list[Any] = [terminal.parse_ids(text) if ids else (question, text) if asks else text for text in texts]
    with progress.line("running"):
        answers = model.run(given) if isinstance(model, HeadModel) else []
        together = [given] if model.config.head_spec.compares else given
        found = [model.outputs(each) for each in together] if model.inside or save else []
    if save is not None:
        inside.save(save, [ids_of(model, each) | arrays for each, arrays in zip(together, found, strict=True)])
    if as_json:
        click.echo(terminal.to_json(facts_of(texts, answers, [inside.shapes(arrays) for arrays in found])))
        return
    if answers:
        print_answers(texts, answers, top)
    for number, arrays in enumerate(found if model.inside else (), 1):
        if len(found) > 1:
            click.echo(f"--- returned for {number} of {len(found)}")
        inside.print_shapes(arrays)


def facts_of(texts: Sequence[str], answers: Sequence[Answer], shapes: Sequence[Any]) -> list[dict[str, Any]]:
    """Return what is said of each text, for JSON. Choices, which are run together, share their shapes."""
    facts: list[dict[str, Any]] = [{"text": text} for text in texts]
    for fact, answer in zip(facts, answers, strict=False):
        fact |= answer_facts(answer)
    for fact, shape in zip(facts, cycle(shapes), strict=False):
        fact["outputs"] = shape
    return facts


def open_model(out: Path, provider: str, threads: int | None, precision: str | None) -> HeadModel | Model:
    """Open a model folder: its head, or a language model whose graph returns more than logits.

    Raises:
        ModelFolderError: there is nothing that ``run`` could print.
    """
    from converter.runtime import heads, opening

    opening.model_file(out, precision)
    if opening.config_of(out).head != LM:
        return heads.load(out, provider, threads, precision)
    model = opening.load(out, provider, threads, precision)
    if model.inside:
        return model
    raise ModelFolderError(
        f"{out} has no head but the language model's, and its graph returns logits alone: "
        f"gpt2onnx generate {out} PROMPT, or convert it with --outputs"
    )


def ids_of(model: HeadModel | Model, text: Any) -> dict[str, np.ndarray]:
    """Return the token ids of a text, or of the choices of a question, by the name of the graph's input."""
    from converter.runtime.heads import batch_of

    ids, _ = batch_of(model.encode(text))
    return {"input_ids": ids if model.config.head_spec.compares else ids[0]}


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
