"""The command line: one verb a task, quiet success, errors of one sentence.

Exit codes: 0 done or match, 1 mismatch, 2 bad input, 3 internal error.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.version import VERSION
from reference.errors import GPT2Error

if TYPE_CHECKING:
    from converter.parity.report import Report
    from converter.runtime.benching import Settings

MISMATCH, BAD_INPUT, INTERNAL_ERROR, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143

BROKEN_PIPE = 141  # as a shell says of a process that SIGPIPE ended

DEFAULT_NEW_TOKENS = 128
MAX_THREADS = 1024
DEFAULT_PROPOSALS = 10  # of --speculate
EARLY_STOPPING: dict[str, bool | str] = {"no": False, "yes": True, "never": "never"}  # transformers' values
DEFAULT_MINUTES = 10.0
DEMO_PROMPT = "The following"
DEMO_TOKENS = 120

# What --to names → the function that writes it (module, name), and the options that it alone heeds.
TARGETS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "onnx": ("converter.export", "convert", ("precision", "in_place", "opset", "then_check")),
    "hf": ("converter.save", "to_huggingface", ("max_shard_size",)),
    "reference": ("converter.save", "to_reference", ()),
}


class Commands(click.Group):
    """The group that turns errors into sentences and exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; whatever it raises becomes a sentence and an exit code."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal without Unicode still gets its verdict
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that half-written folders are removed
        try:
            return super().invoke(ctx)
        except GPT2Error as error:
            self.fail(ctx, str(error), BAD_INPUT)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:  # the last resort: whatever it is, it is our fault
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what is left unwritten has no reader any more
                ctx.exit(BROKEN_PIPE)
            self.fail(ctx, f"internal error: {type(error).__name__}: {error} (--debug shows where)", INTERNAL_ERROR)

    def fail(self, ctx: click.Context, sentence: str, code: int) -> None:
        """Say the sentence, and with ``--debug`` where it comes from."""
        if ctx.meta.get("debug"):
            traceback.print_exc()
        click.echo(f"gpt2onnx: {sentence}", err=True)
        ctx.exit(code)


def debug_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--debug`` to a command."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.meta["debug"] = value

    return click.option(
        "--debug", is_flag=True, expose_value=False, callback=remember, help="Show the traceback of an error."
    )(command)


