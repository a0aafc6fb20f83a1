"""``gpt2onnx generate``."""

from __future__ import annotations

import json
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
    json_option,
    out_argument,
    precision_option,
    provider_option,
    standard_input,
    threads_option,
)
from converter.errors import PromptError

if TYPE_CHECKING:
    from converter.runtime.generation import Generation
    from converter.runtime.session import Model
    from converter.runtime.speculation import Speculation

DEFAULT_NEW_TOKENS = 128
DEFAULT_PROPOSALS = 10  # of --speculate
DEFAULT_TEMPLATE = "default"  # of --chat, as transformers calls it
EARLY_STOPPING: dict[str, bool | str] = {"no": False, "yes": True, "never": "never"}  # transformers' values


@cli.command(
    short_help="Continue a text, in ONNX Runtime.",
    examples=[
        'gpt2onnx generate gpt2-onnx "Once upon a time"',
        'gpt2onnx generate gpt2-onnx "One" "Another" --temperature 0.8 --seed 1',
        'gpt2onnx generate gpt2-onnx "Once upon" --temperature 1 --min-p 0.05 --best 3',
        'gpt2onnx generate gpt2-onnx "Q: Why?" --stop "Q:" --repetition-penalty 1.2',
        'gpt2onnx generate gpt2-onnx "Once upon a time" --beams 4 --best 2',
        'gpt2onnx generate gpt2-onnx "$(cat code.py)" --speculate',
        'gpt2onnx generate chatty-onnx "Hello! How are you?" --chat',
        'echo "From a pipe" | gpt2onnx generate gpt2-onnx -n 50 --quiet',
    ],
    groups={
        "Choosing tokens": (
            "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty",
            "seed",
        ),
        "Several texts, and beam search": ("best", "beams", "length_penalty", "early_stopping"),
        "Conversations": ("chat", "system"),
        **RUNTIME_GROUP,
        **OUTPUT_GROUP,
    },
)  # fmt: skip
@out_argument
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...", help="Texts to continue; by default standard input.")
@click.option("-n", "--max-new-tokens", default=DEFAULT_NEW_TOKENS, show_default=True, help="Tokens to add at most.")
@click.option("--stop", metavar="TEXT", multiple=True, help="End the text before TEXT. Repeatable.")
@click.option("--temperature", default=0.0, show_default=True, help="0 takes the likeliest token; 1 draws as trained.")
@click.option("--top-k", default=0, show_default=True, help="Draw among the k likeliest tokens; 0: among all.")
@click.option("--top-p", default=1.0, show_default=True, help="Draw among the likeliest tokens that make up p.")
@click.option(
    "--min-p", default=0.0, show_default=True, help="Draw tokens at least this times as likely as the top one."
)
@click.option(
    "--repetition-penalty", default=1.0, show_default=True, help="Above 1: tokens that are there already lose."
)
@click.option(
    "--frequency-penalty", default=0.0, show_default=True, help="Taken off for each time the text has a token."
)
@click.option("--presence-penalty", default=0.0, show_default=True, help="Taken off once if the text has a token.")
@click.option("--seed", type=int, help="Draw the same tokens every time.")
@click.option(
    "-k", "--best", default=1, show_default=True, help="Texts for each PROMPT; drawn, or the best of --beams."
)
@click.option("--beams", default=1, show_default=True, help="Pursue this many texts and keep the likeliest.")
@click.option("--length-penalty", default=1.0, show_default=True, help="Of beams: above 0 favours long texts.")
@click.option(
    "--early-stopping",
    type=click.Choice(list(EARLY_STOPPING)),
    default="no",
    show_default=True,
    help="Of beams: yes ends with as many texts as beams, never when no better one can come.",
)
@click.option(
    "--speculate",
    metavar="[N]",
    type=int,
    is_flag=False,
    flag_value=DEFAULT_PROPOSALS,
    default=0,
    help=f"Guess N tokens at once from what is there already ({DEFAULT_PROPOSALS}; after PROMPT, or --speculate=N): "
    "the same text, sooner where it repeats itself.",
)
@click.option(
    "--chat",
    metavar="[NAME]",
    is_flag=False,
    flag_value=DEFAULT_TEMPLATE,
    help="Answer PROMPT by OUT's chat template, or by its template NAME (after PROMPT, or --chat=NAME). PROMPT is what "
    "the user says, or a conversation as JSON.",
)
@click.option("--system", metavar="TEXT", help="What the conversation's system message says.")
@click.option("--ids", is_flag=True, help="Prompts are token ids, such as '464 3290'; so is the output.")
@threads_option
@click.option("--no-prepack", is_flag=True, help="Use the weights as the file has them: less memory, but slower.")
@precision_option
@provider_option
@click.option("-q", "--quiet", is_flag=True, help="Print the text and no figures.")
@json_option
@debug_option
def generate(
    out: Path,
    prompts: tuple[str, ...],
    early_stopping: str,
    chat: str | None,
    system: str | None,
    ids: bool,
    threads: int | None,
    no_prepack: bool,
    precision: str | None,
    provider: str,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Continue one or more PROMPTs with the model folder OUT, or what comes on standard input.

    Several prompts run as one batch. Text streams as it is generated; figures go to standard error. docs/generate.md
    says what each option does, precisely.
    """
    from converter.cli import progress
    from converter.runtime.session import load

    if chat is not None:
        refuse_no_conversation(out, chat, ids)
    elif system is not None:
        raise click.UsageError("--system is for conversations: add --chat")
    prompts = prompts or (standard_input("a prompt"),)
    with progress.line(f"opening {out}", not quiet):
        model = load(out, provider, threads, precision, prepack=not no_prepack, large_pages=True)
    streams = len(prompts) == 1 == options["best"] == options["beams"] and not as_json and not ids
    shown = prompts if chat is None else ("",) * len(prompts)  # of a conversation only the answer is shown
    stream = Stream(shown[0]) if streams else None
    with progress.line("generating", show=stream is None and not quiet):
        done = model.generate(
            encoded(model, prompts, ids, chat, system),
            early_stopping=EARLY_STOPPING[early_stopping],
            on_text=stream.show if stream else None,
            **options,
        )
    if as_json:
        click.echo(terminal.to_json(generation_facts(prompts, done)))
        return
    if stream is not None:
        stream.end()
    else:
        print_rows(shown, done, ids)
    if not quiet:
        click.echo(generation_line(done, model.config.n_positions), err=True)


def encoded(
    model: Model, prompts: Sequence[str], ids: bool, chat: str | None, system: str | None
) -> Sequence[str] | Sequence[Sequence[int]]:
    """Return prompts as the model takes them: texts, or the token ids that they are or become."""
    if chat is not None:
        from converter.runtime.chat import conversation_ids

        return [conversation_ids(model, conversation(prompt, system), chat) for prompt in prompts]
    return [terminal.parse_ids(prompt) for prompt in prompts] if ids else prompts


def conversation(prompt: str, system: str | None) -> list[dict[str, Any]]:
    """Return the messages of a prompt: those that it lists as JSON, or the one that it is."""
    try:
        given = json.loads(prompt)
    except ValueError:
        given = None
    listed = isinstance(given, list) and given and all(isinstance(message, dict) for message in given)
    messages = given if listed else [{"role": "user", "content": prompt}]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def refuse_no_conversation(out: Path, template: str, ids: bool) -> None:
    """Refuse --chat at once where there is no such template: what stands after it may have been meant as a prompt."""
    from converter.tokenizer.chat import choose

    if ids:
        raise click.UsageError("--chat takes texts: omit --ids")
    try:
        choose(out, template)
    except PromptError as error:
        hint = "" if template == DEFAULT_TEMPLATE else "; write --chat after the PROMPT, or as --chat=NAME"
        raise PromptError(f"{error}{hint}") from error


class Stream:
    """Shows a prompt and its continuation as it grows. Nothing is shown before the first token: a prompt may be
    refused.
    """

    def __init__(self, prompt: str) -> None:
        self.pending = prompt

    def show(self, _row: int, text: str) -> None:
        """Show the next piece of text."""
        click.echo(self.pending + text, nl=False)
        self.pending = ""

    def end(self) -> None:
        """End the line."""
        click.echo(self.pending)


def print_rows(prompts: Sequence[str], done: Generation, ids: bool) -> None:
    """Print several continuations, one after another; beams with their scores."""
    for number, (old, new, text) in enumerate(zip(done.prompt_ids, done.new_ids, done.texts, strict=True)):
        if len(done.texts) > 1:
            score = f" ({done.scores[number]:.4f})" if done.scores else ""
            click.echo(f"--- {number + 1} of {len(done.texts)}{score}")
        click.echo(" ".join(map(str, old + new)) if ids else prompts[number // done.best] + text)


def generation_facts(prompts: Sequence[str], done: Generation) -> dict[str, Any]:
    """Return a generation for JSON."""
    rows: list[dict[str, Any]] = [
        {"prompt": prompts[number // done.best], "text": text, "prompt_ids": old, "new_ids": new, "ended": ended}
        for number, (text, old, new, ended) in enumerate(
            zip(done.texts, done.prompt_ids, done.new_ids, done.ended, strict=True)
        )
    ]
    for row, score in zip(rows, done.scores, strict=False):
        row["score"] = score
    facts = {
        "rows": rows,
        "prefill_seconds": round(done.prefill_seconds, 4),
        "decode_seconds": round(done.decode_seconds, 4),
        "tokens_per_second": round(done.tokens_per_second, 1),
    }
    return facts if done.speculation is None else facts | {"speculation": speculation_facts(done.speculation)}


def speculation_facts(found: Speculation) -> dict[str, Any]:
    """Return for JSON what was proposed and how much of it was right."""
    return {
        "runs": found.runs,
        "proposed": found.proposed,
        "accepted": found.accepted,
        "acceptance": round(found.acceptance, 4),
        "tokens_per_run": round(found.tokens_per_run, 3),
    }


def generation_line(done: Generation, n_positions: int) -> str:
    """Give a generation's figures in one line, and say if the model's positions ended it."""
    new = sum(map(len, done.new_ids))
    full = sum(ended == "n_positions" for ended in done.ended)
    line = f"{new} tokens, {done.tokens_per_second:.0f} tokens/s after {done.prefill_seconds * 1000:.0f} ms of prefill"
    if (found := done.speculation) is not None:
        line += f"; {found.accepted} of {found.proposed} proposals right, {found.tokens_per_run:.2f} tokens a run"
    return line + (f"; stopped at the model's {n_positions} positions" if full else "")
