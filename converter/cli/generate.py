"""``gpt2onnx generate``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli import engines, terminal
from converter.cli.group import cli
from converter.cli.options import (
    OUTPUT_GROUP,
    RUNTIME_GROUP,
    debug_option,
    json_option,
    layout_options,
    out_argument,
    output_option,
    precision_option,
    provider_option,
    standard_input,
    threads_option,
)
from converter.errors import PromptError

if TYPE_CHECKING:
    from converter.runtime.options import GenerationOptions
    from converter.runtime.session import Model

DEFAULT_NEW_TOKENS = 128
DEFAULT_PROPOSALS = 10  # of --speculate
DEFAULT_TEMPLATE = "default"  # of --chat, as transformers calls it
EARLY_STOPPING: dict[str, Any] = {"no": False, "yes": True, "never": "never"}  # transformers' values


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
        "gpt2onnx generate gpt2-onnx --prompts prompts.jsonl -o texts.jsonl",
    ],
    groups={
        "Choosing tokens": (
            "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty",
            "no_repeat_ngram_size", "seed", "no_generation_config",
        ),
        "Several texts, and beam search": ("best", "beams", "length_penalty", "early_stopping"),
        "Conversations": ("chat", "system"),
        "Files of prompts": ("file", "output", "batch_size", "engine", "workers"),
        **RUNTIME_GROUP,
        "Output": ("logprobs", *OUTPUT_GROUP["Output"]),
    },
)  # fmt: skip
@out_argument
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...", help="Texts to continue; by default standard input.")
@click.option("-n", "--max-new-tokens", default=DEFAULT_NEW_TOKENS, show_default=True, help="Tokens to add at most.")
@click.option("--max-length", type=int, help="Likewise, those of the prompt included; -n wins.")
@click.option("--min-new-tokens", type=int, help="Do not end the text before it has so many.")
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
@click.option("--no-repeat-ngram-size", default=0, show_default=True, help="No run of so many tokens comes twice.")
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
@click.option(
    "--no-generation-config", is_flag=True, help="Do not take what is not given from OUT's generation_config.json."
)
@click.option(
    "--prompts",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
    help='JSONL with a "prompt" in each line, or Parquet (.parquet), or - for standard input; JSONL comes out.',
)
@output_option
@click.option(
    "--batch-size", default=8, show_default=True, type=click.IntRange(1), help="Texts that run together with --prompts."
)
@engines.engine_options
@click.option(
    "--logprobs",
    metavar="K",
    type=int,
    help="In JSON: the log-probability of each token, and the K likeliest ones beside it.",
)
@click.option("--ids", is_flag=True, help="Prompts are token ids, such as '464 3290'; so is the output.")
@threads_option
@layout_options
@precision_option
@provider_option
@click.option("-q", "--quiet", is_flag=True, help="Print the text and no figures.")
@json_option
@debug_option
def generate(
    out: Path,
    prompts: tuple[str, ...],
    chat: str | None,
    system: str | None,
    file: Path | None,
    output: Path | None,
    batch_size: int,
    choice: engines.Choice,
    ids: bool,
    threads: int | None,
    layout: dict[str, Any],
    no_generation_config: bool,
    precision: str | None,
    provider: str,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Continue one or more PROMPTs with the model folder OUT, or what comes on standard input.

    Several prompts run as one batch. Text streams as it is generated; figures go to standard error. What is not given
    is as OUT's generation_config.json says. docs/generate.md says what each option does, precisely.
    """
    from converter.cli import generation, jsonl_output, progress, prompt_files
    from converter.runtime.generation import generate_together, options_of
    from converter.runtime.opening import load

    if chat is not None:
        refuse_no_conversation(out, chat, ids)
    elif system is not None:
        raise click.UsageError("--system is for conversations: add --chat")
    refuse_together(prompts, file, output, ids, as_json, options["logprobs"], chat, choice)

    def opened() -> tuple[Model, GenerationOptions]:
        with progress.line(f"opening {out}", not quiet):
            model = load(out, provider, threads, precision, large_pages=True, **layout)
        given = given_options(options, ends=not no_generation_config and model.generation_config.ends)
        with terminal.warnings_as_lines():
            return model, options_of(model, given, not no_generation_config)

    if file is not None:
        lines = prompt_files.read(file)
        with choice.opened(threads, {"provider": provider, "precision": precision, **layout}) as workers:
            model, asked = opened()
            told = asdict(asked) | layout | {"speculate": None}  # which changes no text, like the size of a batch
            run = jsonl_output.run_of(out, precision, told)
            prompt_files.run(model, asked, file, lines, batch_size, output, quiet, workers, run)
        return
    texts = prompts or (standard_input("a prompt"),)
    model, asked = opened()
    encoded = model.encode(as_given(model, texts, ids, chat, system))
    shown = texts if chat is None else ("",) * len(texts)  # of a conversation only the answer is shown
    streams = len(texts) == 1 == asked.best == asked.beams and not as_json and not ids
    stream = generation.Stream(shown[0]) if streams else None
    with progress.line("generating", show=stream is None and not quiet):
        done = generate_together(model, encoded, asked, stream.show if stream else None)
    if as_json:
        click.echo(terminal.to_json(generation.facts(model, texts, done, asked.logprobs is not None)))
        return
    if stream is not None:
        stream.end()
    else:
        generation.print_rows(shown, done, ids)
    if not quiet:
        terminal.say(generation.line(done, model.config.n_positions))


def as_given(
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


def is_given(name: str) -> bool:
    """Tell whether an option is given, rather than left at its default."""
    return click.get_current_context().get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def refuse_together(
    prompts: tuple[str, ...],
    file: Path | None,
    output: Path | None,
    ids: bool,
    as_json: bool,
    logprobs: int | None,
    chat: str | None,
    choice: engines.Choice,
) -> None:
    """Refuse options that would not be used."""
    if file is None and choice.name != "local":
        raise click.UsageError("--engine ray is for --prompts FILE")
    if file is None and output is not None:
        raise click.UsageError("--output is for --prompts FILE: what is on the command line goes to standard output")
    if file is None and is_given("batch_size"):
        raise click.UsageError("--batch-size is for --prompts FILE: prompts on the command line run as one batch")
    if file is None and logprobs is not None and not as_json:
        raise click.UsageError("--logprobs are printed as JSON: add --json, or give --prompts FILE")
    if file is not None and chat is not None:
        raise click.UsageError("--chat takes its conversations from the command line: omit --prompts FILE")
    if file is not None and prompts:
        raise click.UsageError("--prompts FILE has the prompts: omit PROMPT")
    if file is not None and ids:
        raise click.UsageError("--prompts FILE holds token ids as lists of numbers: omit --ids")
    if file is not None and as_json:
        raise click.UsageError("--prompts FILE prints a line of JSON for each text: omit --json")


def given_options(options: Mapping[str, Any], ends: bool) -> dict[str, Any]:
    """Return the options that are given on the command line.

    Args:
        options: all of them.
        ends: whether the folder says how long a text may be; otherwise our default does.
    """
    given = {name: value for name, value in options.items() if is_given(name)}
    if "early_stopping" in given:
        given["early_stopping"] = EARLY_STOPPING[given["early_stopping"]]
    if not ends and not {"max_new_tokens", "max_length"} & given.keys():
        given["max_new_tokens"] = DEFAULT_NEW_TOKENS
    return given