ignore_option = click.option(
    "--ignore", metavar="GLOB", multiple=True, help="Leave tensors of this name aside, such as 'v_head.*'. Repeatable."
)
activation_option = click.option(
    "--activation", metavar="NAME", help="activation_function of a checkpoint that does not record it, as nanoGPT's."
)
adapter_option = click.option(
    "--adapter", metavar="DIR|ID", help="Merge this PEFT LoRA adapter, a folder or a Hub id, into SOURCE first."
)
head_option = click.option(
    "--head",
    metavar="NAME",
    help="lm, base (hidden states), sequence-classification, token-classification, question-answering or double-heads; "
    "by default that of SOURCE.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
provider_option = click.option(
    "--provider", default="cpu", show_default=True, help="ONNX Runtime's execution provider: cpu, cuda, …"
)
precision_option = click.option(
    "--precision",
    metavar="NAME",
    help="fp32, fp16, int8 or int4, of those that OUT holds; by default the first of these.",
)
out_argument = click.argument("out", type=click.Path(path_type=Path))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(VERSION, prog_name="gpt2onnx")
def cli() -> None:
    """Convert GPT-2 checkpoints to ONNX, prove the conversion, and run it.

    \b
    gpt2onnx demo                                    the whole way, on a small model that ships with the tool
    gpt2onnx convert openai-community/gpt2 OUT       checkpoint → model folder
    gpt2onnx check openai-community/gpt2 OUT         is it the same model?
    gpt2onnx generate OUT "Once upon a time"         run it in ONNX Runtime

    Exit codes: 0 done or match, 1 mismatch, 2 bad input, 3 internal error.
    """


@cli.command()
@click.argument("source")
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(list(TARGETS)),
    default="onnx",
    show_default=True,
    help="hf: a Hugging Face folder; reference: a state dict of the from-scratch model.",
)
@click.option(
    "--max-shard-size", metavar="SIZE", default="50GB", show_default=True, help="Of a file of weights; --to hf only."
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    help="fp32, fp16, int8, int4; several with commas between. An OUT of the same SOURCE keeps what it holds.",
)
@click.option("--in-place", is_flag=True, help="Add the graph to SOURCE itself; no weights are copied.")
@click.option("--opset", default=23, show_default=True, help="ONNX opset of the graph, 17 to 25.")
@click.option("--force", is_flag=True, help="Replace an OUT that gpt2onnx wrote.")
@click.option("--no-scan", is_flag=True, help="Do not look for NaN and infinity in the weights.")
@click.option(
    "--check", "then_check", is_flag=True, help="Check the folder once it is written; a mismatch removes nothing."
)
@ignore_option
@activation_option
@adapter_option
@head_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@json_option
@debug_option
def convert(
    source: str,
    out: Path | None,
    to: str,
    max_shard_size: str,
    precision: str,
    in_place: bool,
    opset: int,
    force: bool,
    no_scan: bool,
    then_check: bool,
    ignore: tuple[str, ...],
    activation: str | None,
    adapter: str | None,
    head: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Convert SOURCE into the model folder OUT, or with --to into a checkpoint that other programs read.

    SOURCE is a Hugging Face folder, a Hub id such as openai-community/gpt2 or user/model@revision, or a folder or
    file of another format: docs/sources.md lists them.

    \b
    gpt2onnx convert ./my-gpt2 ./my-gpt2-onnx
    gpt2onnx convert user/model@main OUT --opset 17
    gpt2onnx convert ./my-gpt2 ./my-gpt2-onnx --precision int8,int4
    gpt2onnx convert ./my-gpt2 --in-place
    gpt2onnx convert nanogpt/ckpt.pt OUT --activation gelu
    gpt2onnx convert openai-community/gpt2 OUT --adapter ./my-lora
    gpt2onnx convert nanogpt/ckpt.pt OUT --activation gelu --to hf
    """
    from converter import terminal

    began = time.monotonic()
    refuse_unheeded(to)
    if out is None and not in_place:
        raise click.UsageError("give a folder to write to (OUT)" + (", or --in-place" if to == "onnx" else ""))
    if out is not None and in_place:
        raise click.UsageError("--in-place writes into SOURCE: leave OUT away")
    with terminal.byte_progress("copying weights", show=not quiet and not as_json) as progress:
        module, name, heeded = TARGETS[to]
        special = {
            "precision": precision, "in_place": in_place, "opset": opset, "max_shard_size": max_shard_size,
        }  # fmt: skip
        done = getattr(importlib.import_module(module), name)(
            source,
            out,
            **{key: value for key, value in special.items() if key in heeded},
            force=force,
            ignore=ignore,
            scan=not no_scan,
            activation=activation,
            adapter=adapter,
            head=head,
            progress=progress,
        )
    seconds = time.monotonic() - began
    for warning in () if quiet else done.warnings:
        click.echo(f"gpt2onnx: warning: {warning}", err=True)
    if not as_json and not quiet:
        click.echo(terminal.conversion_line(done, seconds))
    report = None
    if then_check:
        options = {"ignore": ignore, "activation": activation, "adapter": adapter, "head": head}
        report = run_check(source, done.out, show=not as_json and not quiet, **options)
    if as_json:
        facts = terminal.conversion_facts(done, seconds)
        click.echo(terminal.to_json(facts | ({"check": report.to_dict()} if report else {})))
    elif report is not None and not (quiet and report.passed):
        terminal.print_report(report)
    if report is not None and not report.passed:
        sys.exit(MISMATCH)


def refuse_unheeded(to: str) -> None:
    """Options that a target would not heed are a mistake."""
    ctx = click.get_current_context()
    special = {name for *_, heeded in TARGETS.values() for name in heeded}.difference(TARGETS[to][-1])
    for option in ctx.command.params:
        if option.name in special and ctx.get_parameter_source(option.name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--to {to} does not heed {option.opts[0]}: leave it away")


def run_check(source: str, out: Path, show: bool, **options: Any) -> Report:
    """The report of a check, whose steps are shown as they are taken."""
    from converter import terminal
    from converter.parity import check as run

    with terminal.steps(show) as progress:
        return run(source, out, own_process=True, progress=progress, **options)


def parse_limits(_ctx: click.Context, _param: click.Parameter, pairs: tuple[str, ...]) -> dict[str, float]:
    """``('rms=6',)`` → ``{'rms': 6.0}``."""
    limits = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            limits[name] = float(value)
        except ValueError as error:
            raise click.BadParameter(f"{pair!r} is not of the form NAME=NUMBER, such as rms=6") from error
    return limits


@cli.command()
@click.argument("source", required=False)
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option(
    "--level",
    type=click.Choice(["quick", "full"]),
    default="quick",
    show_default=True,
    help="full: every leg on every case, half precisions, more text.",
)
@click.option("--layers", is_flag=True, help="Compare every operation of every layer, even on a match.")
@click.option("--prove", is_flag=True, help="Check the check: seed defects into copies; each must be caught and named.")
@click.option("--text", type=click.Path(path_type=Path), help="Feed this text (plain or JSONL), not the bundled one.")
@click.option(
    "--also",
    metavar="ONNX",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Another exporter's ONNX file, held against SOURCE too. Repeatable.",
)
@click.option("--logits-only", is_flag=True, help="Do not compare files: let the logits alone decide.")
@click.option(
    "--limit",
    "limits",
    metavar="NAME=NUMBER",
    multiple=True,
    callback=parse_limits,
    help="Allow more or less: rms, maximum (× noise floor), graph_float64, huggingface_float64, noise.",
)
@provider_option
@ignore_option
@activation_option
@adapter_option
@head_option
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with tables and plots.")
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), help="Write JUnit XML, for CI systems.")
@json_option
@debug_option
def check(
    source: str | None,
    out: Path | None,
    level: str,
    layers: bool,
    prove: bool,
    text: Path | None,
    also: tuple[Path, ...],
    logits_only: bool,
    limits: dict[str, float],
    provider: str,
    ignore: tuple[str, ...],
    activation: str | None,
    adapter: str | None,
    head: str | None,
    report: Path | None,
    junit: Path | None,
    as_json: bool,
) -> None:
    """Prove that the model folder OUT is SOURCE; exit with 1 if it is not.

    Weights are compared bit for bit; the mathematics in float64 against Hugging Face and a GPT-2 written from
    scratch; float32 against the noise of Hugging Face's own float32. On a mismatch the check says which operation is
    wrong, and why. Needs torch and transformers.

    \b
    gpt2onnx check ./my-gpt2 ./my-gpt2-onnx
    gpt2onnx check ./my-gpt2 ./my-gpt2-onnx --text my-domain.txt --report report.html
    gpt2onnx check openai-community/gpt2 OUT --level full --json
    gpt2onnx check --prove                            would it notice? 44 defects in the bundled model
    """
    from converter import parity, terminal

    if prove:
        refuse_beside_prove(out)
        run_prove(source, as_json)
        return
    if source is None or out is None:
        raise click.UsageError("give a SOURCE and the model folder OUT that was made from it, or --prove")
    if report is not None:
        parity.require(parity.PAGE_NEEDED, "--report")
    for file in filter(None, (report, junit)):  # not found out after minutes
        if not file.absolute().parent.is_dir():
            raise click.UsageError(f"{file} cannot be written: there is no folder {file.absolute().parent}")
    found = run_check(
        source,
        out,
        show=not as_json,
        level=level,
        layers=layers or report is not None,
        ignore=ignore,
        provider=provider,
        text=text,
        also=also,
        files=not logits_only,
        limits=limits,
        activation=activation,
        adapter=adapter,
        head=head,
    )
    if report is not None:
        from converter.parity import page

        page.write(found, report, shlex.join(["gpt2onnx", *sys.argv[1:]]))
    if junit is not None:
        from converter.parity import junit as xml

        xml.write(found, junit)
    if as_json:
        click.echo(terminal.to_json(found.to_dict()))
    else:
        terminal.print_report(found, layers)
    if not found.passed or found.other_faults:
        sys.exit(MISMATCH)


def refuse_beside_prove(out: Path | None) -> None:
    """Options that ``--prove`` would not heed are a mistake."""
    if out is not None:
        raise click.UsageError("--prove converts SOURCE itself: leave OUT away")
    ctx = click.get_current_context()
    for name in ctx.params:
        given = ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if given and name not in ("source", "out", "prove", "as_json"):
            raise click.UsageError(f"--prove goes with SOURCE and --json only: leave --{name.replace('_', '-')} away")


def run_prove(source: str | None, as_json: bool) -> None:
    """Seed defects into a conversion of ``source``, by default of the bundled checkpoint."""
    from converter import terminal
    from converter.data import CHECKPOINT
    from converter.parity import require

    require()
    from converter.parity.prove import prove as run

    with terminal.steps(not as_json) as progress:
        proof = run(source or terminal.short(CHECKPOINT), progress=progress)
    if as_json:
        click.echo(terminal.to_json(proof.to_dict()))
    else:
        terminal.print_proof(proof)
    if not proof.passed:
        sys.exit(MISMATCH)


@cli.command()
@out_argument
@json_option
@debug_option
def verify(out: Path, as_json: bool) -> None:
    """Say whether the files in OUT are still those that were checked; exit with 1 if not.

    Needs neither the source, nor torch, nor a network: the check left its verdict and the files' hashes in OUT.

    \b
    gpt2onnx verify ./my-gpt2-onnx
    """
    from converter import terminal
    from converter.certificate import verify as run

    found = run(out)
    if as_json:
        facts = {"passed": found.passed, "verdict": found.verdict, "changed": found.changed, "missing": found.missing}
        click.echo(terminal.to_json(facts | {"certificate": found.certificate}))
    else:
        click.echo(found.verdict)
    if not found.passed:
        sys.exit(MISMATCH)


@cli.command()
@out_argument
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
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
@click.option("--ids", is_flag=True, help="Prompts are token ids, such as '464 3290'; so is the output.")
@click.option("--threads", type=click.IntRange(1, MAX_THREADS), help="Threads of ONNX Runtime; by default one a core.")
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

    \b
    gpt2onnx generate OUT "Once upon a time"
    gpt2onnx generate OUT "The first" "The second" --temperature 0.8 --top-k 40 --seed 1
    gpt2onnx generate OUT "Once upon a time" --temperature 0.8 --min-p 0.05 --best 3
    gpt2onnx generate OUT "Q: Why?" --stop "Q:" --repetition-penalty 1.2
    gpt2onnx generate OUT "Once upon a time" --beams 4 --best 2 --length-penalty 0.8
    gpt2onnx generate OUT "$(cat code.py)" --speculate
    echo "From a pipe" | gpt2onnx generate OUT -n 50 -q
    """
    from converter import terminal
    from converter.runtime.session import load

    prompts = prompts or (standard_input("a prompt"),)
    model = load(out, provider, threads, precision, prepack=not no_prepack)
    streams = len(prompts) == 1 == options["best"] == options["beams"] and not as_json and not ids
    stream = terminal.Stream(prompts[0]) if streams else None
    done = model.generate(
        [terminal.parse_ids(prompt) for prompt in prompts] if ids else prompts,
        early_stopping=EARLY_STOPPING[early_stopping],
        on_text=stream.show if stream else None,
        **options,
    )
    if as_json:
        click.echo(terminal.to_json(terminal.generation_facts(prompts, done)))
        return
    if stream is not None:
        stream.end()
    else:
        terminal.print_rows(prompts, done, ids)
    if not quiet:
        click.echo(terminal.generation_line(done, model.config.n_positions), err=True)


def standard_input(what: str) -> str:
    """The text on standard input, if any is piped there."""
    if sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError(f"give {what}, or text on standard input")
    return sys.stdin.read().rstrip("\n")


@cli.command()
@out_argument
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--question", help="What is asked about each TEXT, of a model that answers questions.")
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Labels to print of each text.")
@click.option("--ids", is_flag=True, help="Texts are token ids, such as '464 3290'.")
@click.option("--threads", type=click.IntRange(1, MAX_THREADS), help="Threads of ONNX Runtime; by default one a core.")
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

    \b
    gpt2onnx run OUT "What a film!"
    gpt2onnx run OUT "Ada was born in London." --question "Where was Ada born?"
    gpt2onnx run OUT "one ending" "another ending" --json
    """
    from converter import terminal
    from converter.runtime.heads import load

    texts = texts or (standard_input("a text"),)
    model = load(out, provider, threads, precision)
    asks = model.config.head == "question-answering"
    if asks and question is None and not ids:
        raise click.UsageError("this model answers questions: give one with --question")
    if question is not None and (ids or not asks):
        raise click.UsageError("--question is for texts of a model that answers questions")
    given: list[Any] = [terminal.parse_ids(text) if ids else (question, text) if asks else text for text in texts]
    answers = model.run(given)
    if as_json:
        pairs = zip(texts, answers, strict=True)
        click.echo(terminal.to_json([{"text": text} | terminal.answer_facts(answer) for text, answer in pairs]))
    else:
        terminal.print_answers(texts, answers, top)


@cli.command()
@out_argument
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--stride", type=int, help="Tokens from window to window of a long text; by default half the positions.")
@click.option("--batch-size", default=8, show_default=True, help="Windows that are read together.")
@click.option("--threads", type=click.IntRange(1, MAX_THREADS), help="Threads of ONNX Runtime; by default one a core.")
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

    FILE is plain text, JSONL with a "text" in each line, or - for standard input. One JSON object a text goes to
    standard output, a summary to standard error.

    \b
    gpt2onnx score OUT held-out.txt
    gpt2onnx score OUT documents.jsonl --stride 256 > scores.jsonl
    """
    from converter import terminal
    from converter.runtime.scoring import read_texts
    from converter.runtime.scoring import score as run
    from converter.runtime.session import load

    texts = [standard_input("a text")] if str(file) == "-" else read_texts(file)
    scores = run(load(out, provider, threads, precision), texts, stride=stride, batch_size=batch_size)
    for one in scores:
        click.echo(terminal.to_json(terminal.score_facts(one), indent=None))
    if not quiet:
        click.echo(terminal.score_line(scores), err=True)


@cli.command()
@out_argument
@click.option("--precision", metavar="NAMES", help="Of those that OUT holds, with commas between; by default all.")
@click.option("--batch-sizes", metavar="NUMBERS", help="Prompts that run together.  [default: 1,8]")
@click.option("--contexts", metavar="NUMBERS", help="Tokens in the cache before decoding.  [default: 128,900]")
@click.option("--prompt-lengths", metavar="NUMBERS", help="Tokens of a prefill.  [default: 16,128,900]")
@click.option("--new-tokens", type=int, help="Tokens that decoding is timed over.  [default: 32]")
@click.option("--rounds", type=int, help="Samples that a median is of, each in a new process.  [default: 3]")
@click.option(
    "--max-minutes",
    default=DEFAULT_MINUTES,
    show_default=True,
    help="When they are over, what is still to do is left out: rounds first, then the largest batches.",
)
@click.option("--quick", is_flag=True, help="One round, batch 1, at most 128 tokens, unless other options say more.")
@click.option("--threads", type=click.IntRange(1, MAX_THREADS), help="Threads of ONNX Runtime; by default one a core.")
@provider_option
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw it all into this SVG file.")
@json_option
@debug_option
def bench(out: Path, plot: Path | None, as_json: bool, quick: bool, **given: Any) -> None:
    """Measure how fast the model folder OUT runs on this machine, and in what memory.

    Prefill, decoding with the cache, load time and memory, for each precision in processes of its own; and how near
    decoding is to the limit that the machine's memory sets: docs/bench.md. It ends after --max-minutes at the latest,
    with what it has; gpt2 needs less. Lengths are cut to the model's positions.

    \b
    gpt2onnx bench OUT
    gpt2onnx bench OUT --quick --precision fp32,int8
    gpt2onnx bench OUT --batch-sizes 1,4,16 --contexts 512 --rounds 5 --plot bench.svg
    gpt2onnx bench OUT --json > bench.json
    """
    from converter import parity, terminal
    from converter.runtime import benching

    if plot is not None:
        parity.require(parity.PLOT_NEEDED, "--plot")
        if not plot.absolute().parent.is_dir():
            raise click.UsageError(f"{plot} cannot be written: there is no folder {plot.absolute().parent}")
    settings = bench_settings(quick, **given)
    with terminal.steps(not as_json) as progress:
        found = benching.bench(out, settings, progress)
    if plot is not None:
        from converter.runtime import bench_plot

        bench_plot.write(found, plot)
    if as_json:
        click.echo(terminal.to_json(found.to_dict()))
    else:
        terminal.print_bench(found)


def bench_settings(quick: bool, **given: Any) -> Settings:
    """What options ask for; of those that are not given, what ``quick`` does or what is the default."""
    from converter import precisions
    from converter.runtime import benching

    asked: dict[str, Any] = dict(benching.QUICK) if quick else {}
    for name, value in given.items():
        if value is None:
            continue
        if name == "precision":
            asked["precisions"] = tuple(row.name for row in precisions.parse(value))
        elif name in ("batch_sizes", "contexts", "prompt_lengths"):
            asked[name] = benching.whole_numbers(name, value)
        else:
            asked[name] = value
    return benching.Settings(**asked)


@cli.command()
@click.argument("source")
@ignore_option
@activation_option
@adapter_option
@head_option
@json_option
@debug_option
def inspect(
    source: str, ignore: tuple[str, ...], activation: str | None, adapter: str | None, head: str | None, as_json: bool
) -> None:
    """Show what SOURCE is: its config, its size, and what becomes of each of its tensors.

    \b
    gpt2onnx inspect ./my-gpt2
    gpt2onnx inspect openai-community/gpt2 --json
    """
    from converter import terminal
    from converter.checkpoint import open_checkpoint
    from converter.weights import account

    checkpoint = open_checkpoint(source, activation=activation, adapter=adapter, head=head)
    ledger = account(checkpoint, ignore)
    if as_json:
        click.echo(terminal.to_json(terminal.ledger_facts(checkpoint, ledger)))
    else:
        terminal.print_ledger(checkpoint, ledger)
    for warning in (*ledger.warnings, *checkpoint.notes):
        click.echo(f"gpt2onnx: warning: {warning}", err=True)


@cli.command()
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace an OUT that gpt2onnx wrote.")
@debug_option
def demo(out: Path | None, force: bool) -> None:
    """Convert, check and run the small GPT-2 that ships with gpt2onnx.

    It was trained on Python's own language reference. The model folder is kept if you name OUT.

    \b
    gpt2onnx demo
    gpt2onnx demo ./tiny-onnx
    """
    import tempfile

    if out is not None:
        _demo(out, force)
        return
    with tempfile.TemporaryDirectory(prefix="gpt2onnx-") as folder:
        _demo(Path(folder) / "tiny-onnx", force)


def _demo(out: Path, force: bool) -> None:
    from converter import parity, terminal
    from converter.data import CHECKPOINT
    from converter.export import convert as run_convert
    from converter.runtime.session import load

    source = terminal.short(CHECKPOINT)
    click.echo(f"$ gpt2onnx convert {source} {out}")
    began = time.monotonic()
    done = run_convert(source, out, force=force)
    click.echo(terminal.conversion_line(done, time.monotonic() - began))

    click.echo(f"\n$ gpt2onnx check {source} {out}")
    passed = True
    if parity.available():
        report = run_check(str(source), out, show=True)
        terminal.print_report(report)
        passed = report.passed
    else:
        click.echo("skipped: it needs torch and transformers (pip install 'gpt2onnx[check]')")

    click.echo(f"\n$ gpt2onnx generate {out} '{DEMO_PROMPT}' -n {DEMO_TOKENS} --temperature 0.7 --top-k 20 --seed 11")
    model, stream = load(out), terminal.Stream(DEMO_PROMPT)
    generation = model.generate(
        [DEMO_PROMPT], max_new_tokens=DEMO_TOKENS, temperature=0.7, top_k=20, seed=11,
        on_text=stream.show,
    )  # fmt: skip
    stream.end()
    click.echo(terminal.generation_line(generation, model.config.n_positions), err=True)
    if not passed:
        sys.exit(MISMATCH)


if __name__ == "__main__":
    cli()
